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
``/occluded``         u1 [N,17]     optional: 1 where something hides the joint
``/recipe``           S [N]         optional: how the picture was made (JSON)
====================  ============  =============================================================================

Attributes: ``format``, ``version``, ``image_size`` (height, width), ``joints``, ``units``, ``coordinates``, and
whatever the writer was given. The file begins with a checksum of all this, see :mod:`hpe_fast.data.seal`: labels that
were changed in place (with h5py, say) are refused until ``seal(path)`` was called.
"""

from __future__ import annotations

import os
import zlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpe_fast.data.jpeg import decode_picture, jpeg_problem
from hpe_fast.data.schema import FORMAT, LABELS, OPTIONAL_LABELS, TABLES, VERSION, DataError, row_in_words
from hpe_fast.data.seal import check_seal
from hpe_fast.data.store_writer import PoseStoreWriter
from hpe_fast.skeleton import JOINTS, NUM_JOINTS

if TYPE_CHECKING:
    import h5py

__all__ = ["DataError", "PoseStore", "PoseStoreWriter"]


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
        occluded: u1 [N,17], or ``None`` where it is not known.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if it is no pose store, of another version or joint order, damaged, truncated, or inconsistent.

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
    occluded: np.ndarray | None
    crc32: np.ndarray
    offset: np.ndarray

    def __init__(self, path: str | os.PathLike) -> None:
        import h5py

        self.path = Path(path)
        self._handle: int | None = None
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")
        try:
            check_seal(self.path)
            with h5py.File(self.path, "r") as file:
                self._read_header(file)
                self._read_labels(file)
                self._read_layout(file)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error})") from error
        self._check_labels()
        self._whole = np.zeros(len(self), bool)

    def __len__(self) -> int:
        return len(self.pose2d)

    def require_square(self) -> None:
        """Refuse pictures that are no squares: networks are trained and measured on squares here.

        Raises:
            DataError: naming file and size.
        """
        height, width = self.image_size
        if height != width:
            raise DataError(
                f"{self.path}: pictures of {width} x {height} px; training and evaluation take square ones: cut square "
                "crops, as the converters do"
            )

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

    @cached_property
    def recipe(self) -> list[str] | None:
        """How the picture was made, for each row; ``None`` if that is not in the file."""
        import h5py

        with h5py.File(self.path, "r") as file:
            if "recipe" not in file:
                return None
            return _decoded(self._dataset(file, "recipe", "S", (len(self),))[()])

    def read_jpeg(self, row: int) -> bytes:
        """JPEG bytes of a row, read at their place in the file and checked against the checksum.

        Raises:
            IndexError: if there is no such row.
            DataError: if the file became shorter, the checksum differs, or this is no whole JPEG of ``image_size``
                (see :func:`hpe_fast.data.jpeg.jpeg_problem`).
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row must be in [0, {len(self)}), got {row}")
        start, size = int(self.offset[row]), int(self.offset[row + 1] - self.offset[row])
        # pread, not mmap: a file truncated under a mapping kills the process.
        data = os.pread(self._descriptor(), size, self._base + start)
        if len(data) != size:
            raise DataError(f"{self.where(row)}: {len(data)} of {size} bytes left, the file became shorter")
        if zlib.crc32(data) != int(self.crc32[row]):
            raise DataError(f"{self.where(row)}: checksum of the picture differs, the file is damaged")
        if not self._whole[row]:  # found once, it stays so: the checksum is compared every time
            problem = jpeg_problem(data, self.image_size)
            if problem:
                raise DataError(f"{self.where(row)}: {problem}")
            self._whole[row] = True
        return data

    def image(self, row: int) -> np.ndarray:
        """Picture of a row: uint8 [H,W,3], RGB, decoded by OpenCV.

        Raises:
            IndexError: if there is no such row.
            DataError: as :meth:`read_jpeg`, and if the JPEG cannot be decoded.
        """
        import cv2

        picture = decode_picture(self.read_jpeg(row))
        if picture is None or picture.shape[:2] != self.image_size:
            raise DataError(f"{self.where(row)}: cannot be decoded")
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)

    def where(self, row: int) -> str:
        """File, row and picture of a row in words, for messages."""
        return row_in_words(self.path, row, self._names[row].decode(errors="replace"))

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
        if not np.array_equal(attributes.get("format"), FORMAT):
            raise DataError(f"{self.path}: no pose store (attribute format is {attributes.get('format')!r})")
        if not np.array_equal(attributes.get("version"), VERSION):
            raise DataError(f"{self.path}: version {attributes.get('version')}, this code reads version {VERSION}")
        joints = tuple(str(joint) for joint in np.atleast_1d(attributes.get("joints", ())))
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
        self.occluded = None
        for name, (dtype, shape) in OPTIONAL_LABELS.items():
            if name in file:
                labels[name] = self._dataset(file, name, dtype, (rows, *shape))[()]
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
        if self.occluded is not None:
            self._check("occluded", self.occluded > 1, "is neither 0 nor 1")
        self._check("pose3d", np.isinf(self.pose3d), "is infinite")
        self._check("intrinsics", np.isinf(self.intrinsics), "is infinite")
        self._check("intrinsics", self.intrinsics[:, :2] <= 0, "has a focal length <= 0")
        for name in TABLES:
            ids, names = self._ids[name], self._tables[name]
            self._check(name, (ids < 0) | (ids >= len(names)), f"is no row of /{name}_names")

    def _check(self, name: str, bad: np.ndarray, what: str) -> None:
        if bad.any():
            row = int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])
            raise DataError(f"{self.where(row)}: dataset /{name} {what}")


def _decoded(names: np.ndarray) -> list[str]:
    return [name.decode(errors="replace") for name in names.tolist()]
