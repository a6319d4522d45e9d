"""VideoPose3D's archives: 3D poses in the world, and 2D poses of detectors; no pictures (for the lifter)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hpe_fast.data.converters.cameras import Camera, Cameras, load_cameras
from hpe_fast.data.converters.table import (
    Table,
    action_of,
    all_joints,
    concatenate,
    natural,
    need_joints,
    need_millimetres,
    split_by_subject,
    square_boxes,
)
from hpe_fast.data.converters.unpickle import load_npz
from hpe_fast.data.schema import DataError
from hpe_fast.skeleton import H36M_32_TO_17, NUM_JOINTS

_POSES = "data_3d_h36m.npz"


def detect(path: Path) -> bool:
    """Whether a directory looks like this layout."""
    return (path / _POSES).is_file()


def read(
    path: Path,
    padding: float = 1.25,
    cameras: Path | None = None,
    keypoints: Path | None = None,
    step: int = 5,
) -> dict[str, Table]:
    """The splits of the archives at ``path``: four rows a frame, one for each camera.

    Args:
        path: the directory of ``data_3d_h36m.npz``.
        padding: side of the square that takes the place of a crop over the longer side of the tight box.
        cameras: a file for :func:`~hpe_fast.data.converters.cameras.load_cameras`. Without it ``cameras.pkl`` or
            ``cameras.json`` beside the archive, or VideoPose3D's ``common/h36m_dataset.py`` beside its ``data``.
        keypoints: archive of 2D poses (``data_2d_h36m_*.npz`` with 17 joints) to take instead of the true ones, which
            are the pinhole projection of the 3D poses.
        step: every how many frames (of 50 a second).

    Raises:
        DataError: for a file that is not as it should be, and without cameras.
        OSError: for one that cannot be read.
    """
    if step < 1:
        raise ValueError(f"step must be positive, got {step}")
    lenses = load_cameras(cameras or _find_cameras(path))
    poses = _nested(load_npz(path / _POSES, ("positions_3d",))["positions_3d"], path / _POSES)
    found = None if keypoints is None else _nested(load_npz(keypoints, ("positions_2d",))["positions_2d"], keypoints)
    tables = [
        _view(*key, world[::step], camera, step, padding, None if found is None else _detected(found, key, index, step))
        for key, world, camera, index in _views(poses, lenses, path / _POSES)
    ]
    return split_by_subject(concatenate(tables))


def _find_cameras(path: Path) -> Path:
    places = [path / "cameras.pkl", path / "cameras.json", path.parent / "common" / "h36m_dataset.py"]
    for place in places:
        if place.is_file():
            return place
    raise DataError(
        f"{path}: {_POSES} is in world coordinates and has no cameras; give --cameras FILE (mmpose's cameras.pkl, "
        f"VideoPose3D's common/h36m_dataset.py, or JSON), or put one at {places[0]}"
    )


def _nested(archive: Any, path: Path) -> dict[str, dict[str, Any]]:
    content = archive.item() if isinstance(archive, np.ndarray) and archive.shape == () else archive
    if not isinstance(content, dict) or not all(isinstance(actions, dict) for actions in content.values()):
        raise DataError(f"{path}: a dictionary of subjects and actions is wanted, got {type(content).__name__}")
    return content


def _views(poses: dict, cameras: Cameras, path: Path) -> Iterator[tuple[tuple[str, str, str], np.ndarray, Camera, int]]:
    """((subject, recording, camera), [T, 17, 3] mm in the world, camera, its number), in a fixed order."""
    for subject in sorted(poses, key=natural):
        names = sorted(name for owner, name in cameras if owner == subject)
        if not names:
            raise DataError(f"{path}: there are poses of {subject}, but no cameras")
        for recording in sorted(poses[subject], key=natural):
            where = f"{path}: {subject}/{recording}"
            world = need_joints(np.asarray(poses[subject][recording]), 32, 3, where)[:, H36M_32_TO_17] * 1000
            for index, name in enumerate(names):
                yield (subject, recording, name), world, cameras[subject, name], index


def _detected(found: dict, key: tuple[str, str, str], index: int, step: int) -> np.ndarray:
    subject, recording, name = key
    try:
        view = np.asarray(found[subject][recording][index])
    except (KeyError, IndexError) as error:
        raise DataError(f"no 2D poses of {subject}/{recording}, camera {name}") from error
    return need_joints(view, NUM_JOINTS, 2, f"2D poses of {subject}/{recording}, camera {name}")[::step]


def _view(
    subject: str,
    recording: str,
    name: str,
    world: np.ndarray,
    camera: Camera,
    step: int,
    padding: float,
    detected: np.ndarray | None,
) -> Table:
    """One camera's rows; detectors sometimes ran a few frames longer than the motion capture, which are dropped."""
    pose3d = camera.from_world(world)
    need_millimetres(pose3d, f"{_POSES}: {subject}/{recording}, camera {name}, from metres")
    pose2d = camera.project(pose3d) if detected is None else detected[: len(world)]
    rows = len(pose2d)
    frames = np.arange(rows, dtype=np.int64) * step + 1
    known = all_joints(rows)
    names = [f"{subject}/{recording}.{name}/{frame:06d}" for frame in frames]
    return Table(
        pose2d=pose2d,
        visible=known,
        pose3d=pose3d[:rows],
        intrinsics=np.tile(camera.intrinsics, (rows, 1)),
        boxes=square_boxes(pose2d, known, padding, names, _POSES),
        images=None,
        subjects=[subject] * rows,
        actions=[action_of(recording)] * rows,
        cameras=[name] * rows,
        frames=frames,
        names=names,
    )
