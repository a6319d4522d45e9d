"""The rows of a split as a source gives them, and the labels that a crop of their pictures has."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpe_fast.data.schema import DataError, row_in_words
from hpe_fast.skeleton import JOINTS, NUM_JOINTS, ROOT

if TYPE_CHECKING:
    import h5py

#: The standard protocol of Human3.6M trains on S1, S5, S6, S7 and S8 and tests on these two.
TEST_SUBJECTS = ("S9", "S11")
#: Thigh of a grown person in millimetres, generously.
_THIGH_RANGE = (200.0, 800.0)
_LARGEST_SIDE = 20_000
_NAME = re.compile(r"(S\d+)_(.+)\.([^._]+)_(\d+)\.\w+")


@dataclass
class Table:
    """Rows of one split before any picture is cropped.

    Args:
        pose2d: ``[N, 17, 2]`` pixels of the source picture, index coordinates.
        visible: ``[N, 17]`` bool, where the source knows the joint's place.
        pose3d: ``[N, 17, 3]`` mm, camera frame; NaN where unknown.
        intrinsics: ``[N, 4]`` fx, fy, cx, cy of the source picture; NaN where unknown.
        boxes: ``[N, 3]`` int64 left, top, side of the square crop in source pixels, or None where the picture is the
            crop.
        images: the pictures' files, or None for poses alone.
        subjects, actions, cameras, frames, names: what each row shows.
    """

    pose2d: np.ndarray
    visible: np.ndarray
    pose3d: np.ndarray
    intrinsics: np.ndarray
    boxes: np.ndarray | None
    images: list[Path] | None
    subjects: list[str]
    actions: list[str]
    cameras: list[str]
    frames: np.ndarray
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Sequence[int]) -> Table:
        """The given rows, in the given order."""
        index = np.asarray(rows, dtype=np.int64)

        def pick(value):
            if value is None:
                return None
            return value[index] if isinstance(value, np.ndarray) else [value[i] for i in index]

        return replace(self, **{f.name: pick(getattr(self, f.name)) for f in fields(self)})


def concatenate(tables: Sequence[Table]) -> Table:
    """One table from several of the same kind (all with pictures or none)."""

    def join(values):
        if values[0] is None:
            return None
        return np.concatenate(values) if isinstance(values[0], np.ndarray) else [v for part in values for v in part]

    return Table(**{f.name: join([getattr(t, f.name) for t in tables]) for f in fields(Table)})


def natural(name: str) -> tuple:
    """Sort key that puts S9 before S11."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part)


def held_out_subjects(subjects: Sequence[str]) -> set[str]:
    """Which subjects are for validation: S9 and S11, or the last tenth (at least one) where neither is there.

    Raises:
        DataError: if one subject is all there is.

    Example:
        >>> sorted(held_out_subjects(["S1", "S5", "S9", "S11"]))
        ['S11', 'S9']
        >>> held_out_subjects(["S1", "S5", "S6", "S7", "S8"])
        {'S8'}
    """
    names = sorted(set(subjects), key=natural)
    tested = {name for name in names if name in TEST_SUBJECTS}
    if tested and len(tested) < len(names):
        return tested
    if len(names) < 2:
        raise DataError(f"validation needs subjects of its own, and there is only {names}: give data of two or more")
    return set(names[-max(1, round(len(names) / 10)) :])


def split_by_subject(table: Table) -> dict[str, Table]:
    """``{"train", "valid"}`` tables with no subject in both."""
    held_out = held_out_subjects(table.subjects)
    rows = {"train": [], "valid": []}
    for row, subject in enumerate(table.subjects):
        rows["valid" if subject in held_out else "train"].append(row)
    return {split: table.take(index) for split, index in rows.items()}


def evenly_spaced(rows: int, count: int) -> list[int]:
    """``count`` of so many rows at equal distances, so that actions stay as frequent as they are.

    Example:
        >>> evenly_spaced(10, 4)
        [1, 3, 6, 8]
    """
    count = min(count, rows)
    return [(2 * i + 1) * rows // (2 * count) for i in range(count)]


def choose_evenly(subjects: Sequence[str], actions: Sequence[str], count: int) -> list[int]:
    """``count`` rows, as many of each subject and action as can be, spread over each recording; always the same.

    Subjects take turns; each gives a row of the action it has given least of so far.

    Example:
        >>> choose_evenly(["S1"] * 4 + ["S2"] * 4, ["Walk", "Walk", "Sit", "Sit"] * 2, 4)
        [0, 2, 4, 6]
    """
    if count >= len(subjects):
        return list(range(len(subjects)))
    recordings = defaultdict(lambda: defaultdict(list))
    for row, (subject, action) in enumerate(zip(subjects, actions, strict=True)):
        recordings[subject][action].append(row)
    queues = {s: {a: _spread(rows) for a, rows in by_action.items()} for s, by_action in recordings.items()}
    given = defaultdict(Counter)
    chosen: list[int] = []
    while len(chosen) < count:
        for subject in sorted(queues, key=natural)[: count - len(chosen)]:
            action = min(queues[subject], key=lambda a, s=subject: (given[s][a], a))
            given[subject][action] += 1
            chosen.append(queues[subject][action].pop())
            if not queues[subject][action]:
                del queues[subject][action]
        queues = {s: by_action for s, by_action in queues.items() if by_action}
    return sorted(chosen)


def _spread(rows: list[int]) -> list[int]:
    """The rows in an order whose last ones, at any number, lie evenly apart (bit-reversed positions)."""
    bits = max(1, (len(rows) - 1).bit_length())
    order = sorted(range(len(rows)), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2), reverse=True)
    return [rows[i] for i in order]


def square_boxes(
    pose2d: np.ndarray, known: np.ndarray, padding: float, names: Sequence[str], where: Path | str
) -> np.ndarray:
    """Squares about the persons: the tight box of the known joints, its longer side times ``padding``.

    Args:
        pose2d: ``[N, 17, 2]`` px, index coordinates.
        known: ``[N, 17]`` bool.
        padding: side of the square over the longer side of the tight box.
        names, where: the rows' pictures and the file of their labels, for messages.

    Returns:
        ``[N, 3]`` int64: left, top, side.
    """
    hidden = ~known[..., None]
    low = np.where(hidden, np.inf, pose2d).min(axis=1)
    high = np.where(hidden, -np.inf, pose2d).max(axis=1)
    return whole_boxes((low + high) / 2, (high - low).max(axis=1) * padding, names, where)


def whole_boxes(centres: np.ndarray, sides: np.ndarray, names: Sequence[str], where: Path | str) -> np.ndarray:
    """Squares of whole pixels from centres (``[N, 2]``, index coordinates) and sides (``[N]`` px).

    Whole pixels let the crop be a slice, and the labels follow it without a rounding of their own.

    Raises:
        DataError: for a square that is not finite, or larger than any picture; it names ``where``, row and picture.
    """
    good = np.isfinite(centres).all(axis=1) & np.isfinite(sides) & (sides < _LARGEST_SIDE)
    good &= np.abs(centres).max(axis=1, initial=0) < _LARGEST_SIDE
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        box = f"centre {centres[row]} and side {sides[row]} px"
        raise DataError(f"{row_in_words(where, row, names[row])}: the person's box has {box}")
    side = np.maximum(np.ceil(sides), 8)
    corner = np.round(centres + 0.5 - side[:, None] / 2)
    return np.column_stack([corner, side]).astype(np.int64)


def crop_labels(table: Table, boxes: np.ndarray, frame_sizes: np.ndarray | None, size: int) -> dict[str, np.ndarray]:
    """The labels of ``size`` x ``size`` pictures cut by ``boxes``.

    A pixel's centre ``x`` lands at ``(x - left + 0.5) * size / side - 0.5``: resizing keeps corners, not centres.
    ``frame_sizes`` is ``[N, 2]`` (height, width) of the source pictures; a joint outside its picture is not visible.
    """
    scale = size / boxes[:, 2]
    corner = boxes[:, :2] - 0.5
    pose2d = (table.pose2d - corner[:, None]) * scale[:, None, None] - 0.5
    focal = table.intrinsics[:, :2] * scale[:, None]
    centre = (table.intrinsics[:, 2:] - corner) * scale[:, None] - 0.5
    visible = table.visible & np.isfinite(pose2d).all(axis=-1) & _inside(pose2d, np.array([size, size]))
    if frame_sizes is not None:
        visible &= _inside(table.pose2d, frame_sizes[:, None, ::-1])
    return {
        "pose2d": np.where(np.isfinite(pose2d), pose2d, 0).astype(np.float32),
        "visible": visible.astype(np.uint8),
        "pose3d": table.pose3d.astype(np.float32),
        "intrinsics": np.concatenate([focal, centre], axis=1).astype(np.float32),
    }


def _inside(points: np.ndarray, width_height: np.ndarray) -> np.ndarray:
    return ((points >= -0.5) & (points <= width_height - 0.5)).all(axis=-1)


def parse_name(name: str, row: int, where: Path | str) -> tuple[str, str, str, int]:
    """Subject, action, camera and frame of a picture that is named as the paper's and mmpose's are.

    Raises:
        DataError: for another kind of name.

    Example:
        >>> parse_name("S1/S1_Walking_1.54138969_000026.jpg", 0, "labels.npz")
        ('S1', 'Walking_1', '54138969', 26)
    """
    match = _NAME.fullmatch(Path(name).name)
    if match is None:
        raise DataError(f"{where}: row {row}: {name!r} is not like S1_Directions_1.54138969_000001.jpg")
    subject, action, camera, frame = match.groups()
    return subject, action, camera, int(frame)


def action_of(recording: str) -> str:
    """The action that a recording shows: Human3.6M has two of each, numbered, and errors are means over actions.

    Example:
        >>> [action_of(name) for name in ("Walking_1", "Walking 1", "Walking-2", "Walking")]
        ['Walking', 'Walking', 'Walking', 'Walking']
    """
    return re.sub(r"[-_ ]\d+$", "", recording)


@contextmanager
def open_annotation(path: Path) -> Iterator[h5py.File]:
    """A source's HDF5 file, to be read.

    Raises:
        DataError: if HDF5 cannot read it, or not what is in it; it names the file.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path}: damaged, or not HDF5 as it should be ({error})") from error


def need_joints(array: np.ndarray, joints: int, dims: int, where: str) -> np.ndarray:
    """``array`` as float64, if it is ``[N, joints, dims]``.

    Raises:
        DataError: otherwise, naming ``where``.
    """
    if array.ndim != 3 or array.shape[1:] != (joints, dims):
        raise DataError(f"{where} must be [N, {joints}, {dims}], got {list(array.shape)}")
    return array.astype(np.float64)


def need_equal_rows(lengths: dict[str, int], where: Path | str) -> None:
    """Raises DataError unless all the lengths are the same."""
    if len(set(lengths.values())) > 1:
        raise DataError(f"{where}: different numbers of rows: {lengths}")


def thigh_length(pose3d: np.ndarray) -> float:
    """Median distance between hip and knee, in whatever unit the poses have; NaN without any."""
    ends = pose3d[:, [JOINTS.index("RKnee"), JOINTS.index("LKnee")]] - pose3d[:, [1, 4]]
    lengths = np.linalg.norm(ends, axis=-1)
    lengths = lengths[np.isfinite(lengths)]
    return float(np.median(lengths)) if len(lengths) else float("nan")


def unit_problem(pose3d: np.ndarray) -> str | None:
    """What is wrong with poses that should be millimetres in a camera's frame, or None."""
    thigh = thigh_length(pose3d)
    if np.isnan(thigh):
        return None
    if 1000 * thigh > _THIGH_RANGE[0] and 1000 * thigh < _THIGH_RANGE[1]:
        return f"the median thigh is {thigh:.3f} long: these look like metres, millimetres are wanted"
    if not _THIGH_RANGE[0] < thigh < _THIGH_RANGE[1]:
        return f"the median thigh is {thigh:.4g} long: wrong unit, or wrong joint order"
    depth = pose3d[:, ROOT, 2]
    if np.mean(depth[np.isfinite(depth)] > 0) < 0.99:
        return "hips lie behind the camera: root-relative or world coordinates, camera frame is wanted"
    return None


def need_millimetres(pose3d: np.ndarray, where: Path | str) -> None:
    """Raises DataError where the poses are not in millimetres in front of a camera."""
    problem = unit_problem(pose3d)
    if problem:
        raise DataError(f"{where}: {problem}")


def unknown(rows: int, *shape: int) -> np.ndarray:
    """NaN ``[rows, *shape]``."""
    return np.full((rows, *shape), np.nan)


def all_joints(rows: int) -> np.ndarray:
    """True ``[rows, 17]``."""
    return np.ones((rows, NUM_JOINTS), dtype=bool)
