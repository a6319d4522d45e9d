"""Writing a pose store; see :mod:`hpe_fast.data.store` for what is in one."""

from __future__ import annotations

import errno
import os
import tempfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpe_fast.data.jpeg import jpeg_problem
from hpe_fast.data.schema import COORDINATES, FORMAT, LABELS, OPTIONAL_LABELS, TABLES, UNITS, VERSION, row_in_words
from hpe_fast.data.seal import SEAL_BYTES, seal
from hpe_fast.files import atomic_path
from hpe_fast.skeleton import JOINTS

if TYPE_CHECKING:
    import h5py

_ROW = np.dtype([(name, dtype, shape) for name, (dtype, shape) in LABELS.items()] + [("end", "<i8")])
_COPY_BYTES = 8 << 20
#: Room for what HDF5 writes beside the data.
_SPARE_BYTES = 1 << 20


class PoseStoreWriter:
    """Writes a pose store row by row; use it as a context manager.

    The file takes its name when the block ends without an error, whole and on the disk; an error leaves nothing behind.
    JPEG bytes pass through an unnamed temporary file in the same folder, so the disk holds them twice for a moment.
    Whether it has room is seen before HDF5 begins, which on a full disk can crash the process when that ends.

    Args:
        path: the file to write; an existing one is replaced at the end.
        image_size: ``(height, width)`` of every picture in pixels.
        attributes: more attributes of the file, such as ``source="..."``.

    Raises:
        ValueError: from :meth:`append` for a row that does not fit (it names file, row and picture), and at the end if
            there is no row.
        OSError: if the disk is full or not writable.

    Example:
        >>> import numpy as np, tempfile
        >>> path = tempfile.mkdtemp() + "/poses.h5"
        >>> with PoseStoreWriter(path, (1000, 1000), source="example") as writer:
        ...     writer.append(None, np.zeros((17, 2)), np.ones(17), action="Walking", frame=3)
        >>> from hpe_fast.data.store import PoseStore
        >>> PoseStore(path).action
        ['Walking']
    """

    def __init__(self, path: str | os.PathLike, image_size: tuple[int, int], **attributes: Any) -> None:
        height, width = (int(v) for v in image_size)
        if height <= 0 or width <= 0:
            raise ValueError(f"image_size must be positive (height, width), got {image_size!r}")
        self.path = Path(path)
        self.image_size = (height, width)
        self._attributes = attributes
        self._tables: dict[str, dict[str, int]] = {name: {} for name in TABLES}
        self._names: list[bytes] = []
        self._occluded: list[bytes] = []
        self._recipes: list[bytes] = []
        self._end = 0

    def __len__(self) -> int:
        return len(self._names)

    def __enter__(self) -> PoseStoreWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._open = ExitStack()
        self._blob = self._open.enter_context(tempfile.TemporaryFile(dir=self.path.parent))
        self._rows = self._open.enter_context(tempfile.TemporaryFile(dir=self.path.parent))
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        with self._open:
            if kind is None:
                self._finish()

    def append(
        self,
        jpeg: bytes | None,
        pose2d: np.ndarray,
        visible: np.ndarray,
        pose3d: np.ndarray | None = None,
        intrinsics: np.ndarray | None = None,
        subject: str = "",
        action: str = "",
        camera: str = "",
        frame: int = 0,
        name: str = "",
        occluded: np.ndarray | None = None,
        recipe: str = "",
    ) -> None:
        """Add a row.

        Args:
            jpeg: the picture's JPEG bytes, or ``None`` in a store without pictures.
            pose2d: [17,2] pixels, index coordinates, finite (a joint that is not known gets any place and visible 0).
            visible: [17], 0 or 1.
            pose3d: [17,3] mm in the camera frame; ``None`` or NaN: not known.
            intrinsics: [4] fx, fy, cx, cy of the picture; ``None`` or NaN: not known.
            subject, action, camera, frame, name: where the row comes from.
            occluded: [17], 1 where something hides the joint; given for every row or for none.
            recipe: how the row was made (JSON), for pictures that can be made again.

        Raises:
            ValueError: naming the row, the picture and the argument that does not fit.
        """
        where = row_in_words(self.path, len(self), name)
        data = self._checked_jpeg(jpeg, where)
        row = np.zeros((), _ROW)
        row["pose2d"] = _checked("pose2d", pose2d, where)
        row["visible"] = _checked("visible", visible, where)
        row["pose3d"] = np.nan if pose3d is None else _checked("pose3d", pose3d, where)
        row["intrinsics"] = np.nan if intrinsics is None else _checked("intrinsics", intrinsics, where)
        for table, value in zip(TABLES, (subject, action, camera), strict=True):
            row[table] = self._tables[table].setdefault(str(value), len(self._tables[table]))
        self._append_optional(occluded, recipe, where)
        row["frame"], row["crc32"], row["end"] = frame, zlib.crc32(data), self._end + len(data)
        self._blob.write(data)
        self._rows.write(row.tobytes())
        self._end += len(data)
        self._names.append(str(name).encode())

    def _append_optional(self, occluded: np.ndarray | None, recipe: str, where: str) -> None:
        if len(self) and (occluded is None) != (not self._occluded):
            raise ValueError(f"{where}: occluded must be given for every row or for none")
        if occluded is not None:
            self._occluded.append(_checked("occluded", occluded, where).astype(np.uint8).tobytes())
        self._recipes.append(str(recipe).encode())

    def _checked_jpeg(self, jpeg: bytes | None, where: str) -> bytes:
        if len(self) and (jpeg is None) != (self._end == 0):
            raise ValueError(f"{where}: jpeg must be given for every row or for none")
        problem = None if jpeg is None else jpeg_problem(jpeg, self.image_size)
        if problem:
            raise ValueError(f"{where}: jpeg is {problem}")
        return jpeg or b""

    def _finish(self) -> None:
        import h5py

        if not self._names:
            raise ValueError(f"{self.path}: a pose store needs at least one row")
        self._rows.seek(0)
        rows = np.frombuffer(self._rows.read(), _ROW)
        names = [_encoded(self._names), *(_encoded([v.encode() for v in table]) for table in self._tables.values())]
        optional = sum(map(len, self._occluded)) + sum(map(len, self._recipes))
        _need_space(self.path, self._end + rows.nbytes + optional + sum(array.nbytes for array in names) + _SPARE_BYTES)
        with atomic_path(self.path) as temporary:
            try:
                with h5py.File(temporary, "w", userblock_size=SEAL_BYTES) as file:
                    self._fill(file, rows, names)
            except RuntimeError as error:  # what h5py makes of a disk that is full when it closes
                raise OSError(errno.ENOSPC, f"cannot be written ({error})", str(self.path)) from error
            seal(temporary)

    def _fill(self, file: h5py.File, rows: np.ndarray, names: list[np.ndarray]) -> None:
        file.attrs.update(self._attributes)
        file.attrs.update(format=FORMAT, version=VERSION, image_size=self.image_size, units=UNITS)
        file.attrs.update(joints=list(JOINTS), coordinates=COORDINATES)
        for name in LABELS:
            file.create_dataset(name, data=rows[name])
        file.create_dataset("offset", data=np.concatenate([[0], rows["end"]]).astype("<i8"))
        for name, values in zip(("name", *(f"{table}_names" for table in TABLES)), names, strict=True):
            file.create_dataset(name, data=values)
        if self._occluded:
            flags = np.frombuffer(b"".join(self._occluded), np.uint8)
            file.create_dataset("occluded", data=flags.reshape(-1, *OPTIONAL_LABELS["occluded"][1]))
        if any(self._recipes):
            file.create_dataset("recipe", data=_encoded(self._recipes), compression="gzip")
        self._copy_blob(file)

    def _copy_blob(self, file: h5py.File) -> None:
        target = file.create_dataset("jpeg", shape=(self._end,), dtype="u1")
        self._blob.seek(0)
        for start in range(0, self._end, _COPY_BYTES):
            part = np.frombuffer(self._blob.read(_COPY_BYTES), np.uint8)
            target[start : start + len(part)] = part


def _checked(name: str, value: np.ndarray, where: str) -> np.ndarray:
    values, shape = np.asarray(value, np.float64), (LABELS | OPTIONAL_LABELS)[name][1]
    if values.shape != shape:
        raise ValueError(f"{where}: {name} must have shape {list(shape)}, got {list(values.shape)}")
    if np.isinf(values).any() or (name in ("pose2d", "visible", "occluded") and np.isnan(values).any()):
        raise ValueError(f"{where}: {name} must be finite")
    if name in ("visible", "occluded") and not np.isin(values, (0, 1)).all():
        raise ValueError(f"{where}: {name} must be 0 or 1")
    if name == "intrinsics" and (values[:2] <= 0).any():
        raise ValueError(f"{where}: {name} must have positive focal lengths, got {values[:2].tolist()}")
    return values


def _need_space(path: Path, size: int) -> None:
    """Raises OSError where the disk has no room for a file of ``size`` bytes beside ``path``."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    with tempfile.TemporaryFile(dir=path.parent) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}, {size} bytes are wanted", str(path)) from error


def _encoded(names: list[bytes]) -> np.ndarray:
    width = max(1, *map(len, names)) if names else 1  # HDF5 has no strings of length 0
    return np.array(names, dtype=f"S{width}")
