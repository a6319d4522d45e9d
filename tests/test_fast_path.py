"""The fast path gives what the exact one gives: packed layers, bfloat16 and its check, the bundled weights."""

import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from hpe_fast import models
from hpe_fast.data.sample import bundled_sample
from hpe_fast.data.store import PoseStore
from hpe_fast.ops import OFFICIAL
from hpe_fast.pipeline import PosePipeline, fold_batchnorm, load
from hpe_fast.pipeline.packing import PackedConv, can_pack, pack

CODEC = OFFICIAL.resized(64, 16)
NETWORKS = {
    "hrnet": lambda: models.hrnet(width=8, modules=(1, 2, 1), blocks=1),
    "basic": lambda: models.simple_baseline(18),
    "bottleneck": lambda: models.simple_baseline(50),
}


def folded(name):
    torch.manual_seed(0)
    model = NETWORKS[name]().train()
    with torch.no_grad():
        model(torch.randn(8, 3, 64, 64))  # statistics that are not those of a fresh BatchNorm
    return fold_batchnorm(model).to(memory_format=torch.channels_last)


needs_packing = pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN operators")


@needs_packing
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_packed_networks_compute_the_same(name, batch):
    model = folded(name)
    images = torch.randn(batch, 3, 64, 64).to(memory_format=torch.channels_last)
    packed = pack(model)
    with torch.no_grad():
        expected, found = model(images), packed(images)
    assert sum(isinstance(module, PackedConv) for module in packed.modules()) > 10
    assert not any(isinstance(module, PackedConv) for module in model.modules())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@needs_packing
def test_batch_norms_that_could_not_be_folded_stay():
    block = models.resnet.BasicBlock(8, 8).eval()
    images = torch.randn(1, 8, 16, 16).to(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(pack(block)(images), block(images))


class Overflowing(nn.Module):
    """Exact in float32; bfloat16 has too few digits for what it subtracts."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 17, 4, 4)

    def forward(self, images):
        return (self.first(images) + 1000) - 1000


def test_bfloat16_that_loses_the_heatmaps_is_not_used(monkeypatch):
    monkeypatch.setattr("hpe_fast.pipeline.pipeline.fast_dtype", lambda device: torch.bfloat16)
    with pytest.warns(UserWarning, match=r"bfloat16 moves this detector's heatmaps by .*% of their spread"):
        careful = PosePipeline(Overflowing(), models.lifter(width=16), "cpu", codec=CODEC)
    assert careful.dtype == torch.float32
    asked = PosePipeline(Overflowing(), models.lifter(width=16), "cpu", codec=CODEC, dtype=torch.bfloat16)
    assert asked.dtype == torch.bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector = models.hrnet(width=8, modules=(1, 1, 1), blocks=1)
        assert PosePipeline(detector, models.lifter(width=16), "cpu", codec=CODEC).dtype == torch.bfloat16


@needs_packing
def test_packed_networks_serve_several_threads():
    torch.manual_seed(0)
    detector = models.hrnet(width=8, modules=(1, 1, 1), blocks=1)
    pipeline = PosePipeline(detector, models.lifter(width=16), "cpu", codec=CODEC, dtype=torch.bfloat16)
    pictures = np.random.default_rng(0).integers(0, 256, (8, 2, 64, 64, 3), dtype=np.uint8)
    expected = [pipeline(picture, return_heatmaps=True).heatmaps for picture in pictures]
    found = [None] * len(pictures)

    def work(i):
        found[i] = pipeline(pictures[i], return_heatmaps=True).heatmaps

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.slow
def test_the_fast_path_moves_the_bundled_weights_keypoints_little():
    """Less than a tenth of a pixel of the picture given, on average, with real weights on real pictures."""
    store = PoseStore(bundled_sample()["valid"])
    pictures = np.stack([store.image(row) for row in range(len(store))])
    exact, fast = (load("default", "cpu", dtype=dtype)(pictures) for dtype in (torch.float32, torch.bfloat16))
    shift = (exact.keypoints - fast.keypoints).norm(dim=-1)
    print(f"mean shift {shift.mean():.4f} px, median {shift.median():.4f}, largest {shift.max():.2f}")
    assert 0 < shift.mean() < 0.1


def test_what_a_foreign_lifter_lacks_is_said():
    known = models.lifter(width=16)
    weights = {k: v for k, v in known.state_dict().items() if not k.startswith(("input_", "output_"))}
    foreign = models.load_checkpoint(weights)
    detector = models.hrnet(width=8, modules=(1, 1, 1), blocks=1)
    with pytest.raises(ValueError, match="lifter was trained for joints in 'unknown' order"):
        PosePipeline(detector, foreign, "cpu", codec=CODEC)
    foreign.metadata["joint_order"] = "h36m17"
    with pytest.warns(UserWarning, match="lifter: the normalisation statistics are not in this file"):
        PosePipeline(detector, foreign, "cpu", codec=CODEC)
