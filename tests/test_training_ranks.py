"""Several processes train one model: two ranks at batch B are one rank at 2B."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hpe_fast.train import main
from hpe_fast.training.distributed import Ranks, joined

WORKER = Path(__file__).parent / "ranks_worker.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ALONE = [sys.executable]
TRAIN = (
    *("--preset", "quick", "--detector.image-size", "64", "--detector.batch-size", "4", "--detector.epochs", "3"),
    *("--lifter.width", "32", "--lifter.batch-size", "4", "--lifter.epochs", "20", "--threads", "1"),
)


def steps(launcher, kind, folder, out, batch):
    """Losses, weights and metrics after a few steps."""
    subprocess.run([*launcher, str(WORKER), kind, str(folder), str(out), str(batch)], check=True)
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="session")
def stores(make_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    make_store(count=24).rename(folder / "train.h5")
    make_store(count=9).rename(folder / "valid.h5")  # two ranks do not divide it
    return folder


def test_a_process_alone_needs_no_others():
    alone = Ranks()
    assert alone.main
    assert alone.any(True, False) == (True, False)
    assert alone.text("runs/x") == "runs/x"
    values = torch.tensor([1.0, math.nan])
    alone.average_([values])
    assert values[0] == 1
    with joined("cpu") as ranks:
        assert ranks == alone


def test_one_device_for_several_ranks_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["--device", "cuda:1"]) == 2
    assert "--device must be auto, cpu or cuda with several ranks" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sync-hrnet", "sync-lifter"])
def test_two_ranks_are_one_with_twice_the_batch(tmp_path, stores, kind):
    two = steps(TORCHRUN, kind, stores, tmp_path / "two.pt", 4)
    one = steps(ALONE, kind, stores, tmp_path / "one.pt", 8)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    for name, value in one["state"].items():
        torch.testing.assert_close(two["state"][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=0.02), name


@pytest.mark.slow
def test_without_common_statistics_the_ranks_still_agree_to_the_bit(tmp_path, stores):
    two = steps(TORCHRUN, "hrnet", stores, tmp_path / "two.pt", 4)  # compares all ranks' weights and statistics
    one = steps(ALONE, "hrnet", stores, tmp_path / "one.pt", 8)
    assert two["losses"] == pytest.approx(one["losses"], rel=0.1)
    assert two["losses"] != one["losses"]


@pytest.mark.slow
def test_all_ranks_stop_where_one_diverges(tmp_path, stores):
    out = tmp_path / "said"
    subprocess.run([*TORCHRUN, str(WORKER), "nan-lifter", str(stores), str(out), "4"], check=True)
    first, second = (torch.load(out.with_suffix(f".{rank}"), weights_only=True) for rank in (0, 1))
    assert "lifter: the loss is nan at step 0, samples of another rank" in first
    assert "lifter: the loss is nan at step 0, samples rows [" in second


@pytest.mark.slow
def test_stopped_together_and_resumed_two_ranks_end_with_the_same_bits(tmp_path, stores):
    def start(out, *more):
        command = [*TORCHRUN, "-m", "hpe_fast.train", "--data", str(stores), *TRAIN, "--out", str(out), *more]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)

    assert start(tmp_path / "whole").wait() == 0
    metrics = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert 0 < metrics["mpjpe_mm"]["pipeline"] < 5000
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["ranks"] == 2

    broken = tmp_path / "broken"
    process = start(broken, "--checkpoint-minutes", "0.002")
    while process.poll() is None and not (broken / "hrnet.state.pt").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on
    assert process.wait() != 0
    assert (broken / "hrnet.state.pt").exists()
    assert not (broken / "metrics.json").exists()

    alone = subprocess.run(
        [sys.executable, "-m", "hpe_fast.train", "--data", str(stores), *TRAIN, "--out", str(broken), "--resume"],
        capture_output=True,
        text=True,
    )
    assert alone.returncode == 2
    assert "trained by 2 processes, cannot go on with 1" in alone.stderr
    assert start(broken, "--resume").wait() == 0
    for name in ("hrnet.safetensors", "lifter.safetensors"):
        whole, resumed = load_file(tmp_path / "whole" / name), load_file(broken / name)
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), name
    assert not [name for name in os.listdir(broken) if name.startswith(".")]
