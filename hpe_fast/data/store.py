"""The pose store: one HDF5 file a split, with the pictures' JPEG bytes in one blob and a row of labels for each.

Datasets (N rows, 17 joints in the order of :mod:`hpe_fast.skeleton`):

====================  ============  =============================================================================
``/jpeg``             u1 [bytes]    every picture's JPEG bytes end to end, contiguous and unfiltered; empty: no pictures
``/offset``           i8 [N+1]      row i is ``jpeg[offset[i]:offset[i + 1]]``
``/crc32``            u4 [N]        ``zlib.crc32`` of those bytes
``/pose2d``           f4 [N,17,2]   x, y in pixels, index coordinates: the centre of the top-left pixel is (0, 0)
``/visible``          u1 [N,17]     1 where the joint counts
``/pose3d``           f4 [N,17,3]   mm, camera frame (x right, y down, z forward); NaN where unknown
``/intrinsics``       f4 [N,4]      fx, fy, cx, cy in pixels, index coordinates; NaN where unknown
``/frame``            i8 [N]        number of the frame in its recording
``/subject`` ...      i4 [N]        row of ``/subject_names``; the same for ``/action`` and ``/camera``
``/name``             S [N]         UTF-8 name of the picture
====================  ============  =============================================================================

Attributes: ``format``, ``version``, ``image_size`` (height, width), ``joints``, ``units``, ``coordinates``, and
whatever the writer was given.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpe_fast.data.schema import (
    COORDINATES,
    FORMAT,
    LABELS,
    TABLES,
    UNITS,
    VERSION,
    DataError,
    describe_jpeg,
    format_size,
    jpeg_size,
)
from hpe_fast.files import atomic_path
from hpe_fast.skeleton import JOINTS, NUM_JOINTS

if TYPE_CHECKING:
    import h5py

__all__ = ["DataError", "PoseStore", "PoseStoreWriter", "jpeg_size"]

_ROW = np.dtype([(name, dtype, shape) for name, (dtype, shape) in LABELS.items()] + [("end", "<i8")])
_COPY_BYTES = 8 << 20


class PoseStore:
    """A pose store opened for reading: labels in memory, pictures read from the file one at a time.

    It can be pickled (the other process opens the file again) and used after a fork.

    Args:
        path: the HDF5 file.

    Attributes:
        path: where it is.
        image_size: ``(height, width)`` of every picture.
        attributes: the file's attributes.
        pose2d: f4 [N,17,2], pixels. visible: u1 [N,17]. pose3d: f4 [N,17,3], mm. intrinsics: f4 [N,4].
        frame: i8 [N]. crc32: u4 [N]. offset: i8 [N+1].

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if it is no pose store, of another version or joint order, truncated, or inconsistent.

    Example:
        >>> import numpy as np, tempfile
        >>> path = tempfile.mkdtemp() + "/poses.h5"
        >>> with PoseStoreWriter(path, (256, 256)) as writer:
        ...     writer.append(None, np.zeros((17, 2)), np.ones(17), subject="S1")
        >>> store = PoseStore(path)
        >>> len(store), store.has_images, store.subject
        (1, False, ['S1'])
    """

    pose2d: np.ndarray
    visible: np.ndarray
    pose3d: np.ndarray
    intrinsics: np.ndarray
    frame: np.ndarray
    crc32: np.ndarray
    offset: np.ndarray

    def __init__(self, path: str | os.PathLike) -> None:
        import h5py

        self.path = Path(path)
        self._handle: int | None = None
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")
        try:
            with h5py.File(self.path, "r") as file:
                self._read_header(file)
                self._read_labels(file)
                self._read_layout(file)
        except OSError as error:  # h5py's own: not HDF5, truncated, unreadable
            raise DataError(f"{self.path}: cannot be read as HDF5 ({error})") from error
        self._check_labels()

    def __len__(self) -> int:
        return len(self.pose2d)

    def __repr__(self) -> str:
        kind = "pictures" if self.has_images else "poses only"
        return f"PoseStore({str(self.path)!r}: {len(self)} rows, {self.image_size[0]}x{self.image_size[1]}, {kind})"

    def __reduce__(self) -> tuple:
        return PoseStore, (self.path,)

    def __enter__(self) -> PoseStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    @property
    def has_images(self) -> bool:
        """Whether rows have a picture."""
        return bool(self.offset[-1] > 0)

    @cached_property
    def subject(self) -> list[str]:
        """Who, a name for each row."""
        return self._named("subject")

    @cached_property
    def action(self) -> list[str]:
        """Doing what, a name for each row."""
        return self._named("action")

    @cached_property
    def camera(self) -> list[str]:
        """Seen by which camera, a name for each row."""
        return self._named("camera")

    @cached_property
    def name(self) -> list[str]:
        """The picture's name, for each row."""
        return _decoded(self._names)

    def read_jpeg(self, row: int) -> bytes:
        """JPEG bytes of a row, read at their place in the file and checked against the checksum.

        Raises:
            IndexError: if there is no such row.
            DataError: if the file became shorter, the checksum differs, or this is no JPEG of ``image_size``.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row must be in [0, {len(self)}), got {row}")
        start, size = int(self.offset[row]), int(self.offset[row + 1] - self.offset[row])
        # pread, not mmap: a file truncated under a mapping kills the process.
        data = os.pread(self._descriptor(), size, self._base + start)
        if len(data) != size:
            raise DataError(f"{self.path}: row {row}: {len(data)} of {size} bytes left, the file became shorter")
        if zlib.crc32(data) != int(self.crc32[row]):
            raise DataError(f"{self.path}: row {row}: checksum of the picture differs, the file is damaged")
        if jpeg_size(data) != self.image_size:
            raise DataError(
                f"{self.path}: row {row}: {describe_jpeg(data)}, want a JPEG of {format_size(self.image_size)}"
            )
        return data

    def image(self, row: int) -> np.ndarray:
        """Picture of a row: uint8 [H,W,3], RGB, decoded by OpenCV.

        Raises:
            IndexError: if there is no such row.
            DataError: as :meth:`read_jpeg`, and if the JPEG cannot be decoded.
        """
        import cv2

        data = np.frombuffer(self.read_jpeg(row), np.uint8)
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if picture is None or picture.shape[:2] != self.image_size:
            raise DataError(f"{self.path}: row {row}: cannot be decoded")
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)

    def _descriptor(self) -> int:
        if self._handle is None:
            try:
                self._handle = os.open(self.path, os.O_RDONLY)
            except OSError as error:
                raise DataError(f"{self.path}: cannot be opened ({error.strerror})") from error
        return self._handle

    def _named(self, label: str) -> list[str]:
        names = _decoded(self._tables[label])
        return [names[i] for i in self._ids[label].tolist()]

    def _read_header(self, file: h5py.File) -> None:
        attributes = self.attributes = dict(file.attrs)
        if attributes.get("format") != FORMAT:
            raise DataError(f"{self.path}: no pose store (attribute format is {attributes.get('format')!r})")
        if attributes.get("version") != VERSION:
            raise DataError(f"{self.path}: version {attributes.get('version')}, this code reads version {VERSION}")
        joints = tuple(str(joint) for joint in attributes.get("joints", ()))
        if joints != JOINTS:
            raise DataError(f"{self.path}: joints are {joints}, want {JOINTS}")
        size = np.asarray(attributes.get("image_size", ()))
        if size.shape != (2,) or size.dtype.kind not in "iu" or (size <= 0).any():
            raise DataError(f"{self.path}: attribute image_size must be (height, width), got {size.tolist()}")
        self.image_size = (int(size[0]), int(size[1]))

    def _dataset(self, file: h5py.File, name: str, dtype: str, shape: tuple[int | None, ...]) -> h5py.Dataset:
        import h5py

        dataset = file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            raise DataError(f"{self.path}: dataset /{name} is missing")
        fits = len(dataset.shape) == len(shape) and all(
            w in (None, n) for n, w in zip(dataset.shape, shape, strict=True)
        )
        if not fits or (dataset.dtype.kind if dtype == "S" else dataset.dtype) != dtype:
            want = f"{dtype} {list(shape)}".replace("None", "any")
            raise DataError(f"{self.path}: dataset /{name} is {dataset.dtype.str} {list(dataset.shape)}, want {want}")
        return dataset

    def _read_labels(self, file: h5py.File) -> None:
        rows = self._dataset(file, "pose2d", "<f4", (None, NUM_JOINTS, 2)).shape[0]
        labels = {name: self._dataset(file, name, dtype, (rows, *shape))[()] for name, (dtype, shape) in LABELS.items()}
        self._ids = {name: labels.pop(name) for name in TABLES}
        self._tables = {name: self._dataset(file, f"{name}_names", "S", (None,))[()] for name in TABLES}
        self._names = self._dataset(file, "name", "S", (rows,))[()]
        for name, values in labels.items():
            values.flags.writeable = False
            setattr(self, name, values)

    def _read_layout(self, file: h5py.File) -> None:
        blob = self._dataset(file, "jpeg", "|u1", (None,))
        self.offset = self._dataset(file, "offset", "<i8", (len(self) + 1,))[()]
        base = blob.id.get_offset()
        if blob.size and base is None:
            raise DataError(f"{self.path}: dataset /jpeg must be contiguous and without filters")
        self._base = int(base or 0)
        if self.offset[0] != 0 or self.offset[-1] != blob.size:
            ends = f"{self.offset[0]} to {self.offset[-1]}"
            raise DataError(f"{self.path}: dataset /offset spans {ends}, but /jpeg has {blob.size} bytes")

    def _check_labels(self) -> None:
        sizes = np.diff(self.offset)
        self._check("offset", (sizes <= 0) if self.has_images else (sizes != 0), "does not increase")
        self._check("pose2d", ~np.isfinite(self.pose2d), "is not finite")
        self._check("visible", self.visible > 1, "is neither 0 nor 1")
        self._check("pose3d", np.isinf(self.pose3d), "is infinite")
        self._check("intrinsics", np.isinf(self.intrinsics), "is infinite")
        self._check("intrinsics", self.intrinsics[:, :2] <= 0, "has a focal length <= 0")
        for name in TABLES:
            ids, names = self._ids[name], self._tables[name]
            self._check(name, (ids < 0) | (ids >= len(names)), f"is no row of /{name}_names")

    def _check(self, name: str, bad: np.ndarray, what: str) -> None:
        if bad.any():
            row = int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])
            raise DataError(f"{self.path}: dataset /{name} row {row} {what}")


class PoseStoreWriter:
    """Writes a pose store row by row; use it as a context manager.

    The file takes its name when the block ends without an error, whole and on the disk; an error leaves nothing behind.
    JPEG bytes pass through an unnamed temporary file in the same folder (so the disk holds them twice for a moment).

    Args:
        path: the file to write; an existing one is replaced at the end.
        image_size: ``(height, width)`` of every picture in pixels.
        attributes: more attributes of the file, such as ``source="..."``.

    Raises:
        ValueError: from :meth:`append` for a row that does not fit, and at the end if there is no row.
        OSError: if the disk is full or not writable.

    Example:
        >>> import numpy as np, tempfile
        >>> path = tempfile.mkdtemp() + "/poses.h5"
        >>> with PoseStoreWriter(path, (1000, 1000), source="example") as writer:
        ...     writer.append(None, np.zeros((17, 2)), np.ones(17), action="Walking", frame=3)
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
    ) -> None:
        """Add a row.

        Args:
            jpeg: the picture's JPEG bytes, or ``None`` in a store without pictures.
            pose2d: [17,2] pixels, index coordinates, finite (a joint that is not known gets any place and visible 0).
            visible: [17], 0 or 1.
            pose3d: [17,3] mm in the camera frame; ``None`` or NaN: not known.
            intrinsics: [4] fx, fy, cx, cy of the picture; ``None`` or NaN: not known.
            subject, action, camera, frame, name: where the row comes from.

        Raises:
            ValueError: naming the row and the argument that does not fit.
        """
        data = self._checked_jpeg(jpeg)
        row = np.zeros((), _ROW)
        row["pose2d"] = self._checked("pose2d", pose2d)
        row["visible"] = self._checked("visible", visible)
        row["pose3d"] = np.nan if pose3d is None else self._checked("pose3d", pose3d)
        row["intrinsics"] = np.nan if intrinsics is None else self._checked("intrinsics", intrinsics)
        for table, value in zip(TABLES, (subject, action, camera), strict=True):
            row[table] = self._tables[table].setdefault(str(value), len(self._tables[table]))
        row["frame"], row["crc32"], row["end"] = frame, zlib.crc32(data), self._end + len(data)
        self._blob.write(data)
        self._rows.write(row.tobytes())
        self._end += len(data)
        self._names.append(str(name).encode())

    def _checked_jpeg(self, jpeg: bytes | None) -> bytes:
        if len(self) and (jpeg is None) != (self._end == 0):
            raise ValueError(f"{self.path}: row {len(self)}: jpeg must be given for every row or for none")
        if jpeg is not None and jpeg_size(jpeg) != self.image_size:
            found = f"{describe_jpeg(jpeg)}, want a JPEG of {format_size(self.image_size)}"
            raise ValueError(f"{self.path}: row {len(self)}: jpeg is {found}")
        return jpeg or b""

    def _checked(self, name: str, value: np.ndarray) -> np.ndarray:
        values, shape = np.asarray(value, np.float64), LABELS[name][1]
        where = f"{self.path}: row {len(self)}: {name}"
        if values.shape != shape:
            raise ValueError(f"{where} must have shape {list(shape)}, got {list(values.shape)}")
        if np.isinf(values).any() or (name in ("pose2d", "visible") and np.isnan(values).any()):
            raise ValueError(f"{where} must be finite")
        if name == "visible" and not np.isin(values, (0, 1)).all():
            raise ValueError(f"{where} must be 0 or 1")
        if name == "intrinsics" and (values[:2] <= 0).any():
            raise ValueError(f"{where} must have positive focal lengths, got {values[:2].tolist()}")
        return values

    def _finish(self) -> None:
        import h5py

        if not self._names:
            raise ValueError(f"{self.path}: a pose store needs at least one row")
        self._rows.seek(0)
        rows = np.frombuffer(self._rows.read(), _ROW)
        with atomic_path(self.path) as temporary:
            try:
                with h5py.File(temporary, "w") as file:
                    self._fill(file, rows)
            except RuntimeError as error:  # what h5py makes of a disk that is full when it closes
                raise OSError(f"{self.path}: cannot be written ({error})") from error

    def _fill(self, file: h5py.File, rows: np.ndarray) -> None:
        file.attrs.update(self._attributes)
        file.attrs.update(format=FORMAT, version=VERSION, image_size=self.image_size, units=UNITS)
        file.attrs.update(joints=list(JOINTS), coordinates=COORDINATES)
        for name in LABELS:
            file.create_dataset(name, data=rows[name])
        file.create_dataset("offset", data=np.concatenate([[0], rows["end"]]).astype("<i8"))
        file.create_dataset("name", data=_encoded(self._names))
        for name, table in self._tables.items():
            file.create_dataset(f"{name}_names", data=_encoded([value.encode() for value in table]))
        self._copy_blob(file)

    def _copy_blob(self, file: h5py.File) -> None:
        target = file.create_dataset("jpeg", shape=(self._end,), dtype="u1")
        self._blob.seek(0)
        for start in range(0, self._end, _COPY_BYTES):
            part = np.frombuffer(self._blob.read(_COPY_BYTES), np.uint8)
            target[start : start + len(part)] = part


def _encoded(names: list[bytes]) -> np.ndarray:
    width = max(1, *map(len, names)) if names else 1  # HDF5 has no strings of length 0
    return np.array(names, dtype=f"S{width}")


def _decoded(names: np.ndarray) -> list[str]:
    return [name.decode() for name in names.tolist()]
