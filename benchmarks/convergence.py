"""Does speed cost accuracy? Trains with every fast option and plainly, from several seeds.

    python -m benchmarks.convergence --out benchmarks/results/convergence.json

``fast`` is what ``hpe_fast.train`` does on this machine (bfloat16, channels_last, fused loss and optimisers, the
lifter's layers by hand, a CUDA graph). ``plain`` is eager float32 in NCHW with targets made on the CPU, the official
loss joint by joint, torch's own lifter layers and default optimisers. Both see the same pictures in the same order and
follow the same schedule. Writes a JSON file and a markdown table beside it.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.report import table
from benchmarks.train_rivals import PlainDetector, plain_lifter
from hpe_fast.data.converters import open_dataset
from hpe_fast.data.sample import bundled_sample
from hpe_fast.data.store import PoseStore
from hpe_fast.device import resolve_device
from hpe_fast.evaluate import evaluate
from hpe_fast.files import atomic_path
from hpe_fast.training.config import PRESETS, TrainConfig
from hpe_fast.training.detector import DetectorStage, detect_all, make_loader
from hpe_fast.training.distributed import Ranks
from hpe_fast.training.engine import Fit
from hpe_fast.training.lifting import LifterSamples, LifterStage

ARMS = ("fast", "plain")
METRICS = {"pck2d_02_torso": "PCK@0.2 torso", "epe2d_px": "2D error, px", "mpjpe_mm": "MPJPE, mm"}


@dataclass(frozen=True)
class Config:
    """Compare the accuracy of fast and plain training."""

    out: Path
    """JSON file to write; the table goes beside it, as .md."""
    data: Path | None = None
    """Pose store, folder of stores, or dataset. None: the bundled sample."""
    preset: str = "quick"
    """Settings of both stages, but for the two lines below."""
    seeds: int = 3
    epochs: int = 6
    """Of the detector."""
    lifter_epochs: int = 60
    lifter_width: int = 0
    """Units of a hidden layer; 0: the preset's."""
    image_size: int = 0
    """Side of the detector's input, pixels; 0: the preset's."""
    batch_size: int = 0
    """Of the detector; 0: the preset's."""
    model: str = ""
    """Of the detector; empty: the preset's."""
    device: str = "auto"
    threads: int = 2


def main() -> int:
    """Trains, then prints the table."""
    import tyro

    config = tyro.cli(Config, description=__doc__)
    torch.set_num_threads(config.threads)
    results = [run_one(config, arm, seed) for seed in range(config.seeds) for arm in ARMS]
    report = {
        "settings": asdict(config),
        "machine": machine.describe(resolve_device(config.device).type),
        "runs": results,
        "summary": summary(results),
    }
    with atomic_path(config.out) as temporary:
        temporary.write_text(json.dumps(report, indent=1, default=str) + "\n")
    text = markdown(report)
    with atomic_path(config.out.with_suffix(".md")) as temporary:
        temporary.write_text(text + "\n")
    print(text)
    return 0


def settings(config: Config, arm: str, seed: int) -> TrainConfig:
    """The preset with this comparison's sizes; the fast arm's options are the ones that ``hpe_fast.train`` has."""
    base = PRESETS[config.preset]
    detector = replace(
        base.detector,
        epochs=config.epochs,
        image_size=config.image_size or base.detector.image_size,
        batch_size=config.batch_size or base.detector.batch_size,
        model=config.model or base.detector.model,
    )
    lifter = replace(
        base.lifter, epochs=config.lifter_epochs, width=config.lifter_width or base.lifter.width, fused=arm == "fast"
    )
    return replace(base, seed=seed, amp=arm == "fast", detector=detector, lifter=lifter)


def run_one(config: Config, arm: str, seed: int) -> dict:
    """Both stages once; errors on the validation pictures."""
    began = time.monotonic()
    device, train_config = resolve_device(config.device), settings(config, arm, seed)
    with tempfile.TemporaryDirectory() as folder:
        train, valid = stores(config, Path(folder))
        kind = DetectorStage if arm == "fast" else PlainDetector
        detector = kind(train_config, train, valid, device)
        seconds = {"detector": fit(detector, folder)}
        found = {name: detect(detector, store) for name, store in (("train", train), ("valid", valid))}
        samples = LifterSamples.from_store(train, device, found["train"])
        valid_samples = LifterSamples.from_store(valid, device, found["valid"])
        make = plain_lifter if arm == "plain" else lambda *parts: LifterStage(*parts, "convergence")
        lifter = make(train_config, samples, valid_samples)
        seconds["lifter"] = fit(lifter, folder)
        errors = evaluate(found["valid"], lifter.model, valid, torch.zeros(17, 3)).errors
    result = {"arm": arm, "seed": seed, **{name: errors[name] for name in ("pck2d_02_torso", "epe2d_px")}}
    result |= {"mpjpe_mm": errors["mpjpe_mm"]["pipeline"], "training_seconds": seconds}
    print(f"{arm} seed {seed}: {result}, {time.monotonic() - began:.0f} s", flush=True)
    return result


def stores(config: Config, folder: Path) -> tuple[PoseStore, PoseStore]:
    """Training and validation."""
    if config.data is None:
        sample = bundled_sample()
        return PoseStore(sample["train"]), PoseStore(sample["valid"])
    train, valid = open_dataset(config.data, cache=folder / "data")
    return PoseStore(train), PoseStore(valid)


def fit(stage: DetectorStage | LifterStage, folder: str) -> float:
    """Train to the last epoch; seconds of the steps alone."""
    silent: Callable[[str], None] = lambda line: None  # noqa: E731
    return Fit(stage, Path(folder), log=silent, checkpoint_minutes=1e9).run().seconds


def detect(stage: DetectorStage, store: PoseStore):
    """What a trained detector finds, in its own number format."""
    loader = make_loader(store, stage.config, stage.device, Ranks())
    return detect_all(stage.model, loader, stage.config, Ranks())


def summary(results: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and spread (standard deviation) over the seeds, by arm and metric."""

    def of(arm: str, metric: str) -> dict[str, float]:
        values = [result[metric] for result in results if result["arm"] == arm]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return {"mean": statistics.mean(values), "spread": spread}

    return {arm: {metric: of(arm, metric) for metric in METRICS} for arm in ARMS}


def markdown(report: dict) -> str:
    """One line a metric: both arms, and their difference in units of the seeds' spread."""
    rows = []
    for metric, label in METRICS.items():
        fast, plain = (report["summary"][arm][metric] for arm in ARMS)
        noise = (fast["spread"] ** 2 / 2 + plain["spread"] ** 2 / 2) ** 0.5
        difference = fast["mean"] - plain["mean"]
        in_noise = f"{difference / noise:+.1f}" if noise else ""
        cells = [f"{arm['mean']:.4g} ± {arm['spread']:.2g}" for arm in (fast, plain)]
        rows.append([label, *cells, f"{difference:+.3g}", in_noise])
    seconds = {
        arm: [sum(run["training_seconds"].values()) for run in report["runs"] if run["arm"] == arm] for arm in ARMS
    }
    cells = [f"{statistics.mean(seconds[arm]):.0f}" for arm in ARMS]
    rows.append(["training, s", *cells, "", ""])
    count = report["settings"]["seeds"]
    header = ["validation", "fast", "plain", "difference", "in standard deviations"]
    return "\n\n".join([f"{count} seeds; {machine.sentence(report['machine'])}", table(header, rows)])


if __name__ == "__main__":
    raise SystemExit(main())
