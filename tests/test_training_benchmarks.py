"""The training benchmarks' own parts: the plain step computes what ours does, and the comparison runs."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

# Last, so that what is installed comes first.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import convergence, official
from benchmarks.train_rivals import PlainDetector, joints_mse_loss, options_here, plain_lifter
from hpe_fast.data.store import PoseStore
from hpe_fast.training.config import PRESETS, OptimizerConfig
from hpe_fast.training.detector import DetectorStage
from hpe_fast.training.lifting import LifterSamples, LifterStage

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SGD = OptimizerConfig(name="sgd", learning_rate=0.01, schedule="constant")


def config_of():
    quick = PRESETS["quick"]
    detector = replace(quick.detector, image_size=64, batch_size=4, optimizer=SGD)
    lifter = replace(quick.lifter, width=64, dropout=0, batch_size=4, input="true_2d", optimizer=SGD)
    return replace(quick, amp=False, detector=detector, lifter=lifter)


def losses(stage, steps=3):
    stage.model.train()
    batches = stage.batches(0, 0)
    return [float(stage.step(next(batches))) for _ in range(steps)]


def test_the_official_loss_in_torch_is_the_one_in_numpy():
    random = np.random.default_rng(0)
    output, target = random.normal(size=(2, 3, 17, 8, 8)).astype(np.float32)
    weight = random.integers(0, 2, (3, 17)).astype(np.float32)
    expected, _ = official.joints_mse_loss(output, target, weight)
    found = joints_mse_loss(*(torch.from_numpy(a) for a in (output, target, weight)))
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"fused_loss": True}, {"fused_loss": True, "options": ("channels_last",)}])
def test_the_plain_detector_trains_as_ours(store_path, options):
    store = PoseStore(store_path)
    ours = losses(DetectorStage(config_of(), store, store, CPU))
    assert losses(PlainDetector(config_of(), store, store, CPU, **options)) == pytest.approx(ours, rel=1e-3)


def test_the_plain_lifter_trains_as_ours(store_path):
    samples = LifterSamples.from_store(PoseStore(store_path), CPU)
    config = replace(config_of(), lifter=replace(config_of().lifter, fused=True))
    ours = losses(LifterStage(config, samples, samples, "test"))
    assert losses(plain_lifter(config, samples, samples)) == pytest.approx(ours, rel=1e-3)


def test_options_of_a_cpu_have_no_graph():
    assert "graph" not in options_here("cpu")
    assert {"channels_last", "bf16"} <= set(options_here("cpu"))


def test_a_difference_is_told_in_units_of_the_noise():
    runs = [
        {"arm": arm, "seed": seed, "pck2d_02_torso": 0.5, "epe2d_px": 3.0, "mpjpe_mm": base + seed}
        | {"training_seconds": {"detector": 2.0, "lifter": 1.0}}
        for arm, base in (("fast", 101.0), ("plain", 100.0))
        for seed in range(3)
    ]
    report = {"settings": {"seeds": 3}, "machine": convergence.machine.describe("cpu"), "runs": runs}
    report["summary"] = convergence.summary(runs)
    assert report["summary"]["fast"]["mpjpe_mm"] == {"mean": 102.0, "spread": 1.0}
    text = convergence.markdown(report)
    assert "| MPJPE, mm | 102 ± 1 | 101 ± 1 | +1 | +1.0 |" in text
    assert "| training, s | 3 | 3 |" in text


@pytest.mark.slow
def test_convergence_runs(tmp_path, make_store):
    folder = tmp_path / "data"
    folder.mkdir()
    make_store(count=24).rename(folder / "train.h5")
    make_store(count=9).rename(folder / "valid.h5")
    out = tmp_path / "report.json"
    sizes = ("--seeds", "2", "--epochs", "1", "--lifter-epochs", "2", "--lifter-width", "32", "--image-size", "64")
    command = [sys.executable, "-m", "benchmarks.convergence", "--out", str(out), "--data", str(folder), *sizes]
    # The small store has fewer rows than a batch of the preset.
    subprocess.run([*command, "--batch-size", "8"], cwd=ROOT, check=True, capture_output=True)
    report = json.loads(out.read_text())
    assert [(run["arm"], run["seed"]) for run in report["runs"]] == [
        ("fast", 0),
        ("plain", 0),
        ("fast", 1),
        ("plain", 1),
    ]
    assert 0 < report["summary"]["plain"]["mpjpe_mm"]["mean"] < 5000
    assert "MPJPE" in out.with_suffix(".md").read_text()
