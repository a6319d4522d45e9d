"""Training of both stages: what ``python -m hpe_fast.train`` runs, as functions.

The names are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

_HOME = {
    "DetectorConfig": "config",
    "Interrupted": "engine",
    "LifterConfig": "config",
    "OptimizerConfig": "config",
    "TrainConfig": "config",
    "TrainingDiverged": "engine",
    "train": "run",
}
__all__ = [
    "DetectorConfig",
    "Interrupted",
    "LifterConfig",
    "OptimizerConfig",
    "TrainConfig",
    "TrainingDiverged",
    "train",
]

if TYPE_CHECKING:
    from hpe_fast.training.config import DetectorConfig, LifterConfig, OptimizerConfig, TrainConfig
    from hpe_fast.training.engine import Interrupted, TrainingDiverged
    from hpe_fast.training.run import train


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'hpe_fast.training' has no attribute {name!r}")
    return getattr(import_module(f"hpe_fast.training.{_HOME[name]}"), name)
