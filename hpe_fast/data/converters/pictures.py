"""One picture in, one cropped JPEG out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpe_fast.data.jpeg import decode_picture, encode_square, jpeg_problem


class BadPicture(ValueError):
    """A picture that cannot be read whole."""


@dataclass(frozen=True)
class Crop:
    """A cropped picture and the (height, width) of the one it was cut from."""

    jpeg: bytes
    frame_size: tuple[int, int]


def crop_picture(path: Path, box: np.ndarray | None, size: int, quality: int) -> Crop:
    """Cuts ``box`` (left, top, side in whole pixels; None: everything) out of a picture, as a ``size`` x ``size`` JPEG.

    What the box has beyond the picture is black. A JPEG that already is the crop is passed on byte for byte.

    Raises:
        BadPicture: if the file is missing, truncated or no picture, or if it is not square and there is no box.
    """
    data = _read(path)
    image = decode_picture(data)
    if image is None:
        raise BadPicture(f"{path}: not a picture that OpenCV can decode")
    height, width = image.shape[:2]
    if box is None:
        if height != width:
            raise BadPicture(f"{path}: a square crop is wanted, the picture is {width} x {height}")
        if height == size and _can_be_kept(data, size):
            return Crop(data, (height, width))
        box = np.array([0, 0, height])
    square = _cut(image, *(int(v) for v in box))
    return Crop(encode_square(square, size, quality), (height, width))


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadPicture(f"{path}: {error.strerror or error}") from error
    if data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data[-4096:]:
        raise BadPicture(f"{path}: truncated JPEG (no end marker in {len(data)} bytes)")
    return data


def _can_be_kept(data: bytes, size: int) -> bool:
    # An Exif block may ask for a rotation, which decoders treat differently.
    return jpeg_problem(data, (size, size)) is None and b"Exif" not in data[:4096]


def _cut(image: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    import cv2

    height, width = image.shape[:2]
    x0, x1 = (min(max(v, 0), width) for v in (left, left + side))
    y0, y1 = (min(max(v, 0), height) for v in (top, top + side))
    if x0 == x1 or y0 == y1:
        return np.zeros((side, side, 3), np.uint8)
    margins = (y0 - top, top + side - y1, x0 - left, left + side - x1)
    return cv2.copyMakeBorder(image[y0:y1, x0:x1], *margins, cv2.BORDER_CONSTANT, value=(0, 0, 0))
