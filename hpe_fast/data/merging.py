"""Several pose stores as one, their pictures of one size."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpe_fast.data.geometry import Size, about_centres, map_points, transform_intrinsics
from hpe_fast.data.jpeg import decode_picture, encode_square
from hpe_fast.data.store import DataError, PoseStore, PoseStoreWriter

Row = dict[str, Any]


def merge_stores(
    sources: Sequence[str | os.PathLike],
    destination: str | os.PathLike,
    size: int | None = None,
    quality: int = 92,
    limit: int | None = None,
    **attributes: Any,
) -> Path:
    """Write the rows of several pose stores into one, in their order.

    What is known of occlusion is kept if every source knows it.

    Args:
        sources: pose stores.
        destination: the store to write; it takes its name when it is whole.
        size: side in pixels that square pictures, their joints and intrinsics are scaled to; ``None``: as they are,
            JPEG bytes untouched.
        quality: of JPEGs that are encoded anew, 1 to 100.
        limit: take at most so many rows of each source, the first ones.
        attributes: more attributes of the file, such as ``source="..."``.

    Returns:
        The destination.

    Raises:
        FileNotFoundError: for a source that is not there.
        DataError: for a source that is damaged; it names file and row.
        ValueError: if there is no source, if sources differ in size or in having pictures, or are not square where
            ``size`` is given.

    Example:
        >>> import numpy as np, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with PoseStoreWriter(folder + "/one.h5", (256, 256)) as writer:
        ...     writer.append(None, np.full((17, 2), 127.5), np.ones(17))
        >>> path = merge_stores([folder + "/one.h5"] * 2, folder + "/two.h5", size=128)
        >>> PoseStore(path).pose2d[:, 0].tolist()
        [[63.5, 63.5], [63.5, 63.5]]
    """
    for name, value, most in (("size", size, 1 << 14), ("quality", quality, 100), ("limit", limit, 1 << 62)):
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"{name} must be in 1..{most}, got {value}")
    stores = [PoseStore(source) for source in sources]
    image_size = _common_size(stores, size)
    unknown = {} if all(store.occluded is not None for store in stores) else {"occluded": None}
    with PoseStoreWriter(destination, image_size, **attributes) as writer:
        for store in stores:
            with store:  # one file open at a time, however many there are
                for row in rows_of(store, range(len(store))[:limit]):
                    row = row if store.image_size == image_size else _resized(row, store, image_size, quality)
                    writer.append(**row | unknown)
    return Path(destination)


def rows_of(store: PoseStore, rows: Iterable[int]) -> Iterator[Row]:
    """Rows of a store as arguments of :meth:`PoseStoreWriter.append`."""
    recipes = store.recipe
    for i in rows:
        yield {
            "jpeg": store.read_jpeg(i) if store.has_images else None,
            "pose2d": store.pose2d[i],
            "visible": store.visible[i],
            "pose3d": store.pose3d[i],
            "intrinsics": store.intrinsics[i],
            "subject": store.subject[i],
            "action": store.action[i],
            "camera": store.camera[i],
            "frame": int(store.frame[i]),
            "name": store.name[i],
            "occluded": None if store.occluded is None else store.occluded[i],
            "recipe": "" if recipes is None else recipes[i],
        }


def _common_size(stores: list[PoseStore], size: int | None) -> Size:
    if not stores:
        raise ValueError("want at least one pose store to merge, got none")
    first = stores[0]
    for store in stores:
        (height, width), (wanted_height, wanted_width) = store.image_size, first.image_size
        if store.has_images != first.has_images:
            raise ValueError(f"{first.path} and {store.path}: one has pictures, the other has none")
        if size is None and store.image_size != first.image_size:
            wanted = f"{first.path} {wanted_height} x {wanted_width}"
            raise ValueError(f"{store.path}: pictures of {height} x {width} pixels, {wanted}; give a size for all")
        if size is not None and height != width:
            raise ValueError(f"{store.path}: only square pictures change their size, these are {height} x {width}")
    return first.image_size if size is None else (size, size)


def _resized(row: Row, store: PoseStore, size: Size, quality: int) -> Row:
    matrix = about_centres(np.eye(2)[None], store.image_size, size)
    changed = {
        "pose2d": map_points(matrix, row["pose2d"][None].astype(np.float64))[0],
        "intrinsics": transform_intrinsics(matrix, np.eye(2)[None], row["intrinsics"][None].astype(np.float64))[0],
    }
    if row["jpeg"] is not None:
        picture = decode_picture(row["jpeg"])
        if picture is None:
            raise DataError(f"{store.path}: picture {row['name']} cannot be decoded")
        changed["jpeg"] = encode_square(picture, size[0], quality)
    return row | changed
