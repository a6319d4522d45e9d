"""Options of the detector's step: each does what it says, and changes nothing else."""

import ast
import inspect
from dataclasses import replace

import pytest
import torch

from hpe_fast.data.store import PoseStore
from hpe_fast.models import CheckpointError
from hpe_fast.ops import OFFICIAL, render_heatmaps
from hpe_fast.skeleton import JOINTS
from hpe_fast.train import main
from hpe_fast.training import compiling, detector
from hpe_fast.training import config as config_module
from hpe_fast.training.config import PRESETS, DetectorConfig, OptimizerConfig, TrainConfig
from hpe_fast.training.detector import DetectorStage, split
from hpe_fast.training.lifting import LifterSamples, LifterStage
from hpe_fast.training.supervision import backward, hardest

CPU = torch.device("cpu")
SGD = OptimizerConfig(name="sgd", learning_rate=0.01, schedule="constant")


def config_of(batch: int = 4, detector: dict | None = None, **changes) -> TrainConfig:
    quick = replace(PRESETS["quick"].detector, image_size=64, batch_size=batch, optimizer=SGD)
    return replace(PRESETS["quick"], **{"amp": False, "detector": replace(quick, **(detector or {})), **changes})


def stage_of(store_path, config: TrainConfig) -> DetectorStage:
    store = PoseStore(store_path)
    stage = DetectorStage(config, store, store, CPU)
    stage.model.train()
    return stage


def losses(store_path, config: TrainConfig, steps: int = 4) -> list[float]:
    stage = stage_of(store_path, config)
    batches = stage.batches(0, 0)
    return [float(stage.step(next(batches))) for _ in range(steps)]


@pytest.fixture
def problem():
    """float64 heatmaps, joints on and off the map, weights 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    heatmaps = torch.randn(5, 17, 64, 64, generator=generator, dtype=torch.float64) * 0.3
    keypoints = torch.rand(5, 17, 2, generator=generator) * 300 - 20
    weights = (torch.rand(5, 17, generator=generator) < 0.8).float()
    return heatmaps.requires_grad_(), keypoints, weights


def loss_and_grad(problem, config: DetectorConfig, share: float = 1.0):
    heatmaps, keypoints, weights = problem
    loss, joints = backward(heatmaps, keypoints, weights, OFFICIAL, config, share)
    return loss, heatmaps.grad, joints


def twin_per_joint(heatmaps, keypoints, weights):
    """``[B, J]`` of the official code, twice: its factor one half is not ours."""
    target = render_heatmaps(keypoints, codec=OFFICIAL, dtype=torch.float64)
    gone = (render_heatmaps(keypoints, codec=OFFICIAL).flatten(2).amax(2) == 0).double()  # off the map: weight 0
    return (weights.double() * (1 - gone))[..., None] * (heatmaps - target).square().flatten(2)


def test_hard_joints_are_the_official_ohkm(problem):
    loss, grad, joints = loss_and_grad(problem, DetectorConfig(hard_joints=8))
    heatmaps = problem[0].detach().requires_grad_()
    per_joint = twin_per_joint(heatmaps, *problem[1:]).mean(2)
    expected = (per_joint.topk(8, dim=1).values.sum(1) / 8).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-9, atol=0, check_dtype=False)
    torch.testing.assert_close(grad, heatmaps.grad, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(joints.double(), per_joint.detach().mean(0), rtol=1e-6, atol=0)
    assert (grad.flatten(2).abs().amax(2) > 0).sum(1).max() == 8


def test_all_joints_hard_is_the_plain_loss(problem):
    loss, grad, _ = loss_and_grad(problem, DetectorConfig(hard_joints=17))
    plain = problem[0].detach().requires_grad_(), *problem[1:]
    expected, expected_grad, _ = loss_and_grad(plain, DetectorConfig())
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=0)


def test_hardest_takes_the_largest():
    values = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 5.0]])
    assert hardest(values, 1).tolist() == [[0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("hidden_weight", [0.25, 1.0])
def test_hidden_joints_have_targets_and_their_own_weight(problem, hidden_weight):
    heatmaps, keypoints, weights = problem
    loss, grad, _ = loss_and_grad(problem, DetectorConfig(hidden_weight=hidden_weight))
    twin = heatmaps.detach().requires_grad_()
    inside = ((keypoints >= -0.5) & (keypoints < 255.5)).all(2)
    assert (inside & (weights == 0)).any()
    mixed = torch.where(weights > 0, 1.0, hidden_weight * inside)
    expected = twin_per_joint(twin, keypoints, mixed).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0, check_dtype=False)
    torch.testing.assert_close(grad, twin.grad, rtol=1e-6, atol=1e-15)


def test_settings_of_the_loss_are_checked():
    with pytest.raises(ValueError, match=r"hard_joints must be in 0\.\.17, got 18"):
        DetectorConfig(hard_joints=18)
    with pytest.raises(ValueError, match="hidden_weight must be in"):
        DetectorConfig(hidden_weight=2)
    with pytest.raises(ValueError, match="ema must be in"):
        OptimizerConfig(ema=1.0)
    with pytest.raises(ValueError, match="accumulate must be positive"):
        TrainConfig(accumulate=0)


def test_a_batch_in_parts_is_the_batch():
    whole = torch.arange(6), None, torch.arange(12).view(6, 2)
    parts = split(whole, 3)
    assert [part[1] for part in parts] == [None] * 3
    assert torch.equal(torch.cat([part[2] for part in parts]), whole[2])


def test_accumulated_batches_are_one_step(store_path):
    """Where the batch's own statistics do not enter (evaluation mode), 2 x 4 pictures are 8."""
    stages = [stage_of(store_path, config_of(batch, accumulate=8 // batch)) for batch in (8, 4)]
    assert stages[0].steps_per_epoch == stages[1].steps_per_epoch
    for stage in stages:
        stage.model.eval()
    for batch, same in zip(*(stage.batches(0, 0) for stage in stages), strict=True):
        assert torch.equal(batch[6], same[6])
        assert float(stages[0].step(batch)) == pytest.approx(float(stages[1].step(same)), rel=1e-5)
    for (name, a), b in zip(stages[0].model.state_dict().items(), stages[1].model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_losses_at_several_stages_and_hard_joints_train(store_path):
    found = losses(store_path, config_of(detector={"supervise_stages": True, "hard_joints": 8}, accumulate=2), 2)
    assert all(0 < loss < 10 for loss in found)


def test_without_amp_the_losses_are_the_same_within_its_precision(store_path):
    full = losses(store_path, config_of())
    assert losses(store_path, config_of(amp=True)) == pytest.approx(full, rel=0.02)
    assert full[-1] < full[0]


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_losses(store_path, monkeypatch):
    def small(_config) -> torch.nn.Module:  # an HRNet takes a minute to compile
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 4, 4),
            torch.nn.BatchNorm2d(16),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 17, 3, padding=1),
        )

    monkeypatch.setattr(detector, "build_detector", small)
    try:
        found = losses(store_path, config_of(compile=True), 2)
    except ValueError as error:
        pytest.skip(str(error))
    assert found == pytest.approx(losses(store_path, config_of(), 2), rel=1e-3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_without_a_graph_the_losses_are_the_same(store_path):
    def on_cuda(graph: bool) -> list[float]:
        store = PoseStore(store_path)
        stage = DetectorStage(config_of(graph=graph, accumulate=2), store, store, torch.device("cuda", 0))
        stage.model.train()
        batches = (batch for epoch in range(8) for batch in stage.batches(epoch, 0))
        return [float(stage.step(next(batches))) for _ in range(8)]

    assert on_cuda(True) == pytest.approx(on_cuda(False), rel=1e-2)


def test_compiling_without_a_compiler_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"--compile needs a compiler, but neither .* nor clang\+\+ is on the PATH"):
        compiling.compiled(torch.nn.Identity(), CPU)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs Triton"):
        compiling.compiled(torch.nn.Identity(), torch.device("cuda"))


def test_tensorboard_gets_joints_and_pictures(store_path):
    class Writer:
        def __init__(self):
            self.scalars, self.pictures = {}, {}

        def add_scalar(self, name, value, step):
            self.scalars[name] = value

        def add_image(self, name, picture, step, dataformats):
            self.pictures[name] = picture.shape

    stage, writer = stage_of(store_path, config_of()), Writer()
    loss = float(stage.step(next(stage.batches(0, 0))))
    stage.log_extras(writer, 1)
    stage.illustrate(writer, 1)
    assert set(writer.scalars) == {f"hrnet_joint_loss/{joint}" for joint in JOINTS}
    assert sum(writer.scalars.values()) / 17 == pytest.approx(loss, rel=1e-5)
    assert list(writer.pictures.values()) == [(64, 64, 3)] * 4


def test_every_setting_is_explained():
    for node in ast.parse(inspect.getsource(config_module)).body:
        if isinstance(node, ast.ClassDef):
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign):
                    explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    assert explained, f"{node.name}.{field.target.id}"


def test_help_explains_the_options(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in ("--accumulate", "--sync-bn", "--compile", "hard-joints", "moving average of the weights"):
        assert words in text, words


def test_a_stage_starts_from_weights_it_is_given(store_path, tmp_path):
    """A detector and a lifter, from a file and from a run directory; without them they are random."""

    first = stage_of(store_path, config_of())
    next_batch = next(first.batches(0, 0))
    first.step(next_batch)
    first.export(tmp_path / "hrnet.safetensors")
    for given in (tmp_path, tmp_path / "hrnet.safetensors"):
        again = stage_of(store_path, config_of(detector={"start": str(given)}, seed=5))
        for name, value in first.model.state_dict().items():
            assert torch.equal(value, again.model.state_dict()[name]), name
    assert not torch.equal(stage_of(store_path, config_of(seed=5)).model.conv1.weight, first.model.conv1.weight)

    samples = LifterSamples.from_store(PoseStore(store_path), CPU)
    quick = replace(PRESETS["quick"].lifter, width=32, input="true_2d")
    lifting = LifterStage(config_of(lifter=quick), samples, samples, "few")
    lifting.export(tmp_path / "lifter.safetensors")
    fewer = LifterSamples(*(getattr(samples, field)[:4] for field in LifterSamples.__dataclass_fields__))
    again = LifterStage(config_of(lifter=replace(quick, start=str(tmp_path)), seed=5), fewer, samples, "few")
    for name, value in lifting.model.state_dict().items():  # with its statistics, not those of the four poses
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_weights_to_start_from_must_be_there_and_fit(store_path, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a run directory nor"):
        stage_of(store_path, config_of(detector={"start": "no/such/weights"}))
    stage_of(store_path, config_of()).export(tmp_path / "hrnet.safetensors")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        stage_of(store_path, config_of(detector={"start": str(tmp_path), "model": "paper"}))
