"""A training step beside the plain one: whole, in its stages, and each option's worth; and the lifter's epoch.

``--batches 8`` for small machines (default: 32 on a CPU, 32 and 128 on a GPU); ``--seconds`` for each comparison.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from benchmarks import machine
from benchmarks.timing import CLOCK, Series, middle, ratio, round_robin
from benchmarks.train_rivals import PlainDetector, options_here, plain_lifter
from hpe_fast.data.sample import bundled_sample
from hpe_fast.data.store import PoseStore
from hpe_fast.training.config import PRESETS, DetectorConfig, OptimizerConfig, TrainConfig
from hpe_fast.training.detector import DetectorStage
from hpe_fast.training.lifting import LifterSamples, LifterStage

BATCHES = {"cpu": [32], "cuda": [32, 128]}
STAGES = ("forward", "loss", "backward", "update")
BAR = {"cpu": 2.5, "cuda": 4.0}
LIFTER_BAR_SECONDS = 25.0
#: The paper's training set, and steps timed at a time.
LIFTER_POSES, LIFTER_STEPS = 312188, 10


def _option(request: pytest.FixtureRequest, name: str, default: object) -> object:
    value = request.config.getoption(name)
    return default if value is None else value


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device = metafunc.config.getoption("--device")
    if "batch" in metafunc.fixturenames:
        metafunc.parametrize("batch", metafunc.config.getoption("--batches") or BATCHES[device])
    if "option" in metafunc.fixturenames:
        metafunc.parametrize("option", ["none", *options_here(device), "all"])


def settings(batch: int, **changes: object) -> TrainConfig:
    """HRNet-W32 at 256 pixels; the bundled sample's pictures are enlarged to it."""
    detector = DetectorConfig(batch_size=batch, optimizer=OptimizerConfig(schedule="constant"))
    return replace(PRESETS["official"], detector=detector, autotune=True, **changes)


def build(kind: type[DetectorStage], batch: int, device: str, **options: object) -> DetectorStage:
    store = PoseStore(bundled_sample()["train"])
    torch.backends.cudnn.benchmark = True
    stage = kind(settings(batch), store, store, torch.device(device), **options)
    stage.model.train()
    return stage


def one_batch(stage: DetectorStage) -> tuple[torch.Tensor | None, ...]:
    """A batch of its own, which the loader does not write over."""
    return tuple(None if t is None else t.clone() for t in next(stage.batches(0, 0)))


def report(benchmark, group: str, seconds: list[float], **facts: object) -> None:
    benchmark.group = group
    benchmark.extra_info.update(facts)
    CLOCK.load(seconds)
    benchmark.pedantic(lambda: None, rounds=len(seconds))


_measured: dict[tuple, Series] = {}


def measured(key: tuple, calls: Callable[[], dict[str, Callable]], request: pytest.FixtureRequest) -> Series:
    """Rivals in turns, once for all the tests that report them; only the last comparison's networks stay in memory."""
    if key not in _measured:
        device = request.config.getoption("--device")
        _measured[key] = round_robin(calls(), device, _option(request, "--seconds", 20.0), least=3)
    return _measured[key]


@pytest.mark.benchmark(timer=CLOCK.read)
@pytest.mark.parametrize("rival", ["ours", "plain"])
def test_step(rival, batch, request, benchmark):
    """The whole step on one batch that is there: ours as ``hpe_fast.train`` runs it."""
    device = request.config.getoption("--device")

    def calls() -> dict[str, Callable]:
        stages = {"ours": build(DetectorStage, batch, device), "plain": build(PlainDetector, batch, device)}
        batches = {name: one_batch(stage) for name, stage in stages.items()}
        for name, stage in stages.items():  # a graph is captured after the first three
            for _ in range(4 if device == "cuda" else 1):
                stage.step(batches[name])
        return {name: lambda name=name: stages[name].step(batches[name]) for name in stages}

    series = measured(("step", batch), calls, request)
    report(
        benchmark,
        f"step-w32-{batch}-{device}",
        series[rival],
        training="step",
        model="w32",
        batch=batch,
        device=device,
        rival=rival,
        milliseconds=1e3 * middle(series, rival),
        images_per_second=batch / middle(series, rival),
        times_ours=ratio(series, rival, "ours"),
        bar=BAR[device],
        machine=machine.describe(device),
    )


@pytest.mark.benchmark(timer=CLOCK.read)
def test_option(option, batch, request, benchmark):
    """Each option alone on the plain step with the fused loss, and all of them together."""
    device = request.config.getoption("--device")
    chosen = {"none": (), "all": tuple(options_here(device))}.get(option, (option,))

    def calls() -> dict[str, Callable]:
        stages = {
            "without": build(PlainDetector, batch, device, fused_loss=True),
            "with": build(PlainDetector, batch, device, fused_loss=True, options=chosen),
        }
        batches = {name: one_batch(stage) for name, stage in stages.items()}
        for name, stage in stages.items():
            for _ in range(4 if device == "cuda" else 1):
                stage.step(batches[name])
        return {name: lambda name=name: stages[name].step(batches[name]) for name in stages}

    series = measured(("option", option, batch), calls, request)
    report(
        benchmark,
        f"options-w32-{batch}-{device}",
        series["with"],
        training="option",
        option=option,
        batch=batch,
        device=device,
        milliseconds=1e3 * middle(series, "with"),
        times_faster=ratio(series, "without", "with"),
        machine=machine.describe(device),
    )


class Marks:
    """When each stage of a step ended, on the device's own clock."""

    def __init__(self, device: str) -> None:
        self._cuda, self._marks = device == "cuda", []

    def __call__(self, name: str) -> None:
        mark = time.perf_counter()
        if self._cuda:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        self._marks.append((name, mark))

    def seconds(self) -> dict[str, float]:
        if self._cuda:
            torch.cuda.synchronize()
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return {name: a.elapsed_time(b) / 1e3 if self._cuda else b - a for (_, a), (name, b) in pairs}


def divided_step(stage: DetectorStage, batch: tuple, device: str) -> dict[str, float]:
    """Seconds of each stage of one eager step; the loss is over when the network's output has its gradient."""
    images, keypoints, weights, color, noise_std, sample_ids, _ = batch
    mark = Marks(device)
    mark("start")
    heatmaps = stage._forward(images, color, noise_std, sample_ids)
    mark("forward")
    heatmaps.register_hook(lambda grad: mark("loss"))
    stage._backward(heatmaps, keypoints, weights)
    mark("backward")
    stage.update()
    mark("update")
    return mark.seconds()


@pytest.mark.benchmark(timer=CLOCK.read)
@pytest.mark.parametrize("rival", ["ours", "plain"])
def test_stages(rival, batch, request, benchmark):
    """Where the time of a step goes, data included; without a graph, which has no inside."""
    device, limit = request.config.getoption("--device"), _option(request, "--seconds", 20.0)
    stage = build(DetectorStage if rival == "ours" else PlainDetector, batch, device)
    batches = _endless(stage)
    divided_step(stage, next(batches), device)
    rows, began = [], time.perf_counter()
    waited = stage.wait_seconds
    while time.perf_counter() - began < limit or len(rows) < 2:
        rows.append(divided_step(stage, next(batches), device))
    wait = (stage.wait_seconds - waited) / len(rows)
    means = {name: sum(row[name] for row in rows) / len(rows) for name in STAGES}
    whole = {"data wait": wait, **means}
    total = sum(whole.values())
    report(
        benchmark,
        f"stages-w32-{batch}-{device}",
        [sum(row.values()) for row in rows],
        training="stages",
        batch=batch,
        device=device,
        rival=rival,
        milliseconds={name: 1e3 * seconds for name, seconds in whole.items()},
        share={name: seconds / total for name, seconds in whole.items()},
        images_per_second=batch / total,
        machine=machine.describe(device),
    )


def _endless(stage: DetectorStage | LifterStage) -> Iterator[tuple]:
    epoch = 0
    while True:
        yield from stage.batches(epoch, 0)
        epoch += 1


def people(count: int, device: str) -> LifterSamples:
    """Random poses in front of a camera."""
    generator = torch.Generator().manual_seed(0)
    pose3d = torch.randn(count, 17, 3, generator=generator) * 300 + torch.tensor([0.0, 0.0, 5000.0])
    keypoints = pose3d[..., :2] / pose3d[..., 2:] * 4 + 0.5
    samples = (keypoints, pose3d, torch.full((count, 4), float("nan")), keypoints)
    return LifterSamples(*(t.to(device) for t in samples))


@pytest.mark.benchmark(timer=CLOCK.read)
@pytest.mark.parametrize("rival", ["ours", "plain"])
def test_lifter(rival, request, benchmark):
    """The paper's lifter (width 1024, dropout .5, SGD, batch 512, quarter turns) on as many poses as it had."""
    device = request.config.getoption("--device")

    def calls() -> dict[str, Callable]:
        samples, config = people(LIFTER_POSES, device), PRESETS["paper"]
        stages = {
            "ours": LifterStage(config, samples, samples, "benchmark"),
            "plain": plain_lifter(config, samples, samples),
        }
        steps[:] = [stages["ours"].steps_per_epoch]
        batches = {name: _endless(stage) for name, stage in stages.items()}

        def some_steps(name: str) -> None:
            stages[name].model.train()
            for _ in range(LIFTER_STEPS):
                stages[name].step(next(batches[name]))

        return {name: lambda name=name: some_steps(name) for name in stages}

    steps = [LIFTER_POSES // PRESETS["paper"].lifter.batch_size]
    series = measured(("lifter",), calls, request)
    epoch = middle(series, rival) / LIFTER_STEPS * steps[0]
    report(
        benchmark,
        f"lifter-{device}",
        series[rival],
        training="lifter",
        device=device,
        rival=rival,
        epoch_seconds=epoch,
        samples_per_second=LIFTER_POSES / epoch,
        times_ours=ratio(series, rival, "ours"),
        bar_epoch_seconds=LIFTER_BAR_SECONDS,
        machine=machine.describe(device),
    )
