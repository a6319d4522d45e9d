"""The detector for other engines: images to heatmaps as an ONNX file, or as a program of ``torch.export``."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpe_fast.files import atomic_path
from hpe_fast.pipeline.pipeline import PosePipeline
from hpe_fast.pipeline.settings import JOINT_ORDER
from hpe_fast.skeleton import JOINTS

#: What each kind of file needs besides torch.
NEEDED = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": ()}
#: Largest difference between the file's heatmaps and the pipeline's, as a share of the largest value.
TOLERANCE = 1e-3
#: Batch sizes the written file is tried with.
TRIED = (2, 1, 3)


def export(pipeline: PosePipeline, path: str | os.PathLike) -> Path:
    """Write a pipeline's detector (normalised images to heatmaps) for other engines, and check what was written.

    The network is in float32 with BatchNorm folded, for any batch size. Input ``images`` is float32
    ``[B, 3, h, w]``: RGB in 0..1, less the mean, divided by the standard deviation; output ``heatmaps`` is float32
    ``[B, 17, h', w']``. Codec, normalisation, joint names and what the weights were trained on are stored in the file:
    ``metadata_props`` in ONNX, the extra file ``hpe_fast.json`` in a program; all values are JSON.

    Args:
        pipeline: whose detector.
        path: file to write: ``.onnx`` (needs the extra ``export``) or ``.pt2`` (for ``torch.export.load``).

    Returns:
        The path.

    Raises:
        TypeError: not a pipeline.
        ValueError: another suffix, or the extra is not installed.
        RuntimeError: the file's heatmaps (in ONNX Runtime for ONNX) are not the pipeline's; nothing is written then.
        OSError: it cannot be written; what was there is untouched then.

    Example:
        >>> import tempfile
        >>> from hpe_fast.models import hrnet, lifter
        >>> from hpe_fast.ops import OFFICIAL
        >>> detector = hrnet(width=8, modules=(1, 1, 1), blocks=1)
        >>> pipeline = PosePipeline(detector, lifter(width=16), "cpu", codec=OFFICIAL.resized(64, 16))
        >>> path = export(pipeline, Path(tempfile.mkdtemp()) / "model.pt2")
        >>> torch.export.load(path).module()(torch.zeros(5, 3, 64, 64)).shape
        torch.Size([5, 17, 16, 16])
    """
    if not isinstance(pipeline, PosePipeline):
        raise TypeError(f"pipeline must be a PosePipeline (hpe_fast.load()), got {type(pipeline).__name__}")
    path = Path(path)
    _check_suffix(path)
    network, texts = pipeline.exact_detector(), describe(pipeline)
    write, run = (_write_onnx, _run_onnx) if path.suffix == ".onnx" else (_write_program, _run_program)
    with atomic_path(path) as temporary:
        write(network, _images(pipeline, TRIED[0]), temporary, texts)
        for count in TRIED:
            _compare(network, _images(pipeline, count), run, temporary)
    return path


def describe(pipeline: PosePipeline) -> dict[str, str]:
    """What somebody who has only the file needs to know: JSON by name.

    Example:
        >>> from hpe_fast.models import hrnet, lifter
        >>> pipeline = PosePipeline(hrnet(width=8, modules=(1, 1, 1), blocks=1), lifter(width=16), "cpu")
        >>> json.loads(describe(pipeline)["normalization"])["mean"]
        [0.485, 0.456, 0.406]
    """
    values: dict[str, Any] = {
        "codec": asdict(pipeline.codec),
        "normalization": asdict(pipeline.normalization),
        "joint_order": JOINT_ORDER,
        "joint_names": list(JOINTS),
        "input": "float32 RGB [B, 3, h, w], (value / 255 - mean) / std",
        "output": "float32 heatmaps [B, 17, h', w']",
        "detector": pipeline.metadata["detector"],
    }
    return {name: json.dumps(value) for name, value in values.items()}


def _check_suffix(path: Path) -> None:
    if path.suffix not in NEEDED:
        raise ValueError(f"path must end in {' or '.join(NEEDED)}, got {str(path)!r}")
    missing = [name for name in NEEDED[path.suffix] if find_spec(name) is None]
    if missing:
        raise ValueError(f"{path.suffix} needs {' and '.join(missing)}: pip install 'hpe-fast[export]'")


def _images(pipeline: PosePipeline, count: int) -> Tensor:
    return torch.randn(count, 3, *pipeline.image_size, generator=torch.Generator().manual_seed(count))


def _write_onnx(network: nn.Module, images: Tensor, path: Path, texts: dict[str, str]) -> None:
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about itself
        program = torch.onnx.export(
            network,
            (images,),
            input_names=["images"],
            output_names=["heatmaps"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    for name, text in texts.items():
        model.metadata_props.add(key=name, value=text)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _run_onnx(path: Path, images: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(np.asarray(session.run(None, {"images": images.numpy()})[0]))


def _write_program(network: nn.Module, images: Tensor, path: Path, texts: dict[str, str]) -> None:
    program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path, extra_files={"hpe_fast.json": json.dumps(texts)})


def _run_program(path: Path, images: Tensor) -> Tensor:
    return torch.export.load(path).module()(images)


@torch.no_grad()
def _compare(network: nn.Module, images: Tensor, run: Any, path: Path) -> None:
    expected, found = network(images), run(path, images)
    if found.shape != expected.shape:
        raise RuntimeError(f"the exported file gives {list(found.shape)} for {list(expected.shape)}; nothing written")
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=torch.finfo().tiny))
    if not error <= TOLERANCE:
        raise RuntimeError(f"the exported file's heatmaps differ by {error:.1e} of the largest value; nothing written")
