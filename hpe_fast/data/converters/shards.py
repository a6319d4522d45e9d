"""Conversion in pieces: finished pieces outlive a crash, and the file is put together from them at the end.

A conversion to ``DST`` keeps its pieces in ``DST.partial/``: ``plan.json`` says of which conversion they are, and
``NNNNN.npz`` holds the JPEGs of rows ``N * SHARD_ROWS`` and up. What is in a piece depends on its rows alone, so a
conversion that was killed and started again writes the same file, bit for bit, as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpe_fast.data.converters.pictures import BadPicture, crop_picture
from hpe_fast.data.converters.table import Table, crop_labels
from hpe_fast.data.schema import DataError
from hpe_fast.data.store import PoseStoreWriter
from hpe_fast.files import atomic_path

SHARD_ROWS = 256
#: Part of the plan: raise it when the same input gives other bytes.
_RECIPE = 1


@dataclass(frozen=True)
class ConvertOptions:
    """What may be chosen about any conversion.

    Raises ValueError for a value out of range.

    Args:
        size: side of the square pictures written, in pixels.
        quality: of the JPEGs written, 1 to 100. A picture that already is a JPEG of the right size is not touched.
        padding: side of the person's square over the longer side of the tight box around the joints.
        limit: at most this many rows of training and of validation, evenly spaced.
        workers: pictures converted at a time; 0 for as many as there are cores.
        skip_bad: leave unreadable pictures out, and list them, in place of stopping.

    Example:
        >>> ConvertOptions(size=128).quality
        90
    """

    size: int = 256
    quality: int = 90
    padding: float = 1.25
    limit: tuple[int, int] | None = None
    workers: int = 0
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 4096:
            raise ValueError(f"size must be 16 to 4096 pixels, got {self.size}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be 1 to 100, got {self.quality}")
        if not 1 <= self.padding <= 4:
            raise ValueError(f"padding must be 1 to 4, got {self.padding}")
        if self.limit is not None and min(self.limit) < 1:
            raise ValueError(f"limit must be positive, got {self.limit}")
        if self.workers < 0:
            raise ValueError(f"workers must not be negative, got {self.workers}")

    @property
    def threads(self) -> int:
        """Number of worker threads. OpenCV works outside Python's lock, so threads use all cores."""
        return self.workers or len(os.sched_getaffinity(0))


def write_table(table: Table, destination: Path, options: ConvertOptions, progress=None) -> list[str]:
    """Crops all pictures of ``table`` and writes the pose store ``destination``.

    Args:
        table: what to write.
        destination: the file; its pieces are in ``destination + ".partial"`` until it is finished.
        options: of the conversion.
        progress: called with a number of rows whenever so many more are done.

    Returns:
        What was wrong with each row left out (``skip_bad``). The pieces stay: :func:`remove_shards` takes them away.

    Raises:
        DataError: for a picture that cannot be read, with its file and row; no file is written.
        OSError: if the disk is full, say. Run again, the finished pieces are used.
    """
    partial = _partial(destination)
    try:
        _prepare(partial, _plan(table, options))
        starts = range(0, len(table), SHARD_ROWS)
        if table.images is not None:
            _make_shards(table, partial, starts, options, progress)
        bad = _assemble(table, partial, starts, destination, options)
    except OSError as error:
        reason = f"writing {destination} stopped: {error.strerror or error}"
        message = f"{reason}; what is done is in {partial}, run again to go on from there"
        raise OSError(error.errno or 0, message) from error
    return bad


def remove_shards(destination: Path) -> None:
    """Removes the pieces of a finished conversion."""
    shutil.rmtree(_partial(destination), ignore_errors=True)


def _partial(destination: Path) -> Path:
    return destination.with_name(destination.name + ".partial")


def _plan(table: Table, options: ConvertOptions) -> str:
    digest = hashlib.sha256()
    for array in (table.pose2d, table.visible, table.pose3d, table.intrinsics, table.frames, table.boxes):
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    for texts in (table.names, table.subjects, table.actions, table.cameras):
        digest.update("\0".join(texts).encode())
    plan = {
        "recipe": _RECIPE,
        "rows": len(table),
        "shard_rows": SHARD_ROWS,
        "labels": digest.hexdigest(),
        "images": table.images is not None and hashlib.sha256("\0".join(map(str, table.images)).encode()).hexdigest(),
        "options": [options.size, options.quality, options.skip_bad],
    }
    return json.dumps(plan, indent=1)


def _prepare(partial: Path, plan: str) -> None:
    """Makes the directory of pieces; pieces of another plan are removed."""
    file = partial / "plan.json"
    if partial.exists() and not (file.exists() and file.read_text() == plan):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        with atomic_path(file) as temporary:
            temporary.write_text(plan)


def _make_shards(table: Table, partial: Path, starts: range, options: ConvertOptions, progress) -> None:
    progress = progress or (lambda rows: None)
    todo = []
    for start in starts:
        if _shard_path(partial, start).exists():
            progress(min(SHARD_ROWS, len(table) - start))
        else:
            todo.append(start)
    pool = ThreadPoolExecutor(options.threads)
    try:
        futures = [pool.submit(_make_shard, table, start, partial, options, progress) for start in todo]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _shard_path(partial: Path, start: int) -> Path:
    return partial / f"{start // SHARD_ROWS:05d}.npz"


def _make_shard(table: Table, start: int, partial: Path, options: ConvertOptions, progress) -> None:
    jpegs, sizes, problems = [], [], []
    for row in range(start, min(start + SHARD_ROWS, len(table))):
        box = None if table.boxes is None else table.boxes[row]
        try:
            crop = crop_picture(table.images[row], box, options.size, options.quality)
        except BadPicture as error:
            if not options.skip_bad:
                raise DataError(f"row {row} ({table.names[row]}): {error}") from error
            jpegs.append(b"")
            sizes.append((0, 0))
            problems.append(str(error))
        else:
            jpegs.append(crop.jpeg)
            sizes.append(crop.frame_size)
        progress(1)
    with atomic_path(_shard_path(partial, start)) as temporary:
        np.savez(
            temporary,
            blob=np.frombuffer(b"".join(jpegs), np.uint8),
            lengths=np.array([len(jpeg) for jpeg in jpegs], np.int64),
            sizes=np.array(sizes, np.int64),
            problems=np.array(problems, dtype=np.str_),
        )


@dataclass(frozen=True)
class _Shard:
    """A piece, read back: rows from ``start``; a JPEG is empty where its picture could not be read."""

    start: int
    jpegs: list[bytes] | list[None]
    frame_sizes: np.ndarray | None
    problems: list[str]


def _read_shards(table: Table, partial: Path, starts: range) -> Iterator[_Shard]:
    for start in starts:
        rows = min(SHARD_ROWS, len(table) - start)
        if table.images is None:
            yield _Shard(start, [None] * rows, None, [])
            continue
        yield _read_shard(_shard_path(partial, start), start)


def _read_shard(file: Path, start: int) -> _Shard:
    try:
        with np.load(file, allow_pickle=False) as shard:
            blob, ends = shard["blob"].tobytes(), np.cumsum(shard["lengths"])
            jpegs = [blob[end - length : end] for end, length in zip(ends, shard["lengths"], strict=True)]
            return _Shard(start, jpegs, shard["sizes"], shard["problems"].tolist())
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        raise DataError(f"{file}: damaged ({error}); remove it and run again") from error


def _assemble(table: Table, partial: Path, starts: range, destination: Path, options: ConvertOptions) -> list[str]:
    bad: list[str] = []
    with PoseStoreWriter(destination, (options.size, options.size)) as writer:
        for shard in _read_shards(table, partial, starts):
            rows = table.take(range(shard.start, shard.start + len(shard.jpegs)))
            boxes = rows.boxes if rows.boxes is not None else _whole_frames(shard.frame_sizes)
            labels = crop_labels(rows, boxes, shard.frame_sizes, options.size)
            for i, jpeg in enumerate(shard.jpegs):
                if jpeg != b"":
                    _append(writer, rows, labels, i, jpeg)
            bad += shard.problems
        if len(bad) == len(table):
            raise DataError(f"{destination}: none of the {len(table)} pictures can be read; the first: {bad[0]}")
    return bad


def _whole_frames(frame_sizes: np.ndarray) -> np.ndarray:
    side = np.maximum(frame_sizes[:, :1], 1)
    return np.concatenate([np.zeros_like(frame_sizes), side], axis=1)


def _append(writer: PoseStoreWriter, rows: Table, labels: dict[str, np.ndarray], i: int, jpeg: bytes | None) -> None:
    writer.append(
        jpeg,
        **{name: array[i] for name, array in labels.items()},
        subject=rows.subjects[i],
        action=rows.actions[i],
        camera=rows.cameras[i],
        frame=int(rows.frames[i]),
        name=rows.names[i],
    )
