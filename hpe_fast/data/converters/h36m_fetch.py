"""The layout that h36m-fetch writes: ``processed/S1/Directions-1/{annot.h5,imageSequence/<camera>/img_000001.jpg}``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpe_fast.data.converters.table import (
    Table,
    action_of,
    all_joints,
    concatenate,
    natural,
    need_equal_rows,
    need_joints,
    need_millimetres,
    open_annotation,
    split_by_subject,
    square_boxes,
)
from hpe_fast.data.schema import DataError
from hpe_fast.skeleton import H36M_32_TO_17


def detect(path: Path) -> bool:
    """Whether a directory looks like this layout."""
    return any(_root(path).glob("S*/*/annot.h5"))


def read(path: Path, padding: float = 1.25) -> dict[str, Table]:
    """The splits of the dataset at ``path`` (``processed``, or the directory it is in).

    Of the 32 joints 17 are kept; ``pose/3d`` is in mm in the camera's frame already, and ``intrinsics/<camera>`` is
    fx, cx, fy, cy.

    Raises:
        DataError: for a file that is not as it should be.
        OSError: for one that cannot be read.
    """
    files = sorted(_root(path).glob("S*/*/annot.h5"), key=lambda file: natural(str(file)))
    return split_by_subject(concatenate([_read_recording(file, padding) for file in files]))


def _root(path: Path) -> Path:
    return path / "processed" if (path / "processed").is_dir() else path


def _read_recording(file: Path, padding: float) -> Table:
    folder, (subject, recording) = file.parent, file.parent.parts[-2:]
    pose2d, pose3d, frames, cameras, intrinsics = _read_annotation(file)
    names = [f"{camera}/img_{frame:06d}.jpg" for camera, frame in zip(cameras, frames, strict=True)]
    known = all_joints(len(frames))
    return Table(
        pose2d=pose2d,
        visible=known,
        pose3d=pose3d,
        intrinsics=intrinsics,
        boxes=square_boxes(pose2d, known, padding, names, file),
        images=[folder / "imageSequence" / name for name in names],
        subjects=[subject] * len(frames),
        actions=[action_of(recording)] * len(frames),
        cameras=cameras,
        frames=frames,
        names=[f"{subject}/{recording}/{name}" for name in names],
    )


def _read_annotation(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str], np.ndarray]:
    wanted = ("pose/2d", "pose/3d", "frame", "camera")
    with open_annotation(file) as annotation:
        missing = [key for key in (*wanted, "intrinsics") if key not in annotation]
        if missing:
            raise DataError(f"{file}: {missing} are missing (the first h36m-fetch wrote no pose/3d: fetch again)")
        data = {key: annotation[key][:] for key in wanted}
        pinholes = {camera: values[:] for camera, values in annotation["intrinsics"].items()}
    need_equal_rows({key: len(values) for key, values in data.items()}, file)
    pose2d = need_joints(data["pose/2d"], 32, 2, f"{file}: pose/2d")[:, H36M_32_TO_17]
    pose3d = need_joints(data["pose/3d"], 32, 3, f"{file}: pose/3d")[:, H36M_32_TO_17]
    need_millimetres(pose3d, file)
    cameras = [str(camera) for camera in data["camera"]]
    unknown = set(cameras) - set(pinholes)
    if unknown:
        raise DataError(f"{file}: no intrinsics of camera {sorted(unknown)}")
    focal_centre = np.array([pinholes[camera] for camera in cameras], np.float64).reshape(len(cameras), -1)
    if len(cameras) and focal_centre.shape[1] != 4:
        raise DataError(f"{file}: intrinsics must be fx, cx, fy, cy, got {focal_centre.shape[1]} numbers")
    return pose2d, pose3d, data["frame"].astype(np.int64), cameras, focal_centre.reshape(-1, 4)[:, [0, 2, 1, 3]]
