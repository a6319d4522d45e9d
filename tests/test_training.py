"""The training loop: schedules, checkpoints that lose nothing, a whole run on a small store."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hpe_fast.data.store import PoseStoreWriter
from hpe_fast.models import CheckpointError
from hpe_fast.train import main, parse
from hpe_fast.training.checkpoint import Progress, fingerprint, restore_state, save_state
from hpe_fast.training.config import (
    PRESETS,
    DetectorConfig,
    LifterConfig,
    OptimizerConfig,
    TrainConfig,
    codec_of,
    preset,
    restored,
)
from hpe_fast.training.detector import detector_metadata
from hpe_fast.training.engine import Fit, Interrupted, TrainingDiverged
from hpe_fast.training.optimizer import Update, learning_rate


class ToyStage:
    """A linear regression with dropout, so that random state matters too."""

    name = "toy"
    wait_seconds = 0.0
    steps_per_epoch = 5

    def __init__(
        self, epochs: int = 4, nan_at: int | None = None, stop_at: int | None = None, optimizer="adamw", ema=0.0
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.update = Update(OptimizerConfig(name=optimizer, learning_rate=0.01, ema=ema), self.model)
        self.epochs, self.nan_at, self.stop_at, self.steps = epochs, nan_at, stop_at, 0
        self.settings = {"epochs": epochs, "optimizer": optimizer}

    def batches(self, epoch, start):
        generator = torch.Generator().manual_seed(epoch)
        data = torch.randn(self.steps_per_epoch, 16, 4, generator=generator)
        for i in range(start, self.steps_per_epoch):
            yield (data[i],)

    def step(self, batch):
        loss = (self.model(batch[0]) - batch[0].sum(1, keepdim=True)).square().mean()
        loss.backward()
        self.update()
        self.steps += 1
        if self.steps == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss.detach() * (float("nan") if self.steps == self.nan_at else 1.0)

    def blame(self, rows):
        return f"rows with sum {rows.sum():.3f}"

    def validate(self):
        return {"weight": float(self.update.evaluated[0].weight.detach().sum())}

    def score(self, metrics):
        return -abs(metrics["weight"])

    def export(self, path):
        save_file(self.update.evaluated.state_dict(), path)


def weights(stage):
    return {name: value.clone() for name, value in stage.model.state_dict().items()}


def assert_same(a, b):
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize(("optimizer", "ema"), [("sgd", 0.0), ("adamw", 0.0), ("adamw", 0.9)])
@pytest.mark.parametrize("stop_at", [1, 5, 7, 19])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, stop_at, optimizer, ema):
    whole = ToyStage(optimizer=optimizer, ema=ema)
    history = Fit(whole, tmp_path / "whole").run().history
    broken = ToyStage(stop_at=stop_at, optimizer=optimizer, ema=ema)
    with pytest.raises(Interrupted, match=f"saved at step {stop_at}"):
        Fit(broken, tmp_path / "broken").run()
    resumed = ToyStage(optimizer=optimizer, ema=ema)
    torch.manual_seed(99)  # another process would stand somewhere else in its random numbers
    progress = Fit(resumed, tmp_path / "broken", resume=True).run()
    assert_same(weights(whole), weights(resumed))
    assert_same(whole.update.evaluated.state_dict(), resumed.update.evaluated.state_dict())
    assert progress.step == whole.epochs * whole.steps_per_epoch
    assert [h["weight"] for h in progress.history] == [h["weight"] for h in history]


@pytest.fixture(autouse=True)
def folders(tmp_path):
    for name in ("whole", "broken", "run"):
        (tmp_path / name).mkdir()


def test_a_broken_state_is_never_written_over_a_whole_one(tmp_path):
    stage = ToyStage(nan_at=8)  # between two log points
    fit = Fit(stage, tmp_path / "run", checkpoint_minutes=0.0)
    with pytest.raises(TrainingDiverged, match="step 7"):
        fit.run()
    assert Fit(ToyStage(), tmp_path / "run", resume=True).progress.step == 7


def test_broken_weights_are_not_saved_though_the_loss_is_a_number(tmp_path):
    stage = ToyStage(epochs=1)
    step = stage.step

    def breaks(batch):
        loss = step(batch)
        with torch.no_grad():
            stage.model[0].weight[0, 0] = torch.inf
        return torch.zeros_like(loss)

    stage.step = breaks
    with pytest.raises(TrainingDiverged, match="toy: the weights are no numbers after step 0"):
        Fit(stage, tmp_path / "run", checkpoint_minutes=0.0).run()
    assert not list((tmp_path / "run").iterdir())


def test_a_flipped_bit_in_a_state_is_found(tmp_path):
    Fit(ToyStage(epochs=1), tmp_path / "run").run()
    path = tmp_path / "run" / "toy.state.pt"
    whole = path.read_bytes()
    refused = 0
    for place in range(50, len(whole), len(whole) // 40):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        try:
            resumed = Fit(ToyStage(epochs=1), tmp_path / "run", resume=True)
        except CheckpointError:
            refused += 1
        else:  # in the padding between the archive's members
            assert_same(resumed.stage.model.state_dict(), model_of(whole, tmp_path).state_dict())
    assert refused > 10


def model_of(content, folder):
    (folder / "whole").mkdir(exist_ok=True)
    (folder / "whole" / "toy.state.pt").write_bytes(content)
    return Fit(ToyStage(epochs=1), folder / "whole", resume=True).stage.model


def test_a_signal_during_the_last_validation_is_heard(tmp_path):
    stage = ToyStage(epochs=1)
    validate = stage.validate

    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        return validate()

    stage.validate = interrupted
    with pytest.raises(Interrupted, match="toy: trained and saved"):
        Fit(stage, tmp_path / "run").run()
    assert Fit(ToyStage(epochs=1), tmp_path / "run", resume=True).run().epoch == 1


def test_signal_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    Fit(ToyStage(epochs=1), tmp_path / "run").run()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_loss_that_is_no_number_names_step_and_samples(tmp_path):
    stage = ToyStage(nan_at=8)
    bad = next(iter(stage.batches(1, 2)))[0].sum()
    with pytest.raises(TrainingDiverged, match=rf"toy: the loss is nan at step 7, samples rows with sum {bad:.3f}"):
        Fit(stage, tmp_path / "run").run()


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_full_disk_stops_a_run_and_leaves_the_checkpoint_of_before(tmp_path):
    import resource

    broken = ToyStage(stop_at=7)
    with pytest.raises(Interrupted):
        Fit(broken, tmp_path / "broken").run()
    path = tmp_path / "broken" / "toy.state.pt"
    before, files = path.read_bytes(), sorted(os.listdir(path.parent))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (len(before) // 2, limits[1])
    )  # a write beyond it fails, as on a full disk
    try:
        with pytest.raises(
            OSError, match=r"toy\.state\.pt: cannot write the checkpoint: .* the one of before is whole"
        ):
            Fit(ToyStage(), tmp_path / "broken", resume=True, checkpoint_minutes=1e-9).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == files
    whole = ToyStage()
    Fit(whole, tmp_path / "whole").run()
    resumed = ToyStage()
    Fit(resumed, tmp_path / "broken", resume=True).run()
    assert_same(weights(whole), weights(resumed))


def test_the_best_epoch_is_kept_beside_the_last(tmp_path):
    class Scripted(ToyStage):
        scores = (0.2, 0.7, 0.7, 0.1)

        def score(self, metrics):
            epoch = self.steps // self.steps_per_epoch
            seen[epoch] = weights(self)
            return self.scores[epoch - 1]

    seen = {}
    progress = Fit(Scripted(), tmp_path / "run").run()
    assert (progress.best_epoch, progress.best_score) == (2, 0.7)
    best, last = (load_file(tmp_path / "run" / f"toy{part}.safetensors") for part in (".best", ""))
    assert_same(best, seen[2])
    assert_same(last, seen[4])
    assert not torch.equal(best["0.weight"], last["0.weight"])


def test_the_moving_average_is_what_is_evaluated_and_saved(tmp_path):
    decay, stage = 0.75, ToyStage(ema=0.75)
    expected = {name: value.double() for name, value in weights(stage).items()}
    for steps, batch in enumerate(list(stage.batches(0, 0)) + list(stage.batches(1, 0)), start=1):
        stage.step(batch)
        share = max(1 - decay, 9 / (9 + steps))
        for name, value in weights(stage).items():
            expected[name] += share * (value.double() - expected[name])
    average = stage.update.evaluated.state_dict()
    for name in ("0.weight", "1.running_var", "3.bias"):
        torch.testing.assert_close(average[name].double(), expected[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(average[name], weights(stage)[name])
    assert average["1.num_batches_tracked"] == 10
    progress = Fit(stage, tmp_path / "run").run()
    assert_same(load_file(tmp_path / "run" / "toy.safetensors"), stage.update.evaluated.state_dict())
    assert progress.history[-1]["weight"] == float(stage.update.evaluated[0].weight.sum())


def test_states_that_do_not_fit_are_refused(tmp_path):
    stage = ToyStage()
    path = tmp_path / "toy.state.pt"
    with pytest.raises(CheckpointError, match="no training state"):
        restore_state(path, stage.model, stage.update, stage.settings)
    save_state(path, stage.model, stage.update, Progress(), stage.settings)
    with pytest.raises(CheckpointError, match="epochs was 4, now 5"):
        restore_state(path, stage.model, stage.update, {**stage.settings, "epochs": 5})
    with pytest.raises(CheckpointError, match="does not fit this model"):
        restore_state(path, nn.Linear(1, 1), stage.update, stage.settings)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        restore_state(path, stage.model, stage.update, stage.settings)
    torch.save({"version": 99}, path)
    with pytest.raises(CheckpointError, match="version 99"):
        restore_state(path, stage.model, stage.update, stage.settings)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


def test_a_malicious_state_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    path = tmp_path / "toy.state.pt"
    torch.save({"version": 1, "model": Bomb()}, path)
    stage = ToyStage()
    with pytest.raises(CheckpointError, match="not a training state"):
        restore_state(path, stage.model, stage.update, stage.settings)
    assert not (tmp_path / "exploded").exists()


def test_schedules():
    one = OptimizerConfig(learning_rate=2.0, warmup=0.1)
    rates = [learning_rate(one, step, 100) for step in range(100)]
    assert rates[9] == max(rates) == 2.0
    assert np.all(np.diff(rates[:10]) > 0)
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[-1] < 0.01
    step = OptimizerConfig(learning_rate=1.0, schedule="step", milestones=(0.5, 0.75))
    assert [learning_rate(step, s, 8) for s in (0, 3, 4, 5, 6, 7)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert learning_rate(OptimizerConfig(schedule="constant", learning_rate=3.0), 7, 8) == 3.0


def test_settings_without_sense_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--detector.epochs", "0"])
    assert stop.value.code == 2
    assert "epochs must be positive, got 0" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        OptimizerConfig(learning_rate=-1.0)
    for kind, bad, message in (
        (TrainConfig, {"threads": -1}, "threads must be at least 0, got -1"),
        (TrainConfig, {"seed": 1 << 31}, "seed must be in 0"),
        (OptimizerConfig, {"momentum": 5.0}, "momentum must be in"),
        (OptimizerConfig, {"weight_decay": -1.0}, "weight_decay must not be negative"),
        (OptimizerConfig, {"warmup": 2.0}, "warmup must be in"),
        (OptimizerConfig, {"milestones": (0.5, 3.0)}, "milestones must be shares"),
        (DetectorConfig, {"model": "resnet50", "image_size": 200}, "multiple of 32 for resnet50, got 200"),
        (LifterConfig, {"dropout": 1.0}, "dropout must be in"),
        (LifterConfig, {"virtual_views": 2.0}, "virtual_views must be in"),
        (LifterConfig, {"jitter": float("nan")}, "jitter must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(**bad)


def test_presets_are_what_the_paper_and_the_official_code_did():
    paper, official = PRESETS["paper"], PRESETS["official"]
    assert (paper.detector.epochs, paper.detector.batch_size) == (12, 32)
    assert (paper.lifter.epochs, paper.lifter.batch_size) == (180, 512)
    for optimizer in (paper.detector.optimizer, paper.lifter.optimizer):
        assert (optimizer.name, optimizer.learning_rate, optimizer.momentum) == ("sgd", 0.003, 0.9)
    assert codec_of(paper.detector).amplitude == pytest.approx(31.83, abs=0.01)
    assert official.detector.epochs == 210
    for name in PRESETS:
        assert preset(name).preset == name
    with pytest.raises(ValueError, match="preset must be one of"):
        preset("slow")


@pytest.fixture(scope="session")
def small_dataset(make_store, tmp_path_factory):
    """A folder with two pose stores, as --data takes it."""
    folder = tmp_path_factory.mktemp("dataset")
    shutil.copy(make_store(count=24), folder / "train.h5")
    shutil.copy(make_store(count=9), folder / "valid.h5")
    return folder


def small_config(tmp_path, train_store, **changes):
    quick = PRESETS["quick"]
    return replace(
        quick,
        data=train_store,
        out=tmp_path / "run",
        detector=replace(quick.detector, batch_size=4, epochs=2, image_size=64),
        lifter=replace(quick.lifter, width=32, batch_size=8, epochs=3),
        **changes,
    )


def test_a_resumed_run_needs_no_settings_again(tmp_path, monkeypatch):
    (tmp_path / "run" / "config.json").write_text(
        json.dumps({"version": "0", "ranks": 1, "preset": "paper", "data": "d", "detector": {"epochs": 3}})
    )
    config = parse(["--resume", "--out", str(tmp_path / "run"), "--threads", "1"])
    assert (config.preset, config.data, config.detector.epochs, config.threads) == ("paper", Path("d"), 3, 1)
    assert config.resume
    assert config.out == tmp_path / "run"
    (tmp_path / "run" / "config.json").write_text("[]")
    assert main(["--resume", "--out", str(tmp_path / "run")]) == 2


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_settings_come_back_from_their_record(name):
    record = json.loads(json.dumps(asdict(PRESETS[name]), default=str))
    assert restored({"version": "0.1.0", **record}) == PRESETS[name]


def test_a_detector_is_used_as_it_was_trained(tmp_path, small_dataset, capsys):
    from hpe_fast.models import hrnet, lifter, save_checkpoint

    run, paper = tmp_path / "run", replace(PRESETS["paper"].detector, image_size=64)
    model = hrnet(width=8, modules=(1, 1, 1), blocks=1)
    save_checkpoint(run / "hrnet.safetensors", lifter(width=8))
    assert main(["--stage", "lifter", "--out", str(run), "--data", str(small_dataset)]) == 2
    assert "hrnet.safetensors: holds a lifter" in capsys.readouterr().err
    save_checkpoint(run / "hrnet.safetensors", model, detector_metadata(paper, "here"))
    arguments = ["--data", str(small_dataset), "--preset", "quick", "--stage", "lifter", "--out", str(run)]
    assert main(arguments) == 2
    assert "trained with codec" in capsys.readouterr().err


def test_other_data_are_not_gone_on_with():
    assert fingerprint(np.arange(3.0)) != fingerprint(np.arange(3.0)[::-1])


def test_a_start_that_failed_can_be_repeated(tmp_path, small_dataset, monkeypatch, capsys):
    import hpe_fast.training.run as run

    def fails(*_):
        raise ImportError("no DALI here")

    monkeypatch.setattr(run, "DetectorStage", fails)
    arguments = ["--data", str(small_dataset), "--preset", "quick", "--out", str(tmp_path / "run")]
    for _ in range(2):
        assert main(arguments) == 2
        assert "error: no DALI here" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


def test_poses_are_missed_before_the_first_stage_not_after_it(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    for split in ("train", "valid"):
        with PoseStoreWriter(tmp_path / "data" / f"{split}.h5", (64, 64)) as writer:
            writer.append(None, np.zeros((17, 2)), np.ones(17))
    arguments = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert "train.h5: no row has 3D joints" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_whole_run_writes_what_it_promises(tmp_path, small_dataset):
    from hpe_fast.training.run import train

    metrics = train(small_config(tmp_path, small_dataset))
    run = tmp_path / "run"
    for name in (
        "config.json",
        "train.log",
        "curves.png",
        "predictions.png",
        "table.txt",
        *(f"{stage}{part}.safetensors" for stage in ("hrnet", "lifter") for part in ("", ".best")),
    ):
        assert (run / name).stat().st_size > 0, name
    assert json.loads((run / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    for key in ("mpjpe_mm", "pa_mpjpe_mm"):
        assert set(metrics[key]) == {"mean_pose", "lifter_true_2d", "pipeline"}
        assert all(0 < value < 5000 for value in metrics[key].values())
    for key in ("pck2d_02_torso", "epe2d_px", "hrnet_img_per_s", "lifter_samples_per_s", "data_wait_share", "seconds"):
        assert np.isfinite(metrics[key]), key
    again = tmp_path / "again.json"
    from hpe_fast.evaluate import main as evaluate

    assert evaluate(["--data", str(small_dataset / "valid.h5"), "--weights", str(run), "--json", str(again)]) == 0
    measured = json.loads(again.read_text())
    for key in ("mpjpe_mm", "pa_mpjpe_mm", "pck2d_02_torso", "epe2d_px"):
        assert metrics[key] == pytest.approx(measured[key], rel=1e-3), key


@pytest.mark.slow
def test_the_command_line_names_what_is_wrong(tmp_path, small_dataset):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "hpe_fast.train", *arguments], capture_output=True, text=True, cwd=tmp_path
        )

    missing = run("--data", "nowhere")
    assert missing.returncode == 2
    assert "nowhere" in missing.stderr
    empty = run("--resume", "--out", "empty")
    assert empty.returncode == 2
    assert "empty holds no run" in empty.stderr
    nothing = run("--resume")
    assert nothing.returncode == 2
    assert "no run under runs/" in nothing.stderr
    cuda = run("--data", str(small_dataset), "--device", "cuda:9")
    assert cuda.returncode == 2
    assert "cuda:9" in cuda.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.slow
def test_killed_twenty_times_and_resumed_the_weights_are_the_same(tmp_path, small_dataset):
    """SIGKILL at random moments, of starting up as well as of training, saving and validating."""
    command = [
        *(sys.executable, "-m", "hpe_fast.train", "--data", str(small_dataset), "--preset", "quick"),
        *("--detector.image-size", "64", "--detector.batch-size", "4", "--detector.epochs", "8"),
        *("--lifter.width", "32", "--lifter.batch-size", "8", "--lifter.epochs", "150"),
        *("--detector.optimizer.ema", "0.9", "--checkpoint-minutes", "0.002", "--threads", "1"),
    ]
    broken = tmp_path / "broken"

    def run(out, *more):
        return subprocess.Popen(
            [*command, "--out", str(out), *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def log_size():
        log = broken / "train.log"
        return log.stat().st_size if log.exists() else 0

    assert run(tmp_path / "whole").wait() == 0
    random = np.random.default_rng(0)
    kills = 0
    while kills < 20:
        before = log_size()
        process = run(broken, *(["--resume"] if (broken / "config.json").exists() else []))
        if kills % 4:  # else from the start of the process
            while process.poll() is None and log_size() == before:
                time.sleep(0.02)
        time.sleep(1.5 * random.random())
        assert process.poll() is None, f"ended after {kills} kills: too short a run to be killed so often"
        process.kill()
        process.wait()
        kills += 1
    assert run(broken, "--resume").wait() == 0
    for name in ("hrnet.safetensors", "lifter.safetensors", "hrnet.best.safetensors", "lifter.best.safetensors"):
        assert_same(load_file(broken / name), load_file(tmp_path / "whole" / name))


@pytest.mark.slow
def test_damaged_pictures_stop_a_run_or_are_left_out_and_listed(tmp_path, make_store):
    from hpe_fast.data.schema import DataError
    from hpe_fast.training.run import train

    folder = tmp_path / "dataset"
    folder.mkdir()
    shutil.copy(make_store(count=24), folder / "train.h5")
    shutil.copy(make_store(count=9), folder / "valid.h5")
    with h5py.File(folder / "train.h5") as file:
        at = file["jpeg"].id.get_offset() + int(file["offset"][5]) + 300
    damaged = bytearray((folder / "train.h5").read_bytes())
    damaged[at] ^= 0xFF
    (folder / "train.h5").write_bytes(damaged)
    with pytest.raises(DataError, match="row 5"):
        train(small_config(tmp_path, folder, stage="hrnet"))
    metrics = train(replace(small_config(tmp_path, folder, stage="hrnet", skip_bad=True), out=tmp_path / "without"))
    assert np.isfinite(metrics["epe2d_px"])
    log = (tmp_path / "without" / "train.log").read_text()
    assert "left out 1 damaged pictures" in log
    assert "row 5" in log
