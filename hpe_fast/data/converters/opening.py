"""Whatever ``--data`` names, as a pair of pose stores."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from hpe_fast.data.converters.conversion import LAYOUTS, SPLITS, convert, detect_layout
from hpe_fast.data.converters.shards import ConvertOptions
from hpe_fast.data.converters.table import held_out_subjects
from hpe_fast.data.merging import rows_of
from hpe_fast.data.schema import DataError
from hpe_fast.data.store import PoseStore, PoseStoreWriter
from hpe_fast.files import atomic_path

logger = logging.getLogger(__name__)
_RECORD = "conversion.json"
_SUFFIX = ".hpe_fast"


def open_dataset(
    path: str | os.PathLike,
    cache: str | os.PathLike | None = None,
    options: ConvertOptions | None = None,
) -> tuple[Path, Path]:
    """The training and the validation pose store of a dataset, converted on the way where it needs to be.

    * A directory with ``train.h5`` and ``valid.h5``, or either of these two files: the pair as it is.
    * Another pose store: split by subject into two (:func:`~hpe_fast.data.converters.table.held_out_subjects`).
    * A directory of a known layout: converted with ``options``.

    What has to be written goes to ``PATH.hpe_fast/`` beside the dataset, or to ``cache`` where nothing can be written
    there. It is used again as long as the dataset's label files (their names, sizes and times) and the options are the
    same; a conversion that was cut off goes on. Processes that ask at the same time wait for the first.

    Args:
        path: a pose store or a directory.
        cache: directory for converted files where the dataset's own directory cannot be written.
        options: of the conversion.

    Returns:
        Paths of the training and the validation store.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        DataError: if it is no dataset that is known, or a damaged one.
        OSError: if something cannot be read or written.

    Example:
        >>> from hpe_fast.data.sample import bundled_sample
        >>> train, valid = open_dataset(bundled_sample()["train"].parent)
        >>> train.name, valid.name
        ('train.h5', 'valid.h5')
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or directory")
    pair = _pair(path)
    if pair is not None:
        return pair
    if path.is_file():
        PoseStore(path).close()  # before anything is made beside it
    options = options or ConvertOptions()
    layout = None if path.is_file() else detect_layout(path)
    if path.is_dir() and layout is None:
        raise DataError(
            f"{path}: not a known dataset; wanted are train.h5 and valid.h5, or a layout of {sorted(LAYOUTS)} "
            "(python -m hpe_fast.convert --help)"
        )
    record = _record(path, layout, options)
    for folder in _folders(path, cache):
        if _is_complete(folder, record):
            return folder / "train.h5", folder / "valid.h5"
    return _write(path, layout, options, record, _writable_folder(path, cache))


def _pair(path: Path) -> tuple[Path, Path] | None:
    """The two stores where they are there already, checked to be readable."""
    folder = path if path.is_dir() else path.parent
    files = (folder / "train.h5", folder / "valid.h5")
    if not all(file.is_file() for file in files) or (path.is_file() and path not in files):
        return None
    for file in files:
        PoseStore(file).close()
    return files


def _folders(path: Path, cache: str | os.PathLike | None) -> list[Path]:
    beside = Path(os.path.abspath(path) + _SUFFIX)
    return [beside] if cache is None else [beside, Path(cache)]


def _writable_folder(path: Path, cache: str | os.PathLike | None) -> Path:
    beside = _folders(path, cache)[0]
    if os.access(beside if beside.exists() else beside.parent, os.W_OK):
        return beside
    if cache is None:
        raise PermissionError(
            f"{beside}: cannot be written; convert to another place: python -m hpe_fast.convert --help"
        )
    return Path(cache)


def _record(path: Path, layout: str | None, options: ConvertOptions) -> str:
    """What a conversion depends on, as text."""
    patterns = LAYOUTS[layout].annotations if layout else ()
    files = sorted(file for pattern in patterns for file in path.glob(pattern)) if layout else [path]
    states = [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    chosen = {key: value for key, value in asdict(options).items() if key != "workers"}
    record = {
        "layout": layout or "pose store split by subject",
        "source": str(path.resolve()),
        "labels": hashlib.sha256(json.dumps(states).encode()).hexdigest(),
        "options": chosen,
    }
    return json.dumps(record, indent=1)


def _is_complete(folder: Path, record: str) -> bool:
    file = folder / _RECORD
    return file.is_file() and file.read_text() == record and all((folder / f"{split}.h5").is_file() for split in SPLITS)


def _write(path: Path, layout: str | None, options: ConvertOptions, record: str, folder: Path) -> tuple[Path, Path]:
    with _locked(folder):
        if not _is_complete(folder, record):
            (folder / _RECORD).unlink(missing_ok=True)
            logger.info("converting %s (%s) into %s", path, layout or "one pose store", folder)
            if layout is None:
                _split_store(path, folder)
            else:
                convert(layout, path, folder, options)
            with atomic_path(folder / _RECORD) as temporary:
                temporary.write_text(record)
    return folder / "train.h5", folder / "valid.h5"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _split_store(path: Path, folder: Path) -> None:
    with PoseStore(path) as store:
        try:
            held_out = held_out_subjects(store.subject)
        except DataError as error:
            raise DataError(
                f"{path}: {error}; or put train.h5 and valid.h5 into one directory and name that"
            ) from error
        is_valid = np.array([subject in held_out for subject in store.subject])
        for split, rows in zip(SPLITS, (np.flatnonzero(~is_valid), np.flatnonzero(is_valid)), strict=True):
            _copy_rows(store, rows, folder / f"{split}.h5")


def _copy_rows(store: PoseStore, rows: np.ndarray, file: Path) -> None:
    with PoseStoreWriter(file, store.image_size) as writer:
        for row in rows_of(store, rows.tolist()):
            writer.append(**row)
