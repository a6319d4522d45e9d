"""Affine maps of pictures and what they do to points and cameras, all in index coordinates."""

from __future__ import annotations

import numpy as np

Size = tuple[int, int]


def about_centres(linear: np.ndarray, in_size: Size, out_size: Size) -> np.ndarray:
    """Resize to ``out_size``, then ``linear`` about the centre: float64 [B,2,3], index coordinates."""
    old, new = (np.array([width, height], np.float64) for height, width in (in_size, out_size))
    linear = linear * (new / old)
    offset = (new - 1) / 2 - linear @ ((old - 1) / 2)
    return np.concatenate([linear, offset[:, :, None]], axis=2)


def map_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [B,P,2] where the maps [B,2,3] take them."""
    return points @ matrix[:, :, :2].transpose(0, 2, 1) + matrix[:, None, :, 2]


def transform_intrinsics(matrix: np.ndarray, turn: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Intrinsics [B,4] of pictures under the maps [B,2,3], the scene turned by ``turn`` [B,2,2] with them."""
    focal = np.einsum("bij,bj,bij->bi", matrix[:, :, :2], intrinsics[:, :2], turn)
    centre = map_points(matrix, intrinsics[:, None, 2:])[:, 0]
    return np.concatenate([focal, centre], axis=1)


def to_corner_matrix(matrix: np.ndarray) -> np.ndarray:
    """The same map [B,2,3] in corner coordinates, where the top-left pixel's centre is (0.5, 0.5), as DALI has it.

    This function and :func:`to_corner_points` are the only places that know of the half pixel.

    Example:
        >>> import numpy as np
        >>> to_corner_matrix(np.array([[[2.0, 0, 0], [0, 2, 0]]]))[0, :, 2].tolist()
        [-0.5, -0.5]
    """
    corner = matrix.copy()
    corner[..., 2] += 0.5 - 0.5 * matrix[..., :2].sum(axis=-1)
    return corner


def to_corner_points(points: np.ndarray) -> np.ndarray:
    """The same points [...,2] in corner coordinates.

    Example:
        >>> import numpy as np
        >>> to_corner_points(np.zeros(2)).tolist()
        [0.5, 0.5]
    """
    return points + 0.5
