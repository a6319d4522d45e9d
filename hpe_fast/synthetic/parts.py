"""Pieces of geometry that a picture is put together from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Part:
    """A mesh bound to the bones. N vertices, F triangles, M materials of its own.

    Attributes:
        rest: [N,3] metres, the person at rest (for things: where they are). normal: [N,3].
        swell: [N] metres to move along the normal. place: [N,3], see ``Body.place``.
        bone: int32 [N,4], weight: [N,4].
        faces: int32 [F,3]. uv: [F,3,2]. kind: int32 [F], row of ``materials`` [M, WIDTH].
    """

    rest: np.ndarray
    normal: np.ndarray
    swell: np.ndarray
    place: np.ndarray
    bone: np.ndarray
    weight: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    kind: np.ndarray
    materials: np.ndarray


def joined(parts: list[Part]) -> Part:
    """All in one, in their order."""
    vertex = np.cumsum([0, *(len(part.rest) for part in parts)])
    row = np.cumsum([0, *(len(part.materials) for part in parts)])

    def together(name: str, shift: np.ndarray | None = None) -> np.ndarray:
        arrays = [getattr(part, name) for part in parts]
        if shift is not None:
            arrays = [array + np.int32(start) for array, start in zip(arrays, shift[:-1], strict=True)]
        return np.ascontiguousarray(np.concatenate(arrays))

    plain = {name: together(name) for name in ("rest", "normal", "swell", "place", "bone", "weight", "uv", "materials")}
    return Part(faces=together("faces", vertex), kind=together("kind", row), **plain)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals float32 [N,3], weighted by the area of the faces [F,3] around."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    across = np.cross(b - a, c - a)
    corners, count = faces.ravel(), len(vertices)
    sums = [np.bincount(corners, np.repeat(across[:, axis], 3), count) for axis in range(3)]
    normals = np.stack(sums, axis=1)
    return (normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12)).astype(np.float32)


def connected(count: int, faces: np.ndarray) -> np.ndarray:
    """Number of the connected component of each of ``count`` vertices: its smallest vertex.

    Example:
        >>> connected(5, np.array([[0, 1, 2], [2, 1, 0], [3, 4, 3]])).tolist()
        [0, 0, 0, 3, 3]
    """
    label = np.arange(count)
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    while True:
        least = np.minimum(label[ends[:, 0]], label[ends[:, 1]])
        new = label.copy()
        np.minimum.at(new, ends[:, 0], least)
        np.minimum.at(new, ends[:, 1], least)
        new = new[new]
        if (new == label).all():
            return label
        label = new
