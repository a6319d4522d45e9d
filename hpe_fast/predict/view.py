"""What was found as a page that turns with the mouse."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from hpe_fast.plots import draw_skeleton, pose_page
from hpe_fast.plots.page import PICTURE_SIDE, small_jpeg
from hpe_fast.predict.sources import Frame
from hpe_fast.predict.writers import Found

#: People in one page; each takes about 10 KiB with its picture.
MOST = 2000


class View:
    """Collects people, and writes them as ``poses.html`` at the end (also after Ctrl-C, but not after an error).

    Args:
        path: of the page.
        most: people it holds at most; ``left_out`` counts the rest, and is told at the end.
    """

    def __init__(self, path: Path, most: int = MOST) -> None:
        self.path, self.most, self.left_out = path, most, 0
        self._joints: list[np.ndarray] = []
        self._pictures: list[bytes] = []
        self._labels: list[str] = []
        self._rate = 0.0

    def __enter__(self) -> View:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if self._joints and (kind is None or issubclass(kind, KeyboardInterrupt)):
            options = {"images": self._pictures, "labels": self._labels, "rate": self._rate or 2.0}
            pose_page(np.stack(self._joints), title="Predicted 3D poses", path=self.path, **options)
        if self.left_out:
            print(f"{self.path}: shows the first {self.most} people, {self.left_out} are left out", file=sys.stderr)

    def add(self, frame: Frame, found: Found) -> None:
        """Keep one frame's people, each with a small picture."""
        room = self.most - len(self._joints)
        self.left_out += max(0, len(found.joints3d) - room)
        place = frame.file if frame.number is None else f"{frame.file}, frame {frame.number}"
        for i, joints in enumerate(found.joints3d[: max(0, room)]):
            self._joints.append(joints)
            self._pictures.append(small_jpeg(_small(frame.image, found.keypoints[i])))
            self._labels.append(place if len(found.joints3d) == 1 else f"{place}, person {i + 1}")
            self._rate = max(self._rate, frame.rate)


def _small(image: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """The picture at the page's size, with one skeleton."""
    import cv2

    height, width = image.shape[:2]
    scale = min(1.0, PICTURE_SIDE / max(height, width))
    size = max(1, round(scale * width)), max(1, round(scale * height))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    factors = np.array([size[0] / width, size[1] / height])
    return draw_skeleton(small, (keypoints + 0.5) * factors - 0.5)
