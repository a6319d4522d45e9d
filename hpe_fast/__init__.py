"""3D human pose estimation: HRNet heatmaps, a dense lifter, fused C++/CUDA kernels.

    poses = hpe_fast.infer(batch)                  # uint8 images in, joints out
    pipeline = hpe_fast.load("runs/my-run")        # a trained run
    hpe_fast.ops.heatmap_mse_loss(heatmaps, keypoints)

Submodules and these names are imported when first used, so that ``import hpe_fast`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "infer": "pipeline",
    "load": "pipeline",
    "export": "pipeline",
    "PosePipeline": "pipeline",
    "Poses": "pipeline",
    "build_info": "ops",
    "load_checkpoint": "models",
}
__all__ = [
    "PosePipeline",
    "Poses",
    "__version__",
    "build_info",
    "data",
    "export",
    "infer",
    "load",
    "load_checkpoint",
    "metrics",
    "models",
    "ops",
    "pipeline",
    "plots",
    "skeleton",
]

if TYPE_CHECKING:
    from hpe_fast import data, metrics, models, ops, pipeline, plots, skeleton
    from hpe_fast.models import load_checkpoint
    from hpe_fast.ops import build_info
    from hpe_fast.pipeline import PosePipeline, Poses, export, infer, load


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(import_module(f"hpe_fast.{_HOME[name]}"), name)
    elif name in __all__:
        value = import_module(f"hpe_fast.{name}")
    else:
        raise AttributeError(f"module 'hpe_fast' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
