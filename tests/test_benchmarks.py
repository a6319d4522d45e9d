"""The benchmarks' own parts: the timer, the restated official code against the operators, and the report."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

# Last, so that what is installed comes first.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import machine, official, ops_bars, report
from benchmarks.cases import all_specs, assert_close, make_case, rival_names
from benchmarks.timing import ReplayClock, middle, ratio, round_robin
from hpe_fast.ops import OFFICIAL, decode_heatmaps, heatmap_mse_loss_and_grad, prepare_images, render_heatmaps
from hpe_fast.ops import PAPER_NORMALIZATION as PAPER

ROOT = Path(__file__).parents[1]


@pytest.fixture
def joints():
    """Keypoints on and beyond every border of the map, and weights on both sides of the official gate."""
    random = np.random.default_rng(0)
    keypoints = random.uniform(-40, 300, (6, 17, 2)).astype(np.float32)
    keypoints[0, :4] = [[-26, 100], [-25.9, 100], [-28, 100], [-30, 100]]  # where a window just touches the map
    return keypoints, random.choice([0, 0.4, 1], (6, 17)).astype(np.float32)


def targets(joints):
    return official.generate_targets(*joints, OFFICIAL.stride, OFFICIAL.heatmap_size)


def test_timer_tells_slow_from_fast():
    series = round_robin({"slow": lambda: time.sleep(0.006), "fast": lambda: time.sleep(0.002)}, seconds=0.05)
    assert len(series["slow"]) == len(series["fast"]) >= 5
    assert middle(series, "slow") >= 0.006
    assert 1.5 < ratio(series, "slow", "fast") < 6


def test_ratio_is_of_the_same_round():
    drifting = {"a": [1.0, 10.0, 100.0], "b": [2.0, 20.0, 200.0]}
    assert ratio(drifting, "b", "a") == 2.0
    assert middle(drifting, "a") == 10.0


def test_replayed_durations_are_read_as_they_were_measured():
    clock = ReplayClock()
    for durations in ([0.5, 0.25], [2.0]):
        clock.load(durations)
        found = []
        for _ in durations:
            began = clock.read()
            found.append(clock.read() - began)
        assert found == durations


def test_official_target_is_rendered(joints):
    keypoints, weights = map(torch.from_numpy, joints)
    expected, _ = targets(joints)
    torch.testing.assert_close(render_heatmaps(keypoints, weights), torch.from_numpy(expected), rtol=1e-6, atol=1e-7)
    assert expected.any(axis=(2, 3)).mean() > 0.1


def test_official_loss_is_half_of_ours(joints):
    joints = joints[0], np.round(joints[1])  # the official weight is squared: equal for 0 and 1
    heatmaps = np.random.default_rng(1).normal(0, 0.3, (6, 17, 64, 64)).astype(np.float32)
    loss, grad = official.joints_mse_loss(heatmaps, *targets(joints))
    ours, our_grad, _ = heatmap_mse_loss_and_grad(torch.from_numpy(heatmaps), *map(torch.from_numpy, joints))
    assert 2 * loss == pytest.approx(ours.item(), rel=1e-5)
    torch.testing.assert_close(our_grad, torch.from_numpy(2 * grad), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("levels", [3, 1000])  # with three values there are ties everywhere, and maxima on borders
def test_official_predictions_are_decoded(levels):
    heatmaps = np.random.default_rng(2).integers(-levels, levels, (4, 17, 9, 7)).astype(np.float32)
    heatmaps[0, 0] = -1  # no positive maximum
    codec = OFFICIAL.resized((36, 28), (9, 7))
    coords, scores = decode_heatmaps(torch.from_numpy(heatmaps), codec, refine="quarter")
    expected, values = official.final_predictions(heatmaps, codec.stride)
    np.testing.assert_array_equal(coords.numpy(), expected)
    np.testing.assert_array_equal(scores.numpy(), values)


def test_official_pictures_are_prepared():
    images = np.random.default_rng(3).integers(0, 256, (2, 5, 6, 3), np.uint8)
    expected = official.normalized(images, PAPER.mean, PAPER.std)
    np.testing.assert_allclose(prepare_images(torch.from_numpy(images), PAPER).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("spec", all_specs([2], "cpu"), ids=str)
def test_rivals_agree(spec):
    case = make_case(spec, compiled=False)
    assert list(case.rivals) == rival_names(spec, compiled=False)
    case.check()
    assert case.traffic > 0


def test_a_rival_that_differs_is_found():
    with pytest.raises(AssertionError, match="numpy: off by"):
        assert_close(torch.tensor([1.0, 1.1]), torch.tensor([1.0, 1.0]), 1e-3, "numpy")
    with pytest.raises(AssertionError, match="largest value is 0"):
        assert_close(torch.zeros(2), torch.zeros(2), 1e-3, "zeros")
    with pytest.raises(AssertionError, match="off by nan"):
        assert_close(torch.full((2,), torch.nan), torch.ones(2), 1e-3, "nan")


def test_a_missed_bar_is_said():
    assert ops_bars.Bar("render", 1.5, 1.2, at_least=False).row() == "| render | <= 1.5 | 1.20 | yes |  |"
    assert "**no**" in ops_bars.Bar("decode", 4, 3.9, at_least=True).row()


def test_report_prints_what_was_measured(tmp_path):
    info = {"operator": "decode", "batch": 32, "dtype": "float32", "layout": "nchw", "device": "cpu"}
    info |= {"milliseconds": 0.1, "times_ours": 1.0, "share_of_limit": 0.8, "machine": machine.describe("cpu")}
    runs = [info | {"rival": "ours"}, info | {"rival": "eager", "times_ours": 4.25}]
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps({"benchmarks": [{"extra_info": run} for run in runs]}))
    text = report.render(report.read(path))
    assert "| decode | 32 | float32 | nchw | 0.100 | 80% | 4.2x |" in text
    assert torch.__version__ in text


def test_report_of_another_file_is_an_error(tmp_path):
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json: no result"):
        report.read(path)


@pytest.mark.slow
def test_benchmarks_run_with_pytest(tmp_path):
    path = tmp_path / "benchmarks.json"
    options = ["--benchmark-only", f"--benchmark-json={path}", "--batches=2", "--seconds=0.01", "--device=cpu"]
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", "-k", "decode-2-float32"]
    subprocess.run([*command, *options], cwd=ROOT, check=True, capture_output=True)
    rivals = [info["rival"] for info in report.read(path)]
    assert rivals == ["ours", "eager", "official", "limit", "ours", "eager", "limit"]
