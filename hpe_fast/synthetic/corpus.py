"""Renders a corpus into a pose store, in parts by several processes, so that it can be interrupted at any moment.

Parts are pose stores themselves, in ``OUT.parts`` beside the file: they are whole or not there. A picture depends on
the settings and its number only, so it does not matter who draws which part, and in how many sittings.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from hpe_fast.data.merging import merge_stores
from hpe_fast.data.store import DataError, PoseStore, PoseStoreWriter
from hpe_fast.files import atomic_path
from hpe_fast.synthetic.extra import require
from hpe_fast.synthetic.splits import SPLITS
from hpe_fast.synthetic.studio import Row, Settings, Studio

#: Grows when the same settings give other pictures.
RECIPE_VERSION = 2
_PART_ROWS = 48
_SIZES = (32, 1024)


@dataclass(frozen=True)
class Corpus:
    """``count`` pictures of ``settings`` in the file ``out``.

    Example:
        >>> corpus = Corpus(Path("people.h5"), 3, Settings(0, "train", None, None, 128, 10, "cpu"))
        >>> [len(rows) for rows in corpus.ranges()]
        [3]
    """

    out: Path
    count: int
    settings: Settings

    @property
    def parts(self) -> Path:
        """Directory of what is rendered already."""
        return self.out.with_name(f"{self.out.name}.parts")

    def ranges(self) -> list[range]:
        """Numbers of the pictures of each part."""
        return [range(first, min(first + _PART_ROWS, self.count)) for first in range(0, self.count, _PART_ROWS)]

    def part(self, rows: range) -> Path:
        """File of a part."""
        return self.parts / f"{rows[0]:08d}.h5"

    def description(self) -> str:
        """What decides how the pictures look, as JSON."""
        settings = self.settings
        known = {"version": RECIPE_VERSION, "seed": settings.seed, "split": settings.split, "size": settings.size}
        known |= {"people": settings.people, "count": self.count, "device": settings.device.split(":")[0]}
        return json.dumps(known | {"assets": _inventory(settings.assets), "mocap": _inventory(settings.mocap)})


def render_corpus(corpus: Corpus, workers: int = 1, progress: Callable[[int, int], None] | None = None) -> Path:
    """Render what is missing and write the file.

    Args:
        corpus: what to render.
        workers: processes.
        progress: called with the pictures that are done and the count, first with what was there already.

    Returns:
        The pose store's path. If it is there already, made with the same settings, nothing is done.

    Raises:
        ValueError: for settings without sense, missing packages, files that cannot be used, or if ``out`` or its parts
            were made with other settings.
        OSError: if the disk is full or not writable.

    Example:
        >>> render_corpus(Corpus(Path("people.h5"), 3, Settings(0, "train", None, None, 128, 10, "cpu")), workers=0)
        Traceback (most recent call last):
        ValueError: ...
    """
    _check(corpus, workers)
    require()
    if corpus.out.exists():
        _check_same(corpus, corpus.out)
        return corpus.out
    _begin(corpus)
    missing = [rows for rows in corpus.ranges() if not _is_whole(corpus.part(rows), len(rows))]
    done = corpus.count - sum(map(len, missing))
    progress = progress or (lambda *_: None)
    progress(done, corpus.count)
    for rows in _rendered(corpus, missing, workers):
        done += len(rows)
        progress(done, corpus.count)
    _merge(corpus)
    shutil.rmtree(corpus.parts)
    return corpus.out


def _check(corpus: Corpus, workers: int) -> None:
    settings = corpus.settings
    for name, value, least in (("count", corpus.count, 1), ("workers", workers, 1), ("people", settings.people, 1)):
        if value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    if settings.seed < 0:
        raise ValueError(f"--seed must not be negative, got {settings.seed}")
    if settings.split not in SPLITS:
        raise ValueError(f"--split must be one of {', '.join(SPLITS)}, got {settings.split!r}")
    if not _SIZES[0] <= settings.size <= _SIZES[1]:
        raise ValueError(f"--size must be {_SIZES[0]} to {_SIZES[1]} pixels, got {settings.size}")
    for name, folder in (("assets", settings.assets), ("mocap", settings.mocap)):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"--{name} {folder}: no such directory")
        if folder is not None and corpus.out.absolute().is_relative_to(folder.absolute()):
            raise ValueError(f"--out {corpus.out}: is inside --{name} {folder}, whose contents decide what is rendered")
    if corpus.out.is_dir():
        raise ValueError(f"--out {corpus.out}: is a directory, want a file to write")


def _check_same(corpus: Corpus, store: Path) -> None:
    made = PoseStore(store).attributes.get("synthesis")
    if made != corpus.description():
        raise ValueError(f"--out {store}: is there already, made with other settings; remove it or choose another name")


def _inventory(folder: Path | None) -> str:
    """A checksum of a folder's files: their names and what is in them."""
    import hashlib

    if folder is None:
        return ""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        found.update(f"{path.relative_to(folder)} {content}\n".encode())
    return found.hexdigest()[:16]


def _begin(corpus: Corpus) -> None:
    """The directory for the parts, with a note of what they are parts of."""
    note = corpus.parts / "settings.json"
    if note.exists() and any(corpus.parts.glob("*.h5")):  # a start that failed binds nobody
        if note.read_text() != corpus.description():
            raise ValueError(
                f"{corpus.parts}: holds parts of a corpus with other settings; remove it or choose another --out"
            )
        return
    with atomic_path(note) as temporary:
        temporary.write_text(corpus.description())


def _is_whole(part: Path, rows: int) -> bool:
    try:
        with PoseStore(part) as store:
            for row in range(len(store)):
                store.read_jpeg(row)  # compares its checksum
            return len(store) == rows
    except (DataError, FileNotFoundError):
        return False


def _rendered(corpus: Corpus, missing: list[range], workers: int) -> Iterator[range]:
    if workers == 1:
        for rows in missing:
            yield _render_part(corpus, rows)
        return
    # Not forked: torch and warp have threads. Few parts wait in the queue, so that an interrupt ends soon.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        todo, running = iter(missing), set()
        try:
            while True:
                new = islice(todo, 2 * workers - len(running))
                running |= {pool.submit(_render_part, corpus, rows) for rows in new}
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        except BrokenProcessPool as error:
            raise OSError(
                f"{corpus.out}: a worker was killed (too little memory?); run the same command again to go on from "
                f"here, perhaps with fewer than {workers} --workers"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """A worker whose parent was killed ends too, at once."""

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@lru_cache(1)
def _studio(settings: Settings) -> Studio:
    return Studio(settings)


def _render_part(corpus: Corpus, rows: range) -> range:
    size = corpus.settings.size
    with _one_thread(), PoseStoreWriter(corpus.part(rows), (size, size)) as writer:
        studio = _studio(corpus.settings)
        for number in rows:
            try:
                row = studio.picture(number)
            except ValueError as error:  # our mistake, not the user's: a traceback, and which picture shows it
                raise RuntimeError(f"picture {number} of {corpus.settings}: {error}") from error
            _append(writer, row)
    return rows


def remake(recipe: Mapping[str, Any], assets: Path | None, mocap: Path | None, device: str = "cpu") -> Row:
    """Draw a corpus's picture again.

    Args:
        recipe: of the picture, as the store's ``recipe`` has it (JSON, decoded).
        assets, mocap: the folders that the corpus was rendered with.
        device: ``cpu`` or ``cuda``.

    Returns:
        The picture's JPEG bytes and labels.

    Raises:
        ValueError: a recipe without what it takes, or one that these folders, or this version, make otherwise.

    Example:
        >>> remake({"seed": 1}, None, None)
        Traceback (most recent call last):
        ValueError: the recipe lacks index, people, size, split
    """
    absent = sorted({"seed", "split", "size", "people", "index"} - set(recipe))
    if absent:
        raise ValueError(f"the recipe lacks {', '.join(absent)}")
    require()
    settings = Settings(recipe["seed"], recipe["split"], assets, mocap, recipe["size"], recipe["people"], device)
    with _one_thread():
        row = _studio(settings).picture(recipe["index"])
    other = sorted(key for key in recipe if json.loads(json.dumps(row.recipe)).get(key) != recipe[key])
    if other:
        raise ValueError(f"other folders or another version made this picture: {', '.join(other)} differ")
    return row


@contextmanager
def _one_thread() -> Iterator[None]:
    """A process draws one picture at a time; the caller's own threads come back afterwards."""
    import cv2
    import torch

    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def _append(writer: PoseStoreWriter, row: Row) -> None:
    writer.append(
        row.jpeg,
        row.pose2d,
        row.visible,
        row.pose3d,
        row.intrinsics,
        subject=row.subject,
        action=row.action,
        camera=row.camera,
        frame=row.frame,
        name=row.name,
        occluded=row.occluded,
        recipe=json.dumps(row.recipe),
    )


def _merge(corpus: Corpus) -> None:
    parts = [corpus.part(rows) for rows in corpus.ranges()]
    merge_stores(parts, corpus.out, source="hpe_fast.synthesize", synthesis=corpus.description())
