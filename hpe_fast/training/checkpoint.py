"""The state of a stage in training: everything that a resumed run needs to go on bit for bit."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hpe_fast.files import atomic_path
from hpe_fast.models import CheckpointError
from hpe_fast.training.distributed import Ranks
from hpe_fast.training.optimizer import Update

VERSION = 2


@dataclass
class Progress:
    """Where a stage stands: ``iteration`` steps into ``epoch``, ``step`` in all."""

    epoch: int = 0
    iteration: int = 0
    step: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    samples: int = 0
    loss: float = 0.0  # mean over the steps before the last log point
    best_score: float = -math.inf  # of the best epoch in validation
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def fingerprint(*labels: np.ndarray) -> str:
    """Of the data trained on, so that a run does not go on with other data.

    Example:
        >>> fingerprint(np.arange(3), np.zeros(2))
        'c10df414'
    """
    value = 0
    for label in labels:
        value = zlib.crc32(np.ascontiguousarray(label), value)
    return f"{value:08x}"


def save_state(
    path: Path, model: nn.Module, update: Update, progress: Progress, stage: dict, ranks: Ranks | None = None
) -> None:
    """Write the state of a stage; the file of before stays whole until the new one is on the disk.

    Args:
        path: ``*.state.pt`` file.
        stage: the stage's settings as JSON-able values; a run only resumes with the same ones.
        ranks: all of them come here, for their random numbers; the first one writes.

    Raises:
        OSError: e.g. a full disk; ``path`` is untouched then.
    """
    ranks = ranks or Ranks()
    device = next(model.parameters()).device
    state = {
        "version": VERSION,
        "stage": stage,
        "model": model.state_dict(),
        "update": update.state_dict(),
        "progress": asdict(progress),
        "rng": ranks.gather(torch.get_rng_state()),
        "cuda_rng": ranks.gather(torch.cuda.get_rng_state(device)) if device.type == "cuda" else [],
    }
    if ranks.main:
        # Through memory: where the disk is full, torch's own writer fails without saying why.
        content = io.BytesIO()
        torch.save(state, content)
        try:
            with atomic_path(path) as temporary:
                temporary.write_bytes(content.getbuffer())
        except OSError as error:
            kept = "; the one of before is whole" if path.exists() else ""
            raise OSError(error.errno, f"{path}: cannot write the checkpoint: {error.strerror}{kept}") from error


def restore_state(path: Path, model: nn.Module, update: Update, stage: dict, ranks: Ranks | None = None) -> Progress:
    """Read what ``save_state`` wrote into the model, the optimiser and torch's random generators.

    Raises:
        CheckpointError: the file is damaged, of another version, or was trained with other settings (named).
    """
    ranks = ranks or Ranks()
    state = _read(path)
    _check_settings(path, state["stage"], stage)
    if len(state["rng"]) != ranks.world:
        raise CheckpointError(f"{path}: trained by {len(state['rng'])} processes, cannot go on with {ranks.world}")
    try:
        model.load_state_dict(state["model"])
        update.load_state_dict(state["update"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: does not fit this model: {error}") from error
    torch.set_rng_state(state["rng"][ranks.rank])
    device = next(model.parameters()).device
    if state["cuda_rng"] and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda_rng"][ranks.rank], device)
    return Progress(**state["progress"])


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums that it writes
            if (damaged := archive.testzip()) is not None:
                raise CheckpointError(f"{path}: damaged, the checksum of {damaged} differs")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no training state to resume from") from error
    except CheckpointError:
        raise
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: not a training state of hpe_fast, or damaged: {error}") from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        version = state.get("version") if isinstance(state, dict) else None
        raise CheckpointError(f"{path}: training state of version {version}, this package reads version {VERSION}")
    return state


def _check_settings(path: Path, saved: dict, wanted: dict) -> None:
    differences = [
        f"{key} was {saved.get(key)!r}, now {wanted.get(key)!r}"
        for key in sorted(saved.keys() | wanted.keys())
        if saved.get(key) != wanted.get(key)
    ]
    if differences:
        raise CheckpointError(f"{path}: cannot resume with other settings: {'; '.join(differences)}")
