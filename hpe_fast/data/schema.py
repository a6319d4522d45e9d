"""What is in a pose store: the names, dtypes and checks that its reader and its writer share."""

from __future__ import annotations

from hpe_fast.skeleton import NUM_JOINTS

FORMAT = "hpe_fast pose store"
VERSION = 1
UNITS = "pose2d and intrinsics: pixels; pose3d: millimetres"
COORDINATES = "index: the centre of the top-left pixel is (0, 0), x before y; camera x right, y down, z forward"

#: Dtype and shape of a row of each label.
LABELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "pose2d": ("<f4", (NUM_JOINTS, 2)),
    "visible": ("|u1", (NUM_JOINTS,)),
    "pose3d": ("<f4", (NUM_JOINTS, 3)),
    "intrinsics": ("<f4", (4,)),
    "frame": ("<i8", ()),
    "crc32": ("<u4", ()),
    "subject": ("<i4", ()),
    "action": ("<i4", ()),
    "camera": ("<i4", ()),
}
#: Labels that are rows of a table of names.
TABLES = ("subject", "action", "camera")


class DataError(ValueError):
    """Data that cannot be used; the message names the file and, where there is one, the row."""


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
