"""The seal of a pose store: its first 512 bytes, with a checksum of everything in the file but the pictures.

HDF5 has no checksum of its own here, and given damaged metadata the library may hang, fail in many ways, or read other
numbers without a word. So it gets to see a file only when the seal fits. The pictures are left out because each has a
checksum of its own (``/crc32``), which is compared when it is read.

HDF5 leaves these bytes to the application (the "user block"), so that other tools open a pose store as any HDF5 file.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from hpe_fast.data.schema import DataError

SEAL_BYTES = 512
_MAGIC = b"hpe_fast"
# Magic, size of the file, start and size of the pictures in it, crc32 of the rest; then crc32 of these.
_FIELDS, _OWN_CRC = struct.Struct("<8sQQQI"), struct.Struct("<I")
_PART_BYTES = 8 << 20


def seal(path: str | os.PathLike) -> None:
    """Make the seal fit a pose store's content, for tools that change labels in place.

    Raises:
        OSError: if the file cannot be read as HDF5, or not be written.
        ValueError: if there is no room for the seal (``h5py.File(..., userblock_size=512)`` makes it), or no ``/jpeg``.

    Example:
        >>> import h5py
        >>> from hpe_fast.data.sample import bundled_sample
        >>> from hpe_fast.data.store import PoseStore
        >>> import shutil, tempfile
        >>> path = shutil.copy(bundled_sample()["valid"], tempfile.mkdtemp())
        >>> with h5py.File(path, "r+") as file:
        ...     file["visible"][0] = 0
        >>> seal(path)
        >>> int(PoseStore(path).visible[0].sum())
        0
    """
    import h5py

    with h5py.File(path, "r") as file:
        if file.userblock_size < SEAL_BYTES or "jpeg" not in file:
            raise ValueError(f"{path}: no room for a seal of {SEAL_BYTES} bytes, or no dataset /jpeg")
        start, size = file["jpeg"].id.get_offset() or 0, file["jpeg"].size
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        fields = _FIELDS.pack(_MAGIC, end, start, size, _crc(file, start, size, end))
        file.seek(0)
        file.write(fields + _OWN_CRC.pack(zlib.crc32(fields)))


def check_seal(path: Path) -> None:
    """Compare a file with its seal.

    Raises:
        DataError: if it is no pose store, or was changed or cut since it was sealed.
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(_FIELDS.size + _OWN_CRC.size)
        if head[: len(_MAGIC)] != _MAGIC:
            raise DataError(f"{path}: no pose store (it begins with {head[:8]!r}, want {_MAGIC!r})")
        if len(head) < _FIELDS.size + _OWN_CRC.size or _OWN_CRC.pack(zlib.crc32(head[:-4])) != head[-4:]:
            raise DataError(f"{path}: the seal at its start is damaged")
        _, want_end, start, size, want_crc = _FIELDS.unpack(head[:-4])
        end = file.seek(0, os.SEEK_END)
        if end != want_end:
            state = "truncated" if end < want_end else "longer than written"
            raise DataError(f"{path}: {state}: {end} of {want_end} bytes")
        if _crc(file, start, size, end) != want_crc:
            raise DataError(f"{path}: checksum of the labels differs: damaged, or changed without seal()")


def _crc(file: BinaryIO, start: int, size: int, end: int) -> int:
    """Of the bytes between the seal and ``end``, without ``size`` bytes from ``start``."""
    crc = 0
    for first, last in ((SEAL_BYTES, start), (max(start + size, SEAL_BYTES), end)):
        file.seek(first)
        for position in range(first, last, _PART_BYTES):
            crc = zlib.crc32(file.read(min(_PART_BYTES, last - position)), crc)
    return crc
