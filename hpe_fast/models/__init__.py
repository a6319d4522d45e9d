"""The networks, and reading and writing their weights.

Every model has ``config``, JSON-able values from which ``build_model`` makes it again, and ``metadata``, what its
checkpoint said about it.
"""

from hpe_fast.models.checkpoints import CheckpointError, build_model, load_checkpoint, save_checkpoint
from hpe_fast.models.hrnet import HRNet, hrnet, hrnet_paper, hrnet_tiny, hrnet_w32, hrnet_w48
from hpe_fast.models.lifter import Lifter, from_unit_crop, lifter, unit_crop
from hpe_fast.models.resnet import SimpleBaseline, simple_baseline

__all__ = [
    "CheckpointError",
    "HRNet",
    "Lifter",
    "SimpleBaseline",
    "build_model",
    "from_unit_crop",
    "hrnet",
    "hrnet_paper",
    "hrnet_tiny",
    "hrnet_w32",
    "hrnet_w48",
    "lifter",
    "load_checkpoint",
    "save_checkpoint",
    "simple_baseline",
    "unit_crop",
]
