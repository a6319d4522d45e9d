"""What was found, as files: JSON, the paper's CSV, COCO keypoints, annotated pictures and videos.

**predictions.json** (schema ``hpe_fast/predictions/1``)::

    {"format": "hpe_fast/predictions/1", "weights": "...", "trained_on": {"detector": "...", "lifter": "..."},
     "joints": [17 names], "units": "...",
     "images": [{"file": "a.jpg", "frame": null or the number in a video, "width": px, "height": px,
                 "annotated": "annotated/a.jpg" or null,
                 "people": [{"box": [x, y, width, height] or null, "keypoints": [[x, y] * 17] px,
                             "scores": [17], "joints3d": [[x, y, z] * 17] mm}]}],
     "failed": [{"file": "...", "reason": "..."}]}

**predictions.csv**: the paper's submission: ``Id`` from 1 and ``Hip_x,Hip_y,Hip_z,...``, 51 numbers in mm with the hip
at the origin, one row a person in the order of the JSON file.

**coco.json**: COCO keypoints, with the joints of ``hpe_fast.skeleton`` as the category's; ``joints3d`` besides.

All are written as the people are found, and appear under their names when they are complete.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from hpe_fast.files import atomic_path
from hpe_fast.plots import draw_skeleton
from hpe_fast.predict.sources import Failures, Frame
from hpe_fast.skeleton import EDGES, JOINTS, NUM_JOINTS

UNITS = (
    "keypoints px, (0, 0) is the centre of the top-left pixel; boxes px from pixel edges; joints3d mm, x right, y down"
)


@dataclass(frozen=True)
class Found:
    """The people in one frame."""

    keypoints: np.ndarray
    """[P, 17, 2] px."""
    scores: np.ndarray
    """[P, 17]."""
    joints3d: np.ndarray
    """[P, 17, 3] mm."""


class Writer(Protocol):
    """Takes what was found, frame by frame."""

    def add(self, frame: Frame, found: Found) -> None: ...


@contextmanager
def open_writers(
    folder: Path,
    formats: Sequence[str],
    about: dict[str, Any],
    failures: Failures,
    drawings: Drawings | None = None,
) -> Iterator[list[Writer]]:
    """Writers of some formats; their files are complete when the block ends, even by Ctrl-C.

    Args:
        about: ``weights`` and ``trained_on``.
        failures: read at the end.
        drawings: which names the annotated files.
    """
    kinds = {
        "json": ("predictions.json", partial(_Json, drawings=drawings)),
        "csv": ("predictions.csv", _Csv),
        "csv.gz": ("predictions.csv.gz", _Csv),
        "coco": ("coco.json", _Coco),
    }
    with ExitStack() as stack:
        writers = []
        for name in dict.fromkeys(formats):
            file, kind = kinds[name]
            path = stack.enter_context(atomic_path(folder / file))
            writers.append(kind(stack.enter_context(_opened(path)), about, failures))
        interrupted = None
        try:
            yield writers
        except KeyboardInterrupt as stop:
            interrupted = stop
        for writer in writers:
            writer.finish()
        stack.close()
        if interrupted is not None:
            raise interrupted


def _opened(path: Path) -> TextIO:
    if path.suffix != ".gz":
        return path.open("w", newline="", encoding="utf-8")
    return gzip.open(path, "wt", newline="", encoding="utf-8")


def _rounded(values: np.ndarray, digits: int) -> list:
    """Nested lists; null for what is not finite, which JSON has no number for."""
    rounded = np.round(values.astype(float), digits)
    return np.where(np.isfinite(rounded), rounded.astype(object), None).tolist()


class _Json:
    def __init__(
        self, file: TextIO, about: dict[str, Any], failures: Failures, drawings: Drawings | None = None
    ) -> None:
        self._file, self._failures, self._drawings, self._separator = file, failures, drawings, "\n"
        head = {"format": "hpe_fast/predictions/1", **about, "joints": JOINTS, "units": UNITS}
        file.write(json.dumps(head)[:-1] + ', "images": [')

    def add(self, frame: Frame, found: Found) -> None:
        boxes = [None] * len(found.keypoints) if frame.boxes is None else frame.boxes.tolist()
        columns = boxes, _rounded(found.keypoints, 3), _rounded(found.scores, 5), _rounded(found.joints3d, 3)
        names = "box", "keypoints", "scores", "joints3d"
        people = [dict(zip(names, person, strict=True)) for person in zip(*columns, strict=True)]
        height, width = frame.image.shape[:2]
        drawn = None
        if self._drawings is not None and frame.file not in self._drawings.refused:
            drawn = f"{self._drawings.folder.name}/{self._drawings.name(frame)}"
        row = {"file": frame.file, "frame": frame.number, "width": width, "height": height, "annotated": drawn}
        row["people"] = people
        self._file.write(self._separator + json.dumps(row))
        self._separator = ",\n"

    def finish(self) -> None:
        failed = [{"file": file, "reason": reason} for file, reason in self._failures.items()]
        self._file.write(f'],\n"failed": {json.dumps(failed)}}}\n')


class _Csv:
    def __init__(self, file: TextIO, about: dict[str, Any], failures: Failures) -> None:
        self._rows, self._count = csv.writer(file, lineterminator="\n"), 0
        self._rows.writerow(["Id", *(f"{joint}_{axis}" for joint in JOINTS for axis in "xyz")])

    def add(self, frame: Frame, found: Found) -> None:
        for pose in found.joints3d.reshape(-1, NUM_JOINTS * 3):
            self._count += 1
            self._rows.writerow([self._count, *(f"{value:.4f}" for value in pose)])

    def finish(self) -> None:
        pass


class _Coco:
    def __init__(self, file: TextIO, about: dict[str, Any], failures: Failures) -> None:
        self._file, self._images, self._count, self._separator = file, [], 0, "\n"
        skeleton = [[parent + 1, child + 1] for parent, child in EDGES]
        category = {"id": 1, "name": "person", "keypoints": JOINTS, "skeleton": skeleton}
        file.write(f'{{"info": {json.dumps(about)}, "categories": [{json.dumps(category)}], "annotations": [')

    def add(self, frame: Frame, found: Found) -> None:
        height, width = frame.image.shape[:2]
        name = frame.file if frame.number is None else f"{frame.file}#{frame.number}"
        self._images.append({"id": len(self._images) + 1, "file_name": name, "width": width, "height": height})
        for i, (joints, scores) in enumerate(zip(found.keypoints, found.scores, strict=True)):
            self._count += 1
            box = frame.boxes[i].tolist() if frame.boxes is not None else _extent(joints)
            triples = np.column_stack([joints, np.where(scores > 0, 2, 0)])
            person = {"id": self._count, "image_id": len(self._images), "category_id": 1, "iscrowd": 0}
            person |= {"bbox": box, "area": box[2] * box[3], "score": round(float(scores.mean()), 5)}
            person |= {"keypoints": _rounded(triples.reshape(-1), 3), "num_keypoints": int((scores > 0).sum())}
            person |= {"joints3d": _rounded(found.joints3d[i], 3)}
            self._file.write(self._separator + json.dumps(person))
            self._separator = ",\n"

    def finish(self) -> None:
        self._file.write(f'],\n"images": {json.dumps(self._images)}}}\n')


def _extent(joints: np.ndarray) -> list[float]:
    low, high = joints.min(0), joints.max(0)
    return _rounded(np.concatenate([low - 0.5, high - low + 1]), 3)


class Drawings:
    """Annotated pictures and videos in a folder; of a video, one frame after the other.

    A context manager: the video that is open is completed at the end (also by Ctrl-C, but not by an error).

    Args:
        folder: made when the first file is written.
        failures: where a video is noted that OpenCV cannot write, for its size, say.
    """

    def __init__(self, folder: Path, failures: Failures | None = None) -> None:
        self.folder, self._failures = folder, {} if failures is None else failures
        #: Videos that could not be written.
        self.refused: set[str] = set()
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()
        self._alike: Counter[str] = Counter()
        self._video: ExitStack | None = None
        self._open_file, self._stream = None, None

    def __enter__(self) -> Drawings:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self._close_video()
        elif self._video is not None:
            self._video.__exit__(kind, *details)  # a video that an error cut short leaves nothing behind

    def add(self, frame: Frame, found: Found) -> None:
        """Draw and write one frame.

        Raises:
            OSError: the file cannot be written.
        """
        if frame.number is None:
            self._close_video()
            draw_skeleton(frame.image, found.keypoints, found.scores, path=self.folder / self.name(frame))
            return
        import cv2

        if self._open_file != frame.file:
            self._start_video(frame)
        if self._stream is None:
            return
        drawn = draw_skeleton(frame.image, found.keypoints, found.scores)
        self._stream.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))

    def name(self, frame: Frame) -> str:
        """What a frame's file is called in the folder: its stem, with a number where two files share it."""
        if frame.file not in self._names:
            suffix = ".jpg" if frame.number is None else ".mp4"
            stem = Path(frame.file.replace(":", "-")).stem
            name = f"{stem}{suffix}"
            while name.lower() in self._taken:  # from the number that was free last
                self._alike[stem.lower()] += 1
                name = f"{stem}-{self._alike[stem.lower()] + 1}{suffix}"
            self._taken.add(name.lower())
            self._names[frame.file] = name
        return self._names[frame.file]

    def _start_video(self, frame: Frame) -> None:
        self._close_video()
        self._open_file = frame.file
        try:
            with ExitStack() as stack:
                path = stack.enter_context(atomic_path(self.folder / self.name(frame)))
                self._stream = _video_stream(path, frame)
                stack.callback(self._stream.release)
                self._video = stack.pop_all()
        except ValueError as error:
            self._stream, self._failures[frame.file] = None, str(error)
            self.refused.add(frame.file)

    def _close_video(self) -> None:
        video, self._video, self._open_file = self._video, None, None
        if video is not None:
            video.close()


def _video_stream(path: Path, frame: Frame) -> Any:
    import cv2

    height, width = frame.image.shape[:2]
    stream = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), frame.rate, (width, height))
    if not stream.isOpened():
        raise ValueError(f"OpenCV cannot write a video of {width} x {height} pixels")
    return stream
