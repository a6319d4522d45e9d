"""What to look at: pictures, folders, videos and cameras, frame by frame; and the boxes of the people in them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpe_fast.pipeline.inputs import as_boxes

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}
CAMERA = "camera:"

#: Reason by file: what could not be read.
Failures = dict[str, str]


@dataclass(frozen=True)
class Frame:
    """One picture to look at."""

    file: str
    """As it was named, or found in a folder."""
    number: int | None
    """In a video, from 0; None for a picture."""
    image: np.ndarray
    """uint8 [H, W, 3] RGB, turned as its EXIF orientation says."""
    boxes: Tensor | None
    """[P, 4] px; None: one person, the whole picture."""
    rate: float = 0.0
    """Frames a second of the video."""


class BoxTable:
    """The people's boxes by file (and frame), from a JSON or CSV file.

    JSON: ``{"a.jpg": [[x, y, width, height], ...], "b.mp4": {"0": [[...]], "1": [...]}}``; CSV: a header with
    ``file,x,y,width,height`` and for videos ``frame``. A file stands for itself by the path it was given as, or by its
    name alone. Boxes are measured from pixel edges: (0, 0, width, height) is the whole picture.

    Raises:
        ValueError: the file is neither, or a row is no box (named).
        OSError: the file cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "boxes.csv"
        >>> _ = path.write_text("file,x,y,width,height\\na.jpg,1,2,30,40\\na.jpg,5,6,30,40\\n")
        >>> BoxTable(path).of("folder/a.jpg", None).shape
        torch.Size([2, 4])
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        read = {".json": _read_json, ".csv": _read_csv}.get(path.suffix.lower())
        if read is None:
            raise ValueError(f"--boxes {path}: must end in .json or .csv")
        self._boxes = read(path)
        self._files = {file for file, _ in self._boxes}

    def of(self, file: str, number: int | None) -> Tensor:
        """Boxes ``[P, 4]`` float64 of a picture or frame; a frame that is not listed shows nobody.

        Raises:
            ValueError: the file is not listed.
        """
        name = file if file in self._files else Path(file).name
        if name not in self._files:
            raise ValueError(f"not in {self.path}")
        return torch.tensor(self._boxes.get((name, number), []), dtype=torch.float64).reshape(-1, 4)


Boxes = dict[tuple[str, int | None], list[list[float]]]


def _read_json(path: Path) -> Boxes:
    try:
        content = json.loads(path.read_text())
        boxes: Boxes = {}
        for file, value in content.items():
            frames = {None: value} if isinstance(value, list) else {int(n): rows for n, rows in value.items()}
            boxes.update({(file, number): [_box(row) for row in rows] for number, rows in frames.items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a JSON file of boxes by file: {error}") from error
    return boxes


def _read_csv(path: Path) -> Boxes:
    boxes: Boxes = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                number = int(row["frame"]) if row.get("frame") else None
                box = _box([row[name] for name in ("x", "y", "width", "height")])
                boxes.setdefault((row["file"], number), []).append(box)
            except (KeyError, ValueError, TypeError) as error:
                raise ValueError(f"{path}: not a box (file, x, y, width, height): {row}") from error
    return boxes


def _box(values: Any) -> list[float]:
    box = [float(value) for value in values]
    if len(box) != 4:
        raise ValueError(f"{box} is not x, y, width, height")
    return box


def list_sources(inputs: tuple[str, ...], failures: Failures) -> list[str]:
    """Files and cameras in order: a folder's pictures and videos by name; what does not exist goes to ``failures``.

    Example:
        >>> failures = {}
        >>> list_sources(("camera:0", "missing.jpg"), failures), failures
        (['camera:0'], {'missing.jpg': 'no such file'})
    """
    found: list[str] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES | VIDEOS)
            found += [str(file) for file in inside]
            if not inside:
                failures[name] = "a folder without pictures or videos"
        elif name.startswith(CAMERA) or path.is_file():
            found.append(name)
        else:
            failures[name] = "no such file"
    return list(dict.fromkeys(found))


def read_frames(source: str, boxes: BoxTable | None = None, max_frames: int | None = None) -> Iterator[Frame]:
    """The frames of a picture, a video or a camera.

    Raises:
        ValueError, OSError: it cannot be read, or its boxes are wrong.
    """
    if not source.startswith(CAMERA) and Path(source).suffix.lower() not in VIDEOS:
        yield _frame(source, None, _read_picture(Path(source)), boxes)
        return
    for number, (image, rate) in enumerate(_video(source)):
        if max_frames is not None and number >= max_frames:
            return
        yield _frame(source, number, image, boxes, rate)


def _frame(file: str, number: int | None, image: np.ndarray, boxes: BoxTable | None, rate: float = 0.0) -> Frame:
    table = None if boxes is None else as_boxes(boxes.of(file, number), torch.from_numpy(image)[None])[0]
    return Frame(file, number, image, table, rate)


def _read_picture(path: Path) -> np.ndarray:
    import cv2

    try:
        picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ValueError(f"not a picture that OpenCV can read: {error.err}") from error
    if picture is None:
        raise ValueError("not a picture that OpenCV can read")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _video(source: str) -> Iterator[tuple[np.ndarray, float]]:
    import cv2

    capture = cv2.VideoCapture(int(source[len(CAMERA) :]) if source.startswith(CAMERA) else source)
    try:
        rate = capture.get(cv2.CAP_PROP_FPS)
        read, picture = capture.read()
        if not read:
            raise ValueError("not a video (or camera) that OpenCV can read")
        while read:
            yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), rate if 1 <= rate <= 1000 else 25.0
            read, picture = capture.read()
    finally:
        capture.release()
