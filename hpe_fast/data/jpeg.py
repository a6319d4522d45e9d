"""JPEG bytes: whether they are whole, without decoding them, and the decoder."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

_SOI, _SOF, _DHT, _EOI, _SOS, _DQT, _DRI, _COM = 0xD8, (0xC0, 0xC1, 0xC2), 0xC4, 0xD9, 0xDA, 0xDB, 0xDD, 0xFE
_APP = range(0xE0, 0xF0)
# In a scan FF is followed by 0, or begins a restart marker; any other is the next marker, FF FF padding before it.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")


class _BadJpeg(ValueError):
    """What is wrong with a JPEG."""


def jpeg_problem(data: bytes, size: tuple[int, int]) -> str | None:
    """What keeps bytes from being a whole 8-bit JPEG of ``size``, or None; the entropy-coded pixels are not looked at.

    DALI may crash the process at a JPEG whose headers are damaged or whose end is missing, so those do not get to it.
    The rules are those of ITU-T T.81, annex B, for Huffman-coded pictures of one or three components.

    Args:
        data: the bytes.
        size: ``(height, width)`` wanted.

    Example:
        >>> jpeg_problem(b"not a picture", (64, 64))
        'not a JPEG, want one of 64x64 pixels'
    """
    try:
        found = _frame_size(data)
    except _BadJpeg as error:
        return f"{error}, want one of {size[1]}x{size[0]} pixels"
    return None if found == size else f"{found[1]}x{found[0]} pixels, want {size[1]}x{size[0]}"


def _frame_size(data: bytes) -> tuple[int, int]:
    """``(height, width)`` of a JPEG that is whole."""
    if data[:2] != bytes((0xFF, _SOI)):
        raise _BadJpeg("not a JPEG")
    frame = b""
    tables: set[tuple[int, int]] = set()
    scans = 0
    for marker, body in _segments(data):
        if marker in _SOF and not frame:
            frame = _checked_frame(body)
        elif marker == _DHT:
            tables |= _huffman_tables(body)
        elif marker == _DQT:
            tables |= _quantization_tables(body)
        elif marker == _SOS:
            _check_scan(body, frame, tables)
            scans += 1
        elif marker == _EOI and scans:
            return int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
        elif marker not in _APP and marker not in (_COM, _DRI):
            raise _BadJpeg(f"a JPEG with a misplaced or unknown marker {marker:#x}")
    raise _BadJpeg("a JPEG without an end")


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Every marker after the first, with what belongs to it; what is between them is entropy-coded."""
    position, in_scan = 2, False
    while found := (_NEXT_MARKER.search if in_scan else _NEXT_MARKER.match)(data, position):
        marker, start = data[found.end() - 1], found.end()
        if marker == 0xFF:
            position = start - 1
            continue
        end = start if marker == _EOI else start + int.from_bytes(data[start : start + 2], "big")
        if end > len(data) or (marker != _EOI and end < start + 2):
            raise _BadJpeg("a JPEG with a damaged length")
        yield marker, data[start + 2 : end]
        position, in_scan = end, marker == _SOS


def _need(fits: bool, what: str) -> None:
    if not fits:
        raise _BadJpeg(f"a JPEG with a damaged {what}")


def _checked_frame(body: bytes) -> bytes:
    _need(len(body) > 5 and body[0] == 8 and body[5] in (1, 3) and len(body) == 6 + 3 * body[5], "frame")
    ids = body[6::3]
    good_factors = all(1 <= factor >> 4 <= 4 and 1 <= factor & 15 <= 4 for factor in body[7::3])
    _need(len(set(ids)) == len(ids) and good_factors and max(body[8::3]) < 4, "frame")
    return body


def _huffman_tables(body: bytes) -> set[tuple[int, int]]:
    """Which tables a segment defines: (class, number)."""
    found = set()
    while body:
        _need(len(body) > 16 and body[0] >> 4 < 2 and body[0] & 15 < 4, "Huffman table")
        counts = body[1:17]
        code = 0
        for bits, count in enumerate(counts, 1):
            code = 2 * code + count
            _need(code < 1 << bits or count == 0, "Huffman table")
        total = sum(counts)
        symbols = body[17 : 17 + total]
        _need(0 < total == len(symbols) and (body[0] >> 4 == 1 or max(symbols) < 16), "Huffman table")
        found.add((body[0] >> 4, body[0] & 15))
        body = body[17 + total :]
    return found


def _quantization_tables(body: bytes) -> set[tuple[int, int]]:
    """Which tables a segment defines: (2, number), so that they do not mix with Huffman's."""
    found = set()
    while body:
        length = 1 + 64 * (1 + (body[0] >> 4))
        _need(body[0] >> 4 < 2 and body[0] & 15 < 4 and len(body) >= length, "quantization table")
        found.add((2, body[0] & 15))
        body = body[length:]
    return found


def _check_scan(body: bytes, frame: bytes, tables: set[tuple[int, int]]) -> None:
    _need(bool(frame) and bool(body) and 1 <= body[0] <= frame[5] and len(body) == 4 + 2 * body[0], "scan")
    components, first, last, approximation = body[1:-3], *body[-3:]
    ids, chosen = components[::2], components[1::2]
    _need(len(set(ids)) == len(ids) and set(ids) <= set(frame[6::3]), "scan")
    _need(first <= last < 64 and approximation >> 4 <= 13 and approximation & 15 <= 13, "scan")
    wanted = {(2, number) for number in frame[8::3]}
    # A progressive picture's scans use a table of one class, or none where they refine.
    refines = approximation >> 4 > 0
    wanted |= {(0, table >> 4) for table in chosen if first == 0 and not refines}
    wanted |= {(1, table & 15) for table in chosen if last > 0}
    _need(wanted <= tables, "scan")


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


def encode_square(square: np.ndarray, size: int, quality: int) -> bytes:
    """A square picture (BGR, as :func:`decode_picture` returns it) as the JPEG bytes of ``size`` x ``size`` pixels."""
    import cv2

    shrinks = square.shape[0] >= size
    square = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    return cv2.imencode(".jpg", square, options)[1].tobytes()
