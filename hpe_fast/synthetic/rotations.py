"""Rotation matrices that act on column vectors."""

from __future__ import annotations

import numpy as np


def axis_angle(axes: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Rotations [N,3,3] about ``axes`` [N,3] (of any length) by ``angles`` [N] radians.

    Example:
        >>> axis_angle(np.array([[0, 0, 2.0]]), np.array([np.pi / 2]))[0].round(6).tolist()
        [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    axes = np.asarray(axes, float)
    x, y, z = (axes / (np.linalg.norm(axes, axis=-1, keepdims=True) + 1e-12)).T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(-1, 3, 3)
    sine, cosine = np.sin(angles)[:, None, None], np.cos(angles)[:, None, None]
    return np.eye(3) + sine * cross + (1 - cosine) * (cross @ cross)


def rotation_about(axis: np.ndarray, angle: float) -> np.ndarray:
    """One rotation [3,3]."""
    return axis_angle(np.asarray(axis)[None], np.array([angle]))[0]


def frame(along: np.ndarray, hinge: np.ndarray) -> np.ndarray:
    """Orthonormal axes as columns [3,3]: first ``along``, second ``hinge`` as far as it is perpendicular to that.

    Example:
        >>> frame(np.array([0.0, 2.0, 0.0]), np.array([1.0, 1.0, 0.0])).T.tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]
    """
    first = along / np.linalg.norm(along)
    second = hinge - (hinge @ first) * first
    second = second / np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)], axis=1)


def shortest_turn(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest rotation [3,3] that turns direction ``a`` into direction ``b`` (not its opposite)."""
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    axis = np.cross(a, b)
    return rotation_about(axis, float(np.arctan2(np.linalg.norm(axis), a @ b)))
