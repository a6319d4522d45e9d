"""JPEG bytes: their size without decoding them, and the decoder."""

from __future__ import annotations

import numpy as np


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """``(height, width)`` from the frame header of a JPEG, ``None`` if there is none.

    Example:
        >>> jpeg_size(b"not a picture") is None
        True
    """
    if data[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # padding before a marker
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = data[position + 5 : position + 7], data[position + 7 : position + 9]
            return int.from_bytes(height, "big"), int.from_bytes(width, "big")
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def describe_jpeg(data: bytes) -> str:
    """Size of a JPEG in words, or that it is none."""
    size = jpeg_size(data)
    return "not a JPEG" if size is None else format_size(size)


def format_size(size: tuple[int, int]) -> str:
    """``width x height`` in words."""
    return f"{size[1]}x{size[0]} pixels"


def decode_picture(data: bytes) -> np.ndarray | None:
    """A picture file's content as uint8 [H,W,3] in OpenCV's BGR, Exif ignored; ``None`` if it is none.

    Example:
        >>> decode_picture(b"") is None
        True
    """
    import cv2

    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # an empty file, or a header that asks for more pixels than OpenCV allows
        return None
