"""Pickles of numpy arrays in plain containers, read without running anything that the file names.

A pickle is a program. This reader gives it a few functions of its own, all of which only build arrays and scalars of
plain dtypes from bytes, and refuses every other name before it is imported.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hpe_fast.data.schema import DataError


def load_pickle(path: Path) -> Any:
    """What a pickle file holds, if that is made of dicts, lists, tuples, strings, numbers and numpy arrays.

    Raises:
        DataError: if it is damaged or asks for anything else.
        OSError: if it cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "cameras.pkl"
        >>> _ = path.write_bytes(pickle.dumps({("S1", "54138969"): np.arange(3.0)}))
        >>> load_pickle(path)[("S1", "54138969")].tolist()
        [0.0, 1.0, 2.0]
        >>> _ = path.write_bytes(pickle.dumps(print))
        >>> load_pickle(path)
        Traceback (most recent call last):
        ...
        hpe_fast.data.schema.DataError: ...cameras.pkl: refused: the pickle asks for builtins.print, ...
    """
    with open(path, "rb") as file:
        return _load(file, str(path))


def load_npz(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """The named arrays of an npz file; an object array is read like :func:`load_pickle` does.

    Raises:
        DataError: if the file is damaged, a key is missing, or an object array asks for more than numpy.
        OSError: if it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            missing = {f"{key}.npy" for key in keys} - set(archive.namelist())
            if missing:
                raise DataError(f"{path}: {sorted(missing)} are missing, there is {archive.namelist()}")
            return {key: _load_npy(archive.read(f"{key}.npy"), f"{path}: {key}") for key in keys}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(f"{path}: not a whole npz file ({error})") from error


def _load_npy(data: bytes, where: str) -> Any:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        dtype = header(stream)[2]
        if not dtype.hasobject:
            stream.seek(0)
            return np.load(stream, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{where}: not an npy array ({error})") from error
    return _load(stream, where)


def _load(file: BinaryIO, where: str) -> Any:
    try:
        _check_memo(file)
        return _Unpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise DataError(f"{where}: refused: {error}") from error
    except Exception as error:
        # A damaged pickle may raise anything from the unpickler; nothing of ours is called with it.
        raise DataError(f"{where}: damaged pickle ({type(error).__name__}: {error})") from error


def _check_memo(file: BinaryIO) -> None:
    """Python makes room for the largest number that a pickle gives to an object, which may be 4 billion: too much."""
    start = file.tell()
    length = file.seek(0, os.SEEK_END) - start
    file.seek(start)
    for operation, number, _ in pickletools.genops(file):
        if operation.name in ("PUT", "LONG_BINPUT") and number > length:
            raise pickle.UnpicklingError(f"the pickle numbers an object {number}, and has {length} bytes")
    file.seek(start)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        key = (module.replace("numpy._core", "numpy.core"), name)
        if key not in _ALLOWED:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, which is neither numpy nor plain data")
        return _ALLOWED[key]


class _Function:
    """A function whose attributes a pickle cannot set."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the pickle sets the state of a function")


class _Dtype:
    """What a pickle says of a dtype: numpy's own ``__setstate__`` is not given untrusted values."""

    __slots__ = ("real",)

    def __init__(self, spec: Any) -> None:
        self.real = np.dtype(str(spec))
        if self.real.kind not in "biufcSUO" or self.real.fields or self.real.subdtype:
            raise pickle.UnpicklingError(f"dtype {spec!r} is not plain")

    def __setstate__(self, state: Any) -> None:
        order, plain = state[1], all(part is None for part in state[2:5])
        if order not in ("<", ">", "|", "=") or not plain:
            raise pickle.UnpicklingError(f"dtype state {state!r} is not plain")
        self.real = self.real.newbyteorder(order)


class _Array(np.ndarray):
    """An array under construction; its state is checked before numpy gets it."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        content = content.encode("latin1") if isinstance(content, str) else content
        _check_content(content, dtype, shape)
        super().__setstate__((1, tuple(shape), dtype.real, bool(fortran), content))


def _check_content(content: Any, dtype: Any, shape: Any) -> None:
    if not isinstance(dtype, _Dtype) or not all(type(n) is int and n >= 0 for n in shape):
        raise pickle.UnpicklingError(f"array of shape {shape!r} and dtype {dtype!r}")
    kinds, unit = ((list,), 1) if dtype.real.hasobject else ((bytes, bytearray), dtype.real.itemsize)
    if type(content) not in kinds or len(content) != math.prod(shape) * unit:
        raise pickle.UnpicklingError(f"content of an array of shape {shape!r} and dtype {dtype.real} does not fit")


def _make_dtype(spec: Any, align: Any = False, copy: Any = True) -> _Dtype:
    return _Dtype(spec)


def _make_array(kind: Any, shape: Any, code: Any) -> _Array:
    return np.empty(0, np.uint8).view(_Array)


def _make_array_at_once(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    # Protocol 5. The order of axes is for layouts that are neither C's nor Fortran's.
    _check_content(content, dtype, shape)
    if dtype.real.hasobject or axes is not None or order not in ("C", "F"):
        raise pickle.UnpicklingError(f"array of order {order!r}, axes {axes!r}")
    return np.frombuffer(content, dtype.real).reshape(shape, order=order)


def _make_scalar(dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, _Dtype) or dtype.real.hasobject:
        raise pickle.UnpicklingError("scalar of a dtype that is not plain")
    content = content.encode("latin1") if isinstance(content, str) else bytes(content)
    return np.frombuffer(content, dtype.real, count=1)[0]


def _make_bytes(text: Any, encoding: Any) -> bytes:
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


def _make_empty_bytes() -> bytes:
    return b""


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Function(_make_dtype),
    ("numpy", "ndarray"): "numpy.ndarray",  # only ever an argument of _reconstruct, which does not look at it
    ("numpy.core.multiarray", "_reconstruct"): _Function(_make_array),
    ("numpy.core.numeric", "_frombuffer"): _Function(_make_array_at_once),
    ("numpy.core.multiarray", "scalar"): _Function(_make_scalar),
    # Protocols 0 to 2 have no bytes of their own.
    ("_codecs", "encode"): _Function(_make_bytes),
    ("__builtin__", "bytes"): _Function(_make_empty_bytes),
}
