"""Small datasets in the true layouts, with pictures from whose crops it can be measured where they were cut."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import cv2
import h5py
import numpy as np

FRAME = (220, 240)  # height, width: whole dots only
CAMERAS = ("54138969", "55011271")
KEPT = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]
# A person of 1.7 m, y down, hip at the origin, in the order of pose-conventions 2.6.
STANDING = np.array(
    [
        *([0, 0, 0], [-130, 0, 0], [-140, 440, 20], [-140, 870, 40], [130, 0, 0], [140, 440, 20], [140, 870, 40]),
        *([0, -240, 10], [0, -490, 20], [10, -600, -60], [0, -720, -10]),
        *([160, -480, 20], [300, -260, 40], [380, -60, -60], [-160, -480, 20], [-310, -270, 30], [-390, -50, -40]),
    ],
    dtype=np.float64,
)


@dataclass
class People:
    """N poses seen by a pinhole: pose3d mm in the camera's frame, pose2d px, intrinsics fx, fy, cx, cy."""

    pose3d: np.ndarray
    pose2d: np.ndarray
    intrinsics: np.ndarray


def people(count: int, seed: int, intrinsics=(280.0, 284.0, 121.0, 113.0)) -> People:
    rng = np.random.default_rng(seed)
    turns = rng.uniform(0, 2 * np.pi, count)
    rotation = np.zeros((count, 3, 3))
    rotation[:, 0, 0] = rotation[:, 2, 2] = np.cos(turns)
    rotation[:, 0, 2], rotation[:, 2, 0], rotation[:, 1, 1] = np.sin(turns), -np.sin(turns), 1
    place = rng.uniform((-500, -150, 3800), (500, 150, 5500), (count, 3))
    pose3d = STANDING @ rotation.transpose(0, 2, 1) + rng.normal(0, 15, (count, 17, 3)) + place[:, None]
    camera = np.array(intrinsics)
    return People(pose3d, pose3d[..., :2] / pose3d[..., 2:] * camera[:2] + camera[2:], camera)


def scene(height: int, width: int) -> np.ndarray:
    """Red = x, green = y, and blue dots, 20 px apart, whose centres can be measured to some hundredths of a pixel."""
    y, x = np.mgrid[:height, :width]
    dots = np.exp(-(((x % 20) - 10) ** 2 + ((y % 20) - 10) ** 2) / (2 * 2.5**2))
    return np.dstack([20 + 90 * dots, y, x]).astype(np.uint8)  # OpenCV's order


def write_picture(path: Path, size: tuple[int, int] = FRAME) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    assert cv2.imwrite(str(path), scene(*size), options)


def measured_crop(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scale, shift) by which source = scale * crop + shift, for x and y, from the dots."""
    blue = image[..., 2].astype(float) - 20  # red and green say which dot it is
    peaks = (blue == cv2.dilate(blue, np.ones((5, 5)))) & (blue > 35)
    found = []
    for y, x in np.argwhere(peaks):
        if min(y, x) < 6 or max(y, x) >= len(image) - 9:
            continue
        window = np.clip(blue[y - 5 : y + 6, x - 5 : x + 6], 6, None) - 6
        offset = np.array([(window.sum(axis) @ np.arange(-5, 6)) / window.sum() for axis in (0, 1)])
        found.append([*(np.array([x, y]) + offset), *((image[y, x, :2] // 20) * 20.0 + 10)])
    found = np.array(found)
    assert len(found) >= 6
    fits = [np.polyfit(found[:, i], found[:, 2 + i], 1) for i in (0, 1)]
    return np.array([f[0] for f in fits]), np.array([f[1] for f in fits])


def to_32(pose: np.ndarray) -> np.ndarray:
    full = np.full((len(pose), 32, pose.shape[-1]), 7777.0)
    full[:, KEPT] = pose
    return full


def eth(root: Path, subjects=("S1", "S5", "S6"), rows: int = 4, size: int = 64, valid: bool = False) -> People:
    """The paper's layout: pose2d and pose3d and nothing else."""
    everyone = people(rows * len(subjects), 1, (75.0, 75.0, size / 2, size / 2))
    names = [f"{s}_{'Walk' if i % 2 else 'Eat_1'}.54138969_{i + 1:06d}.jpg" for s in subjects for i in range(rows)]
    (root / "annot").mkdir(parents=True)
    for name in names:
        write_picture(root / "images" / name, (size, size))
    for split in ("train", "valid") if valid else ("train",):
        with h5py.File(root / "annot" / f"{split}.h5", "w") as file:
            file["pose2d"], file["pose3d"] = everyone.pose2d.astype("f4"), everyone.pose3d.astype("f4")
        (root / "annot" / f"{split}_images.txt").write_text("\n".join(names) + "\n")
    return everyone


def h36m_fetch(root: Path, subjects=("S1", "S9", "S11"), frames: int = 3) -> dict[str, People]:
    found = {}
    for k, subject in enumerate(subjects):
        folder = root / "processed" / subject / "Directions-2"
        views = [people(frames, 10 * k + c, (280.0 + c, 284.0 + c, 121.0, 113.0)) for c in range(len(CAMERAS))]
        numbers = np.tile(np.arange(frames) * 5 + 1, len(CAMERAS))
        folder.mkdir(parents=True)
        with h5py.File(folder / "annot.h5", "w") as file:
            file["pose/2d"] = to_32(np.concatenate([v.pose2d for v in views]))
            file["pose/3d"] = to_32(np.concatenate([v.pose3d for v in views]))
            file["pose/3d-univ"] = file["pose/3d"][:] * 1.1
            file["frame"], file["camera"] = numbers, np.repeat([int(c) for c in CAMERAS], frames)
            file["subject"], file["action"], file["subaction"] = (np.full(len(numbers), v) for v in (k, 2, 2))
            for camera, view in zip(CAMERAS, views, strict=True):
                fx, fy, cx, cy = view.intrinsics
                file[f"intrinsics/{camera}"] = np.array([fx, cx, fy, cy])
                file[f"intrinsics-univ/{camera}"] = np.array([9.0, 9, 9, 9])
        for camera, view in zip(CAMERAS, views, strict=True):
            found[f"{subject}/{camera}"] = view
            for number in range(frames):
                write_picture(folder / "imageSequence" / camera / f"img_{number * 5 + 1:06d}.jpg")
    return found


def world_camera(index: int) -> dict:
    """A camera 4.5 m from the origin, looking at it; keys as in mmpose's cameras.pkl, T in mm."""
    angle = 0.7 + index
    forward = np.array([-np.cos(angle), -np.sin(angle), -0.2])
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward], axis=1)  # columns: the camera's axes in the world
    lens = {"f": np.array([[1145.0 + index], [1143.0]]), "c": np.array([[512.0], [515.0]])}
    return {"R": rotation, "T": (-4500 * forward).reshape(3, 1), **lens, "k": np.zeros((3, 1)), "p": np.zeros((2, 1))}


def write_mmpose_cameras(path: Path, subjects=("S1", "S5", "S9"), small: People | None = None) -> None:
    cameras = {}
    for subject in subjects:
        for index, name in enumerate(CAMERAS):
            camera = world_camera(index)
            camera["T"] = camera["T"] / 1000
            if small is not None:
                camera["f"], camera["c"] = small.intrinsics[:2].reshape(2, 1), small.intrinsics[2:].reshape(2, 1)
            cameras[subject, name] = {**camera, "w": 1000, "h": 1002, "name": f"camera{index + 1}", "id": name}
    path.write_bytes(pickle.dumps(cameras))


def mmpose(root: Path) -> dict[str, People]:
    folder, found = root / "annotation_body3d" / "fps10", {}
    folder.mkdir(parents=True)
    for split, subjects in {"train": ("S1", "S5"), "test": ("S9",)}.items():
        everyone = people(4 * len(subjects), len(split))
        names = [
            f"{s}/{s}_Eating_1.{c}/{s}_Eating_1.{c}_{i:06d}.jpg" for s in subjects for c in CAMERAS for i in (1, 6)
        ]
        low, high = everyone.pose2d.min(1), everyone.pose2d.max(1)
        ones = np.ones((len(names), 17, 1))
        np.savez(
            folder / f"h36m_{split}.npz",
            imgname=np.array(names),
            center=(low + high) / 2,
            scale=1.2 * (high - low).max(1) / 200,
            part=np.concatenate([everyone.pose2d, ones], -1),
            S=np.concatenate([everyone.pose3d / 1000, ones], -1),
        )
        for name in names:
            write_picture(root / "images" / name)
        found[split] = everyone
    write_mmpose_cameras(root / "annotation_body3d" / "cameras.pkl", small=everyone)
    return found


def videopose3d(root: Path, frames: int = 11) -> dict[str, dict[str, np.ndarray]]:
    """``{subject: {recording: [T,17,3] mm}}`` in the world, z up."""
    root.mkdir(parents=True, exist_ok=True)
    world, saved = {}, {}
    for k, subject in enumerate(("S1", "S5", "S9")):
        body = people(frames, k).pose3d
        standing = (body - body[:, :1])[..., [0, 2, 1]] * (1, 1, -1) + (100.0, 50.0 * k, 900.0)
        world[subject] = {"Photo 1": standing, "WalkDog": standing + 20}
        saved[subject] = {name: (to_32(pose) / 1000).astype(np.float32) for name, pose in world[subject].items()}
    np.savez_compressed(root / "data_3d_h36m.npz", positions_3d=saved)
    return world


def coco(root: Path) -> dict[str, list]:
    """One picture a split with three people; the third has a nose only in train, nothing in valid."""
    (root / "annotations").mkdir(parents=True)
    rng, kept = np.random.default_rng(3), {}
    for split in ("train2017", "val2017"):
        write_picture(root / split / "000000000009.jpg")
        persons = []
        for number in range(3):
            keypoints = np.column_stack([rng.integers(40, 180, 17), rng.integers(30, 190, 17), np.full(17, 2)])
            keypoints[4 + number : 7 + number] = 0
            if number == 2:
                keypoints[split == "train2017" :] = 0
            persons.append(
                {
                    "id": 100 + number,
                    "image_id": 9,
                    "iscrowd": 0,
                    "num_keypoints": int((keypoints[:, 2] > 0).sum()),
                    "keypoints": keypoints.ravel().tolist(),
                    "bbox": [29.9, 20.25, 160.0, 180.0 + number],
                }
            )
        crowd = {
            "id": 999,
            "image_id": 9,
            "iscrowd": 1,
            "num_keypoints": 5,
            "keypoints": [1] * 51,
            "bbox": [0, 0, 9, 9],
        }
        images = [{"id": 9, "file_name": "000000000009.jpg", "width": FRAME[1], "height": FRAME[0]}]
        content = {"images": images, "annotations": [*persons, crowd]}
        (root / "annotations" / f"person_keypoints_{split}.json").write_text(json.dumps(content))
        kept[split] = [person for person in persons if person["num_keypoints"]]
    return kept
