"""Pipelines of trained weights, kept between calls."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from typing import Any

import torch

from hpe_fast.device import resolve_device
from hpe_fast.models import load_checkpoint
from hpe_fast.models.weight_files import DEFAULT_WEIGHTS, weight_paths
from hpe_fast.pipeline.pipeline import PosePipeline, Poses

logger = logging.getLogger("hpe_fast")

#: Looks at a picture of which nobody said where the person is.
LOOKS = 3
#: Pipelines that ``infer`` keeps; each holds weights and graphs.
KEPT = 2

_lock = threading.Lock()
_pipelines: dict[tuple[str, str], PosePipeline] = {}
_told = False


def load(
    path_or_name: str | os.PathLike | None = None, device: str | torch.device | None = None, **options: Any
) -> PosePipeline:
    """Make a pipeline of trained weights.

    What they were trained on stands in ``pipeline.metadata`` and goes to the log ``hpe_fast``; the first time that the
    default weights are taken without being asked for, a warning says it.

    Args:
        path_or_name: a run directory, or the name of bundled weights. ``None``: the default of those.
        device: ``None`` is the first GPU, else the CPU.
        options: of ``PosePipeline``, e.g. ``dtype=torch.float32``.

    Raises:
        FileNotFoundError: no such weights.
        ValueError: an unknown device, or a file that does not hold what it should.

    Example:
        >>> import tempfile
        >>> from dataclasses import asdict
        >>> from pathlib import Path
        >>> from hpe_fast.models import hrnet, lifter, save_checkpoint
        >>> from hpe_fast.ops import OFFICIAL
        >>> run = Path(tempfile.mkdtemp())
        >>> about = {"codec": asdict(OFFICIAL.resized(64, 16)), "trained_on": "nothing"}
        >>> save_checkpoint(run / "hrnet.safetensors", hrnet(width=8, modules=(1, 1, 1), blocks=1), about)
        >>> save_checkpoint(run / "lifter.safetensors", lifter(width=16), {"trained_on": "nothing"})
        >>> load(run, "cpu").metadata["detector"]["trained_on"]
        'nothing'
    """
    detector_path, lifter_path = weight_paths(path_or_name)
    pipeline = PosePipeline(load_checkpoint(detector_path), load_checkpoint(lifter_path), device, **options)
    trained = {stage: about.get("trained_on", "not stated") for stage, about in pipeline.metadata.items()}
    logger.info("%s and %s were trained on: %s", detector_path, lifter_path, trained)
    if path_or_name is None:
        _tell_once(trained)
    return pipeline


def infer(
    batch: Any,
    boxes: Any = None,
    *,
    weights: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    looks: int | None = None,
    **options: Any,
) -> Poses:
    """Find 2D and 3D joints in pictures, with weights that are loaded once and kept.

    Args:
        batch: uint8 RGB pictures: ``[B, H, W, 3]``, one ``[H, W, 3]``, or a list; see ``PosePipeline.__call__``.
        boxes: x, y, width, height of the people, px; see there.
        weights: as for ``load``.
        device: as for ``load``.
        looks: how often at most a person who is small in the picture is looked at, each time closer; see there.
            ``None``: 3 without boxes, else 1; 1 where heatmaps are returned, so that they show the whole picture.
        options: ``flip_test``, ``return_heatmaps``, ``batch_size``; see there.

    Returns:
        Poses: ``keypoints [N, 17, 2]`` px, ``scores [N, 17]``, ``joints3d [N, 17, 3]`` mm with the hip at the origin.

    Raises:
        FileNotFoundError: no such weights, or none in the package.
        TypeError, ValueError: as ``PosePipeline.__call__``.

    Example:
        >>> import numpy as np
        >>> infer(np.zeros((1, 256, 256, 3), np.uint8), weights="no/such/run")
        Traceback (most recent call last):
        FileNotFoundError: weights 'no/such/run': neither a run directory nor ...
    """
    if looks is None:
        looks = LOOKS if boxes is None and not options.get("return_heatmaps") else 1
    return _pipeline(weights, device)(batch, boxes, looks=looks, **options)


def _pipeline(weights: str | os.PathLike | None, device: str | torch.device | None) -> PosePipeline:
    """The pipeline kept for these weights; weights that were trained again are loaded again."""
    stamps = [(str(path), path.stat().st_mtime_ns) for path in weight_paths(weights)]
    place = str(resolve_device(device))
    with _lock:
        key = (str(stamps), place)
        if key not in _pipelines:
            if len(_pipelines) >= KEPT:
                del _pipelines[next(iter(_pipelines))]
            _pipelines[key] = load(weights, device)
        return _pipelines[key]


def _tell_once(trained: dict[str, str]) -> None:
    global _told
    if not _told:
        _told = True
        warnings.warn(
            f"hpe_fast uses its bundled weights {DEFAULT_WEIGHTS!r}, trained on: {trained['detector']} (2D), "
            f"{trained['lifter']} (3D). Expect less of other pictures; pass your own: hpe_fast.load(run_directory).",
            stacklevel=3,
        )
