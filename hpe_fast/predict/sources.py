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
#: Pictures that may be transparent.
WITH_ALPHA = {".png", ".webp", ".tif", ".tiff"}
CAMERA = "camera:"
#: Pixels of a picture's longer side; the pipeline makes a square of it, and JPEG ends at 65,535.
LONGEST = 20_000
#: A video with fewer than this share of the frames that its header promises was cut; headers are not exact.
FRAMES_PROMISED = 0.95

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
        self._used: set[tuple[str, int | None]] = set()

    def of(self, file: str, number: int | None) -> Tensor:
        """Boxes ``[P, 4]`` float64 of a picture or frame; a frame that is not listed shows nobody.

        Raises:
            ValueError: the file is not listed, a video without frames, or a picture with some.
        """
        name = file if file in self._files else Path(file).name
        if name not in self._files:
            raise ValueError(f"not in {self.path}")
        if number is None and (name, None) not in self._boxes:
            raise ValueError(f"a picture, but {self.path} gives its boxes by frame")
        if number is not None and (name, None) in self._boxes:
            raise ValueError(f"a video, but {self.path} gives boxes of it without frames")
        self._used.add((name, number))
        return torch.tensor(self._boxes.get((name, number), []), dtype=torch.float64).reshape(-1, 4)

    @property
    def unused(self) -> list[str]:
        """Files, and frames of videos, that are listed and nobody asked for: most likely misspelt."""
        left = sorted(self._boxes.keys() - self._used, key=str)
        return [file if number is None else f"{file} frame {number}" for file, number in left]


Boxes = dict[tuple[str, int | None], list[list[float]]]


def _read_json(path: Path) -> Boxes:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        boxes: Boxes = {}
        for file, value in content.items():
            frames = {None: value} if isinstance(value, list) else {int(n): rows for n, rows in value.items()}
            boxes.update({(file, number): [_box(row) for row in rows] for number, rows in frames.items()})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file of boxes by file: {error}") from error
    return boxes


def _read_csv(path: Path) -> Boxes:
    boxes: Boxes = {}
    for row in _csv_rows(path):
        try:
            number = int(row["frame"]) if row.get("frame") else None
            box = _box([row[name] for name in ("x", "y", "width", "height")])
            boxes.setdefault((row["file"], number), []).append(box)
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path}: not a box (file, x, y, width, height): {row}") from error
    return boxes


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file, skipinitialspace=True))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8: {error}") from error


def _box(values: Any) -> list[float]:
    box = [float(value) for value in values]
    if len(box) != 4:
        raise ValueError(f"{box} is not x, y, width, height")
    return box


def list_sources(inputs: tuple[str, ...], failures: Failures, out: Path | None = None) -> list[str]:
    """Files and cameras in order: a folder's pictures and videos by name; what does not exist goes to ``failures``.

    Of folders, what lies in ``out`` is left out: an earlier run wrote it.

    Example:
        >>> failures = {}
        >>> list_sources(("camera:0", "missing.jpg"), failures), failures
        (['camera:0'], {'missing.jpg': 'no such file'})
    """
    found: list[str] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _is_media(file, out))
            found += [str(file) for file in inside]
            if not inside:
                failures[name] = "a folder without pictures or videos"
        elif name.startswith(CAMERA) or path.is_file():
            found.append(name)
        else:
            failures[name] = "no such file"
    return list(dict.fromkeys(found))


def _is_media(file: Path, out: Path | None) -> bool:
    """Whether a folder's entry is to be looked at; a link that leads nowhere is, so that it is listed as failed."""
    if file.suffix.lower() not in PICTURES | VIDEOS or file.is_dir():
        return False
    return out is None or not file.absolute().is_relative_to(out.absolute())


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
    height, width = image.shape[:2]
    if max(height, width) > LONGEST:
        raise ValueError(f"{width} x {height} pixels: longer than {LONGEST}, scale it down or cut it up")
    table = None if boxes is None else as_boxes(boxes.of(file, number), torch.from_numpy(image)[None])[0]
    return Frame(file, number, image, table, rate)


def _read_picture(path: Path) -> np.ndarray:
    import cv2

    content = np.fromfile(path, np.uint8)
    if not content.size:
        raise ValueError("an empty file")
    try:
        picture = cv2.imdecode(content, cv2.IMREAD_COLOR)
        alpha = _read_alpha(content, picture) if path.suffix.lower() in WITH_ALPHA and picture is not None else None
    except cv2.error as error:
        raise ValueError(f"not a picture that OpenCV can read: {error.err}") from error
    if picture is None:
        raise ValueError("not a picture that OpenCV can read (8 or 16 bits a channel)")
    if alpha is not None:
        picture = np.rint(picture * alpha).astype(np.uint8)  # over black, as the pipeline lays RGBA
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _read_alpha(content: np.ndarray, picture: np.ndarray) -> np.ndarray | None:
    """Opacity, float32 [H, W, 1], turned as the picture was by its EXIF orientation, which OpenCV tells nobody."""
    import cv2

    whole = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    if whole is None or whole.ndim != 3 or whole.shape[2] != 4:
        return None
    alpha = whole[..., 3:].astype(np.float32) / np.iinfo(whole.dtype).max
    unturned = cv2.imdecode(content, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    for quarters in range(4):
        for mirror in (slice(None), slice(None, None, -1)):
            if np.array_equal(np.rot90(unturned[:, mirror], quarters), picture):
                return np.rot90(alpha[:, mirror], quarters)
    return None


def _camera(source: str) -> int:
    number = source[len(CAMERA) :]
    if not number.isdecimal():
        raise ValueError(f"a camera is named {CAMERA}0, {CAMERA}1, ...")
    return int(number)


def _video(source: str) -> Iterator[tuple[np.ndarray, float]]:
    import cv2

    camera = source.startswith(CAMERA)
    try:
        source.encode()
    except UnicodeEncodeError as error:
        raise ValueError("a name that is not UTF-8, by which OpenCV cannot open a video") from error
    if not camera and Path(source).stat().st_size == 0:
        raise ValueError("an empty file")
    capture = cv2.VideoCapture(_camera(source) if camera else source)
    try:
        rate, promised, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT), 0
        read, picture = capture.read()
        if not read:
            raise ValueError(
                "no such camera, or it gives no pictures" if camera else "not a video that OpenCV can read"
            )
        while read:
            count += 1
            yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), rate if 1 <= rate <= 1000 else 25.0
            read, picture = capture.read()
        if not camera and count < FRAMES_PROMISED * promised - 1:
            raise ValueError(f"ends after {count} of {round(promised)} frames; what was found until there is kept")
    finally:
        capture.release()
