"""torch.compile, where there is what it needs."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch
from torch import nn


def compiled(model: nn.Module, device: torch.device) -> nn.Module:
    """The model behind torch.compile, with the same parameters.

    Raises:
        ValueError: no C++ compiler, or on a GPU no Triton; says what to install.
    """
    # Triton builds its launchers with a C compiler too.
    variable, *names = ("CXX", "g++", "clang++") if device.type == "cpu" else ("CC", "gcc", "clang")
    names[0] = os.environ.get(variable, names[0])
    if not any(map(shutil.which, names)):
        raise ValueError(f"--compile needs a compiler, but neither {names[0]} nor {names[1]} is on the PATH")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ValueError("--compile needs Triton for a GPU: pip install triton")
    return torch.compile(model)
