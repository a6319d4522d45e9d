"""COCO's person keypoints (2D only) as Human3.6M's joints.

COCO's 17 are not Human3.6M's 17. Limbs are the same joints under other numbers; hip and thorax are the middles of the
hips and of the shoulders, the spine is the middle of those two, and the nose stands for Neck/Nose. COCO has no crown:
Head is never visible. A middle is known where both its ends are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hpe_fast.data.converters.table import Table, need_joints, unknown, whole_boxes
from hpe_fast.data.schema import DataError
from hpe_fast.skeleton import JOINTS, NUM_JOINTS

_COCO_JOINTS = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
    *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
    *("left_knee", "right_knee", "left_ankle", "right_ankle"),
)
#: Which of COCO's joints a joint is the mean of.
MEAN_OF: dict[str, tuple[str, ...]] = {
    "Hip": ("left_hip", "right_hip"),
    "RHip": ("right_hip",),
    "RKnee": ("right_knee",),
    "RFoot": ("right_ankle",),
    "LHip": ("left_hip",),
    "LKnee": ("left_knee",),
    "LFoot": ("left_ankle",),
    "Spine": ("left_hip", "right_hip", "left_shoulder", "right_shoulder"),
    "Thorax": ("left_shoulder", "right_shoulder"),
    "Neck/Nose": ("nose",),
    "LShoulder": ("left_shoulder",),
    "LElbow": ("left_elbow",),
    "LWrist": ("left_wrist",),
    "RShoulder": ("right_shoulder",),
    "RElbow": ("right_elbow",),
    "RWrist": ("right_wrist",),
}
_SPLITS = {"train": "train2017", "valid": "val2017"}


def detect(path: Path) -> bool:
    """Whether a directory looks like this layout."""
    return all(_annotation(path, name).is_file() for name in _SPLITS.values())


def read(path: Path, padding: float = 1.25) -> dict[str, Table]:
    """The splits of COCO 2017 at ``path``: people with at least one joint, crowds left out.

    The crop is the annotated box (``bbox``, whose longer side is multiplied by ``padding``), as in HRNet's code.

    Raises:
        DataError: for a file that is not as it should be.
        OSError: for one that cannot be read.
    """
    return {split: _read_annotation(path, name, padding) for split, name in _SPLITS.items()}


def _annotation(path: Path, name: str) -> Path:
    return path / "annotations" / f"person_keypoints_{name}.json"


def _read_annotation(path: Path, name: str, padding: float) -> Table:
    file = _annotation(path, name)
    try:
        content = json.loads(file.read_text())
        people = [p for p in content["annotations"] if not p.get("iscrowd") and p.get("num_keypoints", 0) > 0]
        names = {image["id"]: image["file_name"] for image in content["images"]}
        return _table(file, people, names, _image_folder(path, name), padding)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not JSON ({error})") from error
    except KeyError as error:
        raise DataError(f"{file}: not COCO's annotations, {error} is missing") from error


def _image_folder(path: Path, name: str) -> Path:
    return path / name if (path / name).is_dir() else path / "images" / name


def _table(file: Path, people: list[dict[str, Any]], names: dict[int, str], folder: Path, padding: float) -> Table:
    lengths = {len(person["keypoints"]) for person in people}
    if lengths - {3 * len(_COCO_JOINTS)}:
        raise DataError(f"{file}: keypoints must be 3 x {len(_COCO_JOINTS)} numbers, got {sorted(lengths)}")
    keypoints = np.array([p["keypoints"] for p in people], np.float64).reshape(-1, len(_COCO_JOINTS), 3)
    pose2d, visible = to_h36m(keypoints)
    kept = np.flatnonzero(visible.any(axis=1))
    people = [people[i] for i in kept]
    # COCO's boxes count from the picture's corner, its joints from the centre of the first pixel.
    x, y, width, height = np.array([p["bbox"] for p in people], np.float64).reshape(-1, 4).T
    centres = np.stack([x + width / 2, y + height / 2], axis=1) - 0.5
    files = [names[person["image_id"]] for person in people]
    row_names = [f"{name}#{person['id']}" for name, person in zip(files, people, strict=True)]
    rows = len(people)
    return Table(
        pose2d=pose2d[kept],
        visible=visible[kept],
        pose3d=unknown(rows, NUM_JOINTS, 3),
        intrinsics=unknown(rows, 4),
        boxes=whole_boxes(centres, np.maximum(width, height) * padding, row_names, file),
        images=[folder / name for name in files],
        subjects=["coco"] * rows,
        actions=["person"] * rows,
        cameras=[""] * rows,
        frames=np.array([person["id"] for person in people], dtype=np.int64),
        names=row_names,
    )


def to_h36m(keypoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """COCO's joints as Human3.6M's.

    Args:
        keypoints: ``[N, 17, 3]`` x, y in px and 0 (not labelled), 1 (hidden) or 2 (seen).

    Returns:
        ``[N, 17, 2]`` px and ``[N, 17]`` bool: where the joint's place is known. The place of the others is 0, 0.

    Example:
        >>> keypoints = np.zeros((1, 17, 3))
        >>> keypoints[0, 11], keypoints[0, 12] = (10, 4, 2), (20, 4, 1)
        >>> pose2d, known = to_h36m(keypoints)
        >>> pose2d[0, JOINTS.index("Hip")].tolist(), int(known.sum())
        ([15.0, 4.0], 3)
    """
    keypoints = need_joints(keypoints, len(_COCO_JOINTS), 3, "keypoints")
    pose2d, known = np.zeros((len(keypoints), NUM_JOINTS, 2)), np.zeros((len(keypoints), NUM_JOINTS), dtype=bool)
    for joint, sources in MEAN_OF.items():
        ends = keypoints[:, [_COCO_JOINTS.index(source) for source in sources]]
        column = JOINTS.index(joint)
        known[:, column] = (ends[..., 2] > 0).all(axis=1)
        pose2d[:, column] = ends[..., :2].mean(axis=1) * known[:, column, None]
    return pose2d, known
