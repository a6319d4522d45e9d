"""The layout of mmpose's Human3.6M: ``annotation_body3d/{cameras.pkl,fps10/h36m_train.npz,...}`` and ``images/``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpe_fast.data.converters.cameras import Cameras, load_cameras
from hpe_fast.data.converters.table import (
    Table,
    action_of,
    need_equal_rows,
    need_joints,
    need_millimetres,
    parse_name,
    whole_boxes,
)
from hpe_fast.data.converters.unpickle import load_npz
from hpe_fast.data.schema import DataError
from hpe_fast.skeleton import NUM_JOINTS

#: Unit of ``scale``, and how much of its square mmpose leaves around the joints.
_SCALE_UNIT, _SCALE_PADDING = 200.0, 1.2


def detect(path: Path) -> bool:
    """Whether a directory looks like this layout."""
    return any((path / "annotation_body3d").glob("fps*/h36m_train.npz"))


def read(path: Path, padding: float = 1.25, fps: int | None = None) -> dict[str, Table]:
    """The splits of the dataset at ``path``: subjects 1, 5, 6, 7, 8, and 9, 11.

    Metres become millimetres. mmpose's ``scale`` is 1.2 times the tight box, which is undone before ``padding``.

    Args:
        path: the dataset's directory.
        padding: side of the crop over the longer side of the tight box.
        fps: which of ``fps10`` and ``fps50`` to read; without it the smaller one there is.

    Raises:
        DataError: for a file that is not as it should be.
        OSError: for one that cannot be read.
    """
    rates = sorted(int(file.parent.name[3:]) for file in (path / "annotation_body3d").glob("fps*/h36m_train.npz"))
    if fps is not None and fps not in rates:
        raise DataError(f"{path}: no annotation_body3d/fps{fps}/h36m_train.npz; there is {rates} frames a second")
    folder = path / "annotation_body3d" / f"fps{fps or rates[0]}"
    cameras = load_cameras(path / "annotation_body3d" / "cameras.pkl")
    names = {"train": "train", "valid": "test"}
    return {
        split: _read_annotation(folder / f"h36m_{name}.npz", path / "images", cameras, padding)
        for split, name in names.items()
    }


def _read_annotation(file: Path, images: Path, cameras: Cameras, padding: float) -> Table:
    data = load_npz(file, ("imgname", "center", "scale", "part", "S"))
    need_equal_rows({key: len(values) for key, values in data.items()}, file)
    part = need_joints(data["part"], NUM_JOINTS, 3, f"{file}: part")
    pose3d = need_joints(data["S"], NUM_JOINTS, 4, f"{file}: S")[..., :3] * 1000
    need_millimetres(pose3d, f"{file}: S, from metres")
    names = [str(name) for name in data["imgname"]]
    parts = [parse_name(name, row, file) for row, name in enumerate(names)]
    unknown = {(subject, camera) for subject, _, camera, _ in parts} - set(cameras)
    if unknown:
        raise DataError(f"{file}: cameras.pkl has no {sorted(unknown)}")
    sides = data["scale"].astype(np.float64) * (_SCALE_UNIT * padding / _SCALE_PADDING)
    return Table(
        pose2d=part[..., :2],
        visible=part[..., 2] > 0,
        pose3d=pose3d,
        intrinsics=np.array([cameras[p[0], p[2]].intrinsics for p in parts]).reshape(-1, 4),
        boxes=whole_boxes(data["center"].astype(np.float64), sides, names, file),
        images=[images / name for name in names],
        subjects=[p[0] for p in parts],
        actions=[action_of(p[1]) for p in parts],
        cameras=[p[2] for p in parts],
        frames=np.array([p[3] for p in parts], dtype=np.int64),
        names=names,
    )
