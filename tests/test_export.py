"""Exported detectors: the same heatmaps at any batch size, what the file says about itself, and clear refusals."""

import json

import numpy as np
import pytest
import torch

import hpe_fast
from hpe_fast import models
from hpe_fast.ops import OFFICIAL
from hpe_fast.pipeline import PosePipeline, exporting
from hpe_fast.skeleton import JOINTS

CODEC = OFFICIAL.resized(64, 16)


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    detector = models.hrnet(width=8, modules=(1, 1, 1), blocks=1)
    detector.metadata = {"trained_on": "nothing"}
    return PosePipeline(detector, models.lifter(width=16), "cpu", codec=CODEC)


@pytest.fixture(scope="module")
def expected(pipeline):
    images = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        return images, pipeline.exact_detector()(images)


@pytest.mark.slow
def test_onnx(pipeline, expected, tmp_path):
    for package in exporting.NEEDED[".onnx"]:
        pytest.importorskip(package)
    import onnxruntime

    path = hpe_fast.export(pipeline, tmp_path / "model.onnx")
    assert sorted(tmp_path.iterdir()) == [path]
    session = onnxruntime.InferenceSession(path)
    images, heatmaps = expected
    for rows in (slice(5), slice(1)):
        (found,) = session.run(["heatmaps"], {"images": images[rows].numpy()})
        np.testing.assert_allclose(found, heatmaps[rows].numpy(), atol=1e-4 * float(heatmaps.abs().max()))
    told = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert told["joint_names"] == list(JOINTS)
    assert told["codec"]["image_size"] == [64, 64]
    assert told["detector"] == {"trained_on": "nothing"}


def test_program(pipeline, expected, tmp_path):
    path = hpe_fast.export(pipeline, str(tmp_path / "model.pt2"))
    extra = {"hpe_fast.json": ""}
    images, heatmaps = expected
    found = torch.export.load(path, extra_files=extra).module()(images)
    torch.testing.assert_close(found, heatmaps, rtol=1e-4, atol=1e-4 * float(heatmaps.abs().max()))
    assert json.loads(json.loads(extra["hpe_fast.json"])["joint_order"]) == "h36m17"


def test_refusals_leave_what_was_there(pipeline, tmp_path, monkeypatch):
    with pytest.raises(TypeError, match="pipeline must be a PosePipeline"):
        hpe_fast.export(torch.nn.Identity(), tmp_path / "model.pt2")
    with pytest.raises(ValueError, match=r"must end in \.onnx or \.pt2, got .*model\.pth"):
        hpe_fast.export(pipeline, tmp_path / "model.pth")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        hpe_fast.export(pipeline, tmp_path / "file" / "model.pt2")
    old = tmp_path / "old.pt2"
    old.write_text("old")
    monkeypatch.setattr(exporting, "_run_program", lambda path, images: torch.ones(len(images), 17, 16, 16))
    with pytest.raises(RuntimeError, match="heatmaps differ by"):
        hpe_fast.export(pipeline, old)
    assert old.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "old.pt2"]
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"\.onnx needs onnx and onnxscript and onnxruntime: pip install .*export"):
        hpe_fast.export(pipeline, tmp_path / "model.onnx")
