"""The inference benchmark's own parts: every rival finds the joints ours finds, and a rival that does not is named."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

# Last, so that what is installed comes first.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import infer_rivals, report
from hpe_fast import models
from hpe_fast.ops import OFFICIAL
from hpe_fast.pipeline import PosePipeline

CODEC = OFFICIAL.resized(64, 16)


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    detector = models.hrnet(width=8, modules=(1, 1, 1), blocks=1)
    with torch.no_grad():
        detector.train()(torch.randn(8, 3, 64, 64))
        detector.final_layer.weight.normal_(std=0.1)
    lifter = models.lifter(width=16).eval()
    pictures = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    pipeline = PosePipeline(detector, lifter, "cpu", codec=CODEC, dtype=torch.float32, refine="quarter")
    return detector.eval(), lifter, pictures, infer_rivals.ours(pipeline)(pictures)


def same(found, ours):
    infer_rivals.check({"official": found, "ours": ours}, 1e-3, 0.01)
    assert np.median(np.abs(found[2] - ours[2])) < 1e-2


def test_the_official_way_finds_our_joints(parts):
    detector, lifter, pictures, ours = parts
    same(infer_rivals.eager(detector, lifter, "cpu", CODEC)(pictures), ours)


@pytest.mark.slow
def test_onnxruntime_finds_our_joints(parts):
    for package in infer_rivals.NEEDS["onnxruntime"]:
        pytest.importorskip(package)
    detector, lifter, pictures, ours = parts
    same(infer_rivals.onnxruntime_rival(detector, lifter, 2, CODEC)(pictures), ours)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
def test_openvino_finds_our_joints(parts, batch):
    pytest.importorskip("openvino")
    detector, lifter, pictures, ours = parts
    found = infer_rivals.openvino_rival(detector, lifter, 2, batch, CODEC)(pictures[:batch])
    infer_rivals.check({"official": found, "ours": tuple(part[:batch] for part in ours)}, 0.2, 2.0)


def test_a_rival_that_finds_something_else_is_named(parts):
    ours = parts[3]
    for wrong, message in (
        ((ours[0] + 5, *ours[1:]), "ours: joints differ by 7.07 px"),
        ((ours[0], ours[1] * 2 + 1, ours[2]), "ours: scores differ"),
        ((ours[0][:1], *ours[1:]), "ours: other shapes"),
    ):
        with pytest.raises((AssertionError, ValueError), match=message):
            infer_rivals.check({"official": ours, "ours": wrong}, 0.1, 1.0)


def test_the_report_has_a_line_for_each_rival():
    info = {"inference": "w32", "batch": 8, "device": "cpu", "rival": "ours", "milliseconds_per_image": 25.04}
    info |= {"images_per_second": 40.0, "times_official": 4.5, "bar": 4.0}
    assert report.inference([info]).splitlines()[2] == "| 8 | cpu | ours | 25.0 | 40.0 | 4.50x | 4x |"
    assert report.inference([]) == ""
