"""A piece of motion in the skeleton of CMU's BVH files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Clip:
    """Names [K], parents [K], offsets [K,3] (units of the file) and local rotations [T,K,3,3] of the joints."""

    name: str
    names: list[str]
    parents: list[int]
    offsets: np.ndarray
    local: np.ndarray
