"""Poses in space as one HTML page that turns with the mouse; it needs nothing but a browser."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpe_fast.files import atomic_path
from hpe_fast.plots.images import PathLike, as_array, as_image, joint_color
from hpe_fast.skeleton import EDGES, NUM_JOINTS

if TYPE_CHECKING:
    from hpe_fast.plots.images import Array

#: Pixels of the longer side of a picture in the page.
PICTURE_SIDE = 256
_TEMPLATE = Path(__file__).with_name("page.html")


def pose_page(
    joints3d: Array,
    true3d: Array | None = None,
    *,
    images: Sequence[Array | bytes | None] | None = None,
    labels: Sequence[str] | None = None,
    title: str = "3D poses",
    rate: float = 10.0,
    path: PathLike | None = None,
) -> str:
    """One HTML file that shows poses in space: dragging turns them, the wheel zooms, a slider goes through them.

    Everything is in the file (its own code, data and pictures): it opens from a disk or an e-mail, asks for nothing
    from a network, and a policy in it forbids the browser to.

    Args:
        joints3d: ``[N, 17, 3]`` mm, hip at the origin (x right, y down, z away); joints that are not finite are left
            out.
        true3d: ``[N, 17, 3]`` mm, hip at the origin, drawn in grey; poses without any known joint have none.
        images: N times uint8 ``[H, W, 3]`` RGB, a JPEG file's bytes or ``None``, shown in the corner at 256 px at most.
        labels: what stands above each pose.
        title: of the page.
        rate: poses a second that "play" shows.
        path: also save the page there (.html).

    Returns:
        The page.

    Raises:
        ValueError: there is no pose, a shape is wrong, or the arguments are not equally long.
        OSError: the file cannot be written.

    Example:
        >>> page = pose_page(np.random.default_rng(0).normal(0, 300, (2, 17, 3)), labels=["sitting", "<b>"])
        >>> page.startswith("<!DOCTYPE html>"), "://" in page, "<b>" in page
        (True, False, False)
    """
    poses = _poses("joints3d", joints3d)
    truth = None if true3d is None else _poses("true3d", true3d)
    columns = {"true3d": truth, "images": images, "labels": labels}
    for name, values in columns.items():
        if values is not None and len(values) != len(poses):
            raise ValueError(f"{name} must have one entry for each of the {len(poses)} poses, got {len(values)}")
    if len(poses) == 0:
        raise ValueError("joints3d must have at least one pose, got none")
    if not rate > 0:
        raise ValueError(f"rate must be a positive number of poses a second, got {rate!r}")
    entries = [
        {
            "joints": _joints(pose),
            "label": str(labels[i]) if labels is not None else f"pose {i + 1}",
            "truth": _joints(truth[i]) if truth is not None and np.isfinite(truth[i]).all(-1).any() else None,
            "picture": _picture(images[i]) if images is not None and images[i] is not None else None,
        }
        for i, pose in enumerate(poses)
    ]
    bones = [[parent, child, "rgb({}, {}, {})".format(*joint_color(child))] for parent, child in EDGES]
    return _saved_page(_filled(title, {"bones": bones, "rate": rate, "poses": entries}), path)


def _poses(name: str, value: Any) -> np.ndarray:
    poses = as_array(value).astype(float)
    if poses.ndim != 3 or poses.shape[1:] != (NUM_JOINTS, 3):
        raise ValueError(f"{name} must be [N, {NUM_JOINTS}, 3], got {list(poses.shape)}")
    return poses


def _joints(pose: np.ndarray) -> list[list[float] | None]:
    """Tenths of a millimetre; null where a joint is not known, for JSON has no NaN."""
    return [joint.round(1).tolist() if np.isfinite(joint).all() else None for joint in pose]


def _picture(image: Array | bytes) -> str:
    """A small JPEG inside of an address."""
    content = image if isinstance(image, bytes) else small_jpeg(image)
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


def small_jpeg(image: Array) -> bytes:
    """A picture as the page holds it."""
    import cv2

    picture = as_image(image)
    scale = PICTURE_SIDE / max(picture.shape[:2])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    ok, content = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    if not ok:
        raise ValueError(f"image of {picture.shape[1]} x {picture.shape[0]} pixels: OpenCV made no JPEG of it")
    return content.tobytes()


def _filled(title: str, data: dict[str, Any]) -> str:
    # "<" would end the script that holds the data where a label says so
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    head, tail = _TEMPLATE.read_text(encoding="utf-8").split("{{data}}")
    return head.replace("{{title}}", html.escape(title)) + text + tail


def _saved_page(page: str, path: PathLike | None) -> str:
    if path is not None:
        with atomic_path(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
    return page
