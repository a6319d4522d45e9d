"""What counts as a whole JPEG."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_fast.data.jpeg import decode_picture, jpeg_problem

GOOD = picture(0, (64, 64))
SCAN, FRAME = GOOD.index(b"\xff\xda"), GOOD.index(b"\xff\xc0")
HUFFMAN, QUANTIZATION = GOOD.index(b"\xff\xc4"), GOOD.index(b"\xff\xdb")
SAMPLINGS = (0x111111, 0x211111, 0x221111, 0x411111, 0x121111)


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    channels=st.sampled_from([1, 3]),
    quality=st.integers(1, 100),
    progressive=st.integers(0, 1),
    optimize=st.integers(0, 1),
    restart=st.sampled_from([0, 1, 7]),
    sampling=st.sampled_from(SAMPLINGS),
)
def test_whatever_an_encoder_writes_is_whole(size, channels, quality, progressive, optimize, restart, sampling):
    pixels = np.random.default_rng(quality).integers(0, 256, (*size, channels), np.uint8)
    options = {
        cv2.IMWRITE_JPEG_QUALITY: quality,
        cv2.IMWRITE_JPEG_PROGRESSIVE: progressive,
        cv2.IMWRITE_JPEG_OPTIMIZE: optimize,
        cv2.IMWRITE_JPEG_RST_INTERVAL: restart,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR: sampling,
    }
    data = cv2.imencode(".jpg", pixels, [value for option in options.items() for value in option])[1].tobytes()
    height, width = size
    assert jpeg_problem(data, size) is None
    assert jpeg_problem(data, (height + 1, width)) == f"{width}x{height} pixels, want {width}x{height + 1}"
    assert "want one of" in jpeg_problem(data[:-2], size)


def test_no_part_of_a_picture_is_whole():
    assert {jpeg_problem(GOOD[:end], (64, 64)) is None for end in range(len(GOOD))} == {False}


def test_what_may_stand_around():
    assert jpeg_problem(GOOD + b"some camera's notes", (64, 64)) is None
    assert jpeg_problem(GOOD[:2] + b"\xff\xfe\0\x06text" + GOOD[2:], (64, 64)) is None
    assert jpeg_problem(GOOD[:2] + b"\xff\xff\xff" + GOOD[2:], (64, 64)) is None


def put(place: int, *values: int) -> bytes:
    return GOOD[:place] + bytes(values) + GOOD[place + len(values) :]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a JPEG, want one of 64x64 pixels"),
        (b"\x89PNG" + GOOD[4:], "not a JPEG"),
        (b"\xff\xd8\xff\xd9", "misplaced or unknown marker 0xd9"),
        (put(FRAME + 1, 0xC9), "unknown marker 0xc9"),  # arithmetic coding
        (put(FRAME + 1, 0xDD), "damaged scan"),  # no frame
        (put(FRAME + 3, 255), "damaged frame|unknown marker|without an end"),
        (put(FRAME + 4, 12), "damaged frame"),  # 12 bits
        (put(FRAME + 9, 4), "damaged frame"),  # four components
        (put(FRAME + 11, 0x52), "damaged frame"),  # sampled five times
        (put(FRAME + 12, 3), "damaged scan"),  # a quantization table that is not there
        (put(QUANTIZATION + 4, 0x20), "damaged quantization table"),
        (put(QUANTIZATION + 2, 0, 1), "damaged length"),
        (put(HUFFMAN + 4, 0x30), "damaged Huffman table"),
        (put(HUFFMAN + 5, 3), "damaged Huffman table"),  # three codes of one bit
        (put(HUFFMAN + 21, 200), "damaged Huffman table"),  # 200 more bits
        (put(SCAN + 5, 9), "damaged scan"),  # of a component that is not there
        (put(SCAN + 6, 0x33), "damaged scan"),  # by a table that is not there
        (put(SCAN + 12, 64), "damaged scan"),
        (put(SCAN + 300, 0xFF, 0xA3), "damaged length|unknown marker 0xa3"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, message: str):
    with pytest.raises(ValueError, match=message):
        raise ValueError(jpeg_problem(data, (64, 64)))


def test_decoding_something_else():
    assert decode_picture(b"") is None
    assert decode_picture(b"not a picture") is None
    assert decode_picture(put(FRAME + 5, 255, 255, 255, 255)) is None
    np.testing.assert_array_equal(decode_picture(GOOD), cv2.imdecode(np.frombuffer(GOOD, np.uint8), 1))
