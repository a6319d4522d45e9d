"""What is in a pose store: the names, dtypes and checks that its reader and its writer share."""

from __future__ import annotations

import os

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
#: Labels that a store may have; rendered people do.
OPTIONAL_LABELS: dict[str, tuple[str, tuple[int, ...]]] = {"occluded": ("|u1", (NUM_JOINTS,))}
#: Labels that are rows of a table of names.
TABLES = ("subject", "action", "camera")


class DataError(ValueError):
    """Data that cannot be used; the message names the file and, where there is one, the row."""


def row_in_words(path: os.PathLike | str, row: int, name: str) -> str:
    """File, row and picture, for messages.

    Example:
        >>> row_in_words("train.h5", 7, "S1_Walking.54138969_000001.jpg")
        'train.h5: row 7 (S1_Walking.54138969_000001.jpg)'
    """
    return f"{path}: row {row} ({name})" if name else f"{path}: row {row}"
