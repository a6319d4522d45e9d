"""The layout of the paper's dataset: ``annot/train.h5``, ``annot/train_images.txt`` and 256 x 256 ``images/*.jpg``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpe_fast.data.converters.table import (
    Table,
    action_of,
    all_joints,
    need_equal_rows,
    need_joints,
    need_millimetres,
    open_annotation,
    parse_name,
    split_by_subject,
)
from hpe_fast.data.schema import DataError
from hpe_fast.skeleton import NUM_JOINTS

#: A pinhole that misses a joint by more than this many pixels is not the camera that took the picture.
_FIT_TOLERANCE = 0.5


def detect(path: Path) -> bool:
    """Whether a directory looks like this layout."""
    return (path / "annot" / "train.h5").is_file() and (path / "annot" / "train_images.txt").is_file()


def read(path: Path, padding: float = 1.25) -> dict[str, Table]:
    """The splits of the dataset at ``path``.

    The pictures are crops already, so ``padding`` is without effect. Where ``annot/valid.h5`` has labels it is the
    validation split; the paper's own dataset has none, and its last subject (S8) is held out.

    Raises:
        DataError: for a file that is not as it should be.
        OSError: for one that cannot be read.
    """
    train = _read_annotation(path, "train")
    if (path / "annot" / "valid.h5").is_file():
        return {"train": train, "valid": _read_annotation(path, "valid")}
    return split_by_subject(train)


def _read_annotation(path: Path, name: str) -> Table:
    annotation = path / "annot" / f"{name}.h5"
    with open_annotation(annotation) as file:
        data = {key: file[key][:] for key in ("pose2d", "pose3d", "intrinsics", "visibility") if key in file}
    if not {"pose2d", "pose3d"} <= set(data):
        raise DataError(f"{annotation}: datasets pose2d and pose3d are wanted, there is {sorted(data)}")
    pose2d = need_joints(data["pose2d"], NUM_JOINTS, 2, f"{annotation}: pose2d")
    pose3d = need_joints(data["pose3d"], NUM_JOINTS, 3, f"{annotation}: pose3d")
    names = _read_names(path / "annot" / f"{name}_images.txt")
    need_equal_rows(
        {"pose2d": len(pose2d), f"{name}_images.txt": len(names)} | {k: len(data[k]) for k in data}, annotation
    )
    need_millimetres(pose3d, annotation)
    parts = [parse_name(image, row, annotation) for row, image in enumerate(names)]
    visible = data["visibility"].astype(bool) if "visibility" in data else all_joints(len(names))
    intrinsics = data["intrinsics"].astype(np.float64) if "intrinsics" in data else fit_intrinsics(pose2d, pose3d)
    return Table(
        pose2d=pose2d,
        visible=visible,
        pose3d=pose3d,
        intrinsics=intrinsics,
        boxes=None,
        images=[path / "images" / image for image in names],
        subjects=[part[0] for part in parts],
        actions=[action_of(part[1]) for part in parts],
        cameras=[part[2] for part in parts],
        frames=np.array([part[3] for part in parts], dtype=np.int64),
        names=names,
    )


def _read_names(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not text ({error})") from error


def fit_intrinsics(pose2d: np.ndarray, pose3d: np.ndarray) -> np.ndarray:
    """The pinhole camera of each picture, by least squares over its 17 joints: ``u = fx * x / z + cx``.

    Args:
        pose2d: ``[N, 17, 2]`` px.
        pose3d: ``[N, 17, 3]`` mm, absolute in the camera's frame.

    Returns:
        ``[N, 4]`` fx, fy, cx, cy; NaN where the pinhole misses a joint by more than half a pixel.

    Example:
        >>> pose3d = np.random.default_rng(0).uniform((-500, -900, 3000), (500, 900, 5000), (1, 17, 3))
        >>> pose2d = pose3d[..., :2] / pose3d[..., 2:] * (290, 300) + (128, 120)
        >>> fit_intrinsics(pose2d, pose3d).round(6).tolist()
        [[290.0, 300.0, 128.0, 120.0]]
    """
    with np.errstate(all="ignore"):
        ray = pose3d[..., :2] / pose3d[..., 2:]
        ray_mean, pixel_mean = ray.mean(axis=1), pose2d.mean(axis=1)
        ray_offset, pixel_offset = ray - ray_mean[:, None], pose2d - pixel_mean[:, None]
        focal = (ray_offset * pixel_offset).sum(axis=1) / (ray_offset**2).sum(axis=1)
        centre = pixel_mean - focal * ray_mean
        error = np.abs(ray * focal[:, None] + centre[:, None] - pose2d).max(axis=(1, 2))
    intrinsics = np.concatenate([focal, centre], axis=1)
    intrinsics[~((error <= _FIT_TOLERANCE) & (focal > 0).all(axis=1))] = np.nan
    return intrinsics
