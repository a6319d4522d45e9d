"""Skeletons and heatmaps drawn onto pictures, at the pictures' own size, by OpenCV."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpe_fast.files import atomic_path
from hpe_fast.skeleton import EDGES, LEFT, NUM_JOINTS, RIGHT

if TYPE_CHECKING:
    from torch import Tensor

    Array = np.ndarray | Tensor

#: RGB of the person's right side, left side and trunk.
RIGHT_COLOR, LEFT_COLOR, TRUNK_COLOR = (226, 58, 52), (58, 110, 232), (64, 176, 92)
PathLike = str | os.PathLike
#: Of OpenCV's coordinates, for drawing between pixels.
FIXED_BITS = 4


def joint_color(joint: int) -> tuple[int, int, int]:
    """RGB of a joint, and of the bone that ends in it.

    Example:
        >>> joint_color(1) == RIGHT_COLOR, joint_color(0) == TRUNK_COLOR
        (True, True)
    """
    return RIGHT_COLOR if joint in RIGHT else LEFT_COLOR if joint in LEFT else TRUNK_COLOR


def draw_skeleton(
    image: Array,
    keypoints: Array,
    scores: Array | None = None,
    *,
    min_score: float = 0.0,
    path: PathLike | None = None,
) -> np.ndarray:
    """Draw people onto a copy of a picture; lines get thicker with the person's size.

    Args:
        image: uint8 ``[H, W, 3]`` RGB.
        keypoints: ``[17, 2]`` or ``[P, 17, 2]`` px; joints that are not finite are left out.
        scores: ``[17]`` or ``[P, 17]``; joints that do not score more than ``min_score`` are left out.
        min_score: in the unit of the scores.
        path: also save the picture there (.png or .jpg).

    Returns:
        uint8 ``[H, W, 3]`` RGB.

    Raises:
        ValueError: an argument's shape or dtype is wrong, or the path has another suffix.

    Example:
        >>> canvas = np.zeros((64, 64, 3), np.uint8)
        >>> drawn = draw_skeleton(canvas, np.random.default_rng(0).uniform(0, 64, (17, 2)))
        >>> drawn.shape, bool(canvas.any()), bool(drawn.any())
        ((64, 64, 3), False, True)
    """
    canvas, people = as_image(image).copy(), _people(keypoints)
    shown = np.isfinite(people).all(-1)
    if scores is not None:
        shown &= _matching("scores", scores, people.shape[:2]) > min_score
    for joints, chosen in zip(people, shown, strict=True):
        _draw_person(canvas, joints, chosen, np.ones(NUM_JOINTS, bool))
    return _saved(canvas, path)


def heatmap_overlay(
    image: Array, heatmaps: Array, *, strength: float = 0.75, path: PathLike | None = None
) -> np.ndarray:
    """Lay the strongest response over a picture: clear where there is none, yellow and red at the peaks.

    Heatmap pixel u stands at picture pixel ``u * width / heatmap width`` (index coordinates), as the codecs have it.

    Args:
        image: uint8 ``[H, W, 3]`` RGB, the picture that the heatmaps cover.
        heatmaps: ``[J, h, w]``; 1 on the colour scale is their maximum.
        strength: opacity of the highest peak, 0..1.
        path: also save the picture there (.png or .jpg).

    Returns:
        uint8 ``[H, W, 3]`` RGB.

    Raises:
        ValueError: an argument's shape or dtype is wrong.

    Example:
        >>> maps = np.zeros((17, 16, 16), np.float32)
        >>> maps[3, 4, 8] = 1
        >>> overlay = heatmap_overlay(np.zeros((64, 64, 3), np.uint8), maps)
        >>> bool(overlay[16, 32, 0] > 150), overlay[0, 0].tolist()
        (True, [0, 0, 0])
    """
    import cv2

    picture, maps = as_image(image), as_array(heatmaps).astype(np.float32)
    if maps.ndim != 3 or 0 in maps.shape:
        raise ValueError(f"heatmaps must be [J, h, w], got {list(maps.shape)}")
    height, width = picture.shape[:2]
    best = np.nan_to_num(maps).max(0)
    matrix = np.float64([[width / best.shape[1], 0, 0], [0, height / best.shape[0], 0]])
    response = cv2.warpAffine(best, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    response = np.clip(response / max(float(best.max()), 1e-12), 0, 1)
    colors = cv2.cvtColor(cv2.applyColorMap(np.uint8(225 * response), cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    alpha = strength * np.sqrt(response)[..., None]
    return _saved(np.uint8(np.rint((1 - alpha) * picture + alpha * colors)), path)


def contact_sheet(
    images: Sequence[Array],
    keypoints: Array,
    visible: Array | None = None,
    columns: int = 8,
    *,
    cell: int = 160,
    path: PathLike | None = None,
) -> np.ndarray:
    """Many pictures with their skeletons in one grid; hollow joints are those that are not visible.

    Args:
        images: N times uint8 ``[H, W, 3]`` RGB, of any sizes.
        keypoints: ``[N, 17, 2]`` px of each picture.
        visible: ``[N, 17]``, nonzero where a joint is visible. ``None``: all are.
        columns: pictures in a row.
        cell: side of a cell, px; each picture is scaled to fit.
        path: also save the picture there (.png or .jpg).

    Returns:
        uint8 ``[rows * cell, columns * cell, 3]`` RGB; white where the last row ends.

    Raises:
        ValueError: an argument's shape or dtype is wrong, or there is no picture.

    Example:
        >>> images, keypoints = np.zeros((5, 20, 10, 3), np.uint8), np.full((5, 17, 2), 5.0)
        >>> contact_sheet(images, keypoints, columns=3, cell=32).shape
        (64, 96, 3)
    """
    people = _people(keypoints)
    if len(images) == 0 or len(images) != len(people):
        raise ValueError(
            f"images and keypoints must be equally many and at least one, got {len(images)}, {len(people)}"
        )
    if columns < 1 or cell < 1:
        raise ValueError(f"columns and cell must be positive, got {columns}, {cell}")
    filled = np.ones(people.shape[:2]) if visible is None else _matching("visible", visible, people.shape[:2])
    columns = min(columns, len(images))
    sheet = np.full((-(-len(images) // columns) * cell, columns * cell, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = divmod(i, columns)
        sheet[y * cell : (y + 1) * cell, x * cell : (x + 1) * cell] = _cell(image, people[i], filled[i] > 0, cell)
    return _saved(sheet, path)


def as_array(value: Any) -> np.ndarray:
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()


def as_image(value: Any) -> np.ndarray:
    image = as_array(value)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    return np.ascontiguousarray(image)


def _people(value: Any) -> np.ndarray:
    keypoints = as_array(value).astype(float)
    if keypoints.ndim not in (2, 3) or keypoints.shape[-2:] != (NUM_JOINTS, 2):
        raise ValueError(f"keypoints must be [{NUM_JOINTS}, 2] or [P, {NUM_JOINTS}, 2], got {list(keypoints.shape)}")
    return keypoints.reshape(-1, NUM_JOINTS, 2)


def _matching(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = as_array(value)
    if array.shape not in (shape, shape[1:]) or array.size != np.prod(shape):
        raise ValueError(f"{name} must be {list(shape)}, got {list(array.shape)}")
    return array.reshape(shape)


def _draw_person(
    canvas: np.ndarray, joints: np.ndarray, shown: np.ndarray, filled: np.ndarray, thinnest: int = 1
) -> None:
    import cv2

    if not shown.any():
        return
    size = float(np.ptp(joints[shown], axis=0).max())
    thickness = int(np.clip(round(size / 70), thinnest, 40))
    radius = max(2.0, 1.2 * thickness)
    fixed = _fixed(joints).tolist()
    for parent, child in EDGES:
        if shown[parent] and shown[child]:
            cv2.line(canvas, fixed[parent], fixed[child], joint_color(child), thickness, cv2.LINE_AA, FIXED_BITS)
    for joint in np.flatnonzero(shown):
        if filled[joint] and thickness <= 2:  # too small for a ring
            _disc(canvas, joints[joint], radius, joint_color(joint))
            continue
        outer, inner = ((255, 255, 255), joint_color(joint)) if filled[joint] else (joint_color(joint), (255, 255, 255))
        _disc(canvas, joints[joint], radius, outer)
        _disc(canvas, joints[joint], 0.7 * radius, inner)


def _fixed(points: np.ndarray) -> np.ndarray:
    """Pixels in OpenCV's fixed point; what lies far beyond any picture is brought nearer, for it counts in 32 bits."""
    return np.rint(np.clip(np.nan_to_num(points), -(2**20), 2**20) * 2**FIXED_BITS).astype(np.int32)


def _disc(canvas: np.ndarray, centre: np.ndarray, radius: float, color: tuple[int, int, int]) -> None:
    """OpenCV's own small circles are diamonds."""
    import cv2

    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    rim = centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    cv2.fillConvexPoly(canvas, _fixed(rim), color, cv2.LINE_AA, FIXED_BITS)


def _cell(image: Any, joints: np.ndarray, filled: np.ndarray, side: int, fine: int = 3) -> np.ndarray:
    """A picture scaled into the middle of a square cell, with its skeleton drawn ``fine`` times as large first."""
    import cv2

    picture, fine_side = as_image(image), fine * side
    height, width = picture.shape[:2]
    scale = fine_side / max(height, width)
    matrix = np.float64([[scale, 0, (fine_side - scale * width) / 2], [0, scale, (fine_side - scale * height) / 2]])
    matrix[:, 2] += 0.5 * scale - 0.5  # corners onto corners, in index coordinates
    if scale < 1:
        picture = cv2.GaussianBlur(picture, (0, 0), 0.4 / scale)
    cell = cv2.warpAffine(picture, matrix, (fine_side, fine_side), flags=cv2.INTER_LINEAR, borderValue=(255,) * 3)
    joints = joints @ matrix[:, :2].T + matrix[:, 2]
    _draw_person(cell, joints, np.isfinite(joints).all(1), filled, thinnest=fine)
    return cv2.resize(cell, (side, side), interpolation=cv2.INTER_AREA)


def _saved(image: np.ndarray, path: PathLike | None) -> np.ndarray:
    if path is None:
        return image
    import cv2

    if Path(path).suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"path must end in .png or .jpg, got {os.fspath(path)!r}")
    done, content = cv2.imencode(Path(path).suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f"{os.fspath(path)}: OpenCV could not encode the picture")
    with atomic_path(path) as temporary:  # not imwrite, which dies of a name that is not UTF-8
        content.tofile(temporary)
    return image
