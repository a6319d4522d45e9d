"""From a dataset of a known layout to two pose stores."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpe_fast.data.converters import coco, eth, h36m_fetch, mmpose, videopose3d
from hpe_fast.data.converters.shards import ConvertOptions, remove_shards, write_table
from hpe_fast.data.converters.table import Table, evenly_spaced
from hpe_fast.data.schema import DataError
from hpe_fast.files import atomic_path

SPLITS = ("train", "valid")


@dataclass(frozen=True)
class Layout:
    """A way to keep a dataset on a disk.

    Args:
        detect: whether a directory is kept so.
        read: the directory's ``{"train", "valid"}`` tables; takes ``padding`` and the layout's own options.
        annotations: glob patterns of the files with the labels.
    """

    detect: Callable[[Path], bool]
    read: Callable[..., dict[str, Table]]
    annotations: tuple[str, ...]


LAYOUTS: dict[str, Layout] = {
    "eth": Layout(eth.detect, eth.read, ("annot/*",)),
    "h36m-fetch": Layout(h36m_fetch.detect, h36m_fetch.read, ("S*/*/annot.h5", "processed/S*/*/annot.h5")),
    "mmpose": Layout(mmpose.detect, mmpose.read, ("annotation_body3d/cameras.pkl", "annotation_body3d/fps*/*.npz")),
    "videopose3d": Layout(videopose3d.detect, videopose3d.read, ("*.npz", "cameras.*")),
    "coco": Layout(coco.detect, coco.read, ("annotations/person_keypoints_*.json",)),
}


def detect_layout(path: str | os.PathLike) -> str | None:
    """Name of the layout of a directory, or None.

    Example:
        >>> import tempfile
        >>> detect_layout(tempfile.mkdtemp()) is None
        True
    """
    return next((name for name, layout in LAYOUTS.items() if layout.detect(Path(path))), None)


def convert(
    layout: str,
    source: str | os.PathLike,
    destination: str | os.PathLike,
    options: ConvertOptions | None = None,
    *,
    progress: bool = True,
    **own: Any,
) -> dict[str, Path]:
    """Converts a dataset to the pose stores ``train.h5`` and ``valid.h5`` in the directory ``destination``.

    Killed at any moment and run again, it goes on where it was and writes the same bytes.

    Args:
        layout: one of :data:`LAYOUTS`.
        source: the dataset's directory.
        destination: directory of the two files; made if missing.
        options: see :class:`ConvertOptions`.
        progress: show a progress bar.
        own: the layout's own options, see its module's ``read``.

    Returns:
        ``{"train": path, "valid": path}``. Rows left out (``skip_bad``) are listed in ``*.left_out.txt`` beside them.

    Raises:
        ValueError: for an unknown layout or option.
        DataError: for labels or pictures that are not as the layout has them; it names file and row.
        OSError: if something cannot be read or written.

    Example:
        >>> convert("mp4", "videos", "stores")
        Traceback (most recent call last):
        ValueError: layout must be one of ['coco', ...], got 'mp4'
    """
    from tqdm import tqdm

    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {sorted(LAYOUTS)}, got {layout!r}")
    options = options or ConvertOptions()
    tables = _read(layout, Path(source), options, own)
    files = {split: Path(destination) / f"{split}.h5" for split in SPLITS}
    with tqdm(total=sum(map(len, tables.values())), unit="row", desc=layout, disable=not progress) as bar:
        for split, file in files.items():
            left_out = write_table(tables[split], file, options, bar.update)
            _list_left_out(file.with_suffix(".left_out.txt"), left_out)
    for file in files.values():
        remove_shards(file)
    return files


def _read(layout: str, source: Path, options: ConvertOptions, own: dict[str, Any]) -> dict[str, Table]:
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such directory")
    if not LAYOUTS[layout].detect(source):
        raise DataError(f"{source}: not a dataset of layout {layout} (its label files are not there)")
    tables = LAYOUTS[layout].read(source, padding=options.padding, **own)
    for split in SPLITS:
        if not len(tables[split]):
            raise DataError(f"{source}: no rows for {split}")
    if options.limit is None:
        return tables
    return {
        split: table.take(evenly_spaced(len(table), limit))
        for (split, table), limit in zip(tables.items(), options.limit, strict=True)
    }


def _list_left_out(path: Path, left_out: list[str]) -> None:
    if not left_out:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in left_out))
