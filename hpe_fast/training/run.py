"""A whole run: data, first stage, its detections, second stage, evaluation, figures; all in one run directory."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import hpe_fast
from hpe_fast import plots
from hpe_fast.data.converters import open_dataset
from hpe_fast.data.loader import ImageLoader
from hpe_fast.data.sample import bundled_sample
from hpe_fast.data.store import PoseStore
from hpe_fast.device import cpu_count, resolve_device
from hpe_fast.evaluate import Detections, Evaluation, detection_errors, evaluate, root_relative, table
from hpe_fast.files import atomic_path
from hpe_fast.models import from_unit_crop, load_checkpoint
from hpe_fast.training.checkpoint import Progress
from hpe_fast.training.config import DetectorConfig, TrainConfig
from hpe_fast.training.detector import DetectorStage, detect_all, detector_metadata, heatmaps_of, make_loader
from hpe_fast.training.distributed import Ranks, joined, ranks_here
from hpe_fast.training.engine import Fit, Stage
from hpe_fast.training.lifting import LifterSamples, LifterStage

logger = logging.getLogger("hpe_fast.train")


def train(config: TrainConfig) -> dict[str, Any]:
    """Train, evaluate and draw; returns the content of metrics.json.

    Raises:
        ValueError, OSError: bad settings or data, with the culprit named.
        TrainingDiverged: the loss is no longer finite.
        Interrupted: SIGINT or SIGTERM; the state is saved.

    Example:
        >>> train(TrainConfig(data=Path("no/such/data"), out=Path("run"), device="cpu"))
        Traceback (most recent call last):
        FileNotFoundError: ...
    """
    with joined(config.device) as ranks:
        return _train(config, ranks)


def _train(config: TrainConfig, ranks: Ranks) -> dict[str, Any]:
    started = time.monotonic()
    device = ranks.device if ranks.world > 1 else resolve_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = config.autotune
        torch.backends.cudnn.deterministic = not config.autotune
    torch.set_num_threads(config.threads or max(1, cpu_count() // ranks_here()))
    folder = Path(ranks.text(str(run_directory(config)) if ranks.main else ""))
    _start_log(folder, ranks)
    train_path, valid_path = _open_data(config, folder, ranks)
    train_store, valid_store = PoseStore(train_path), PoseStore(valid_path)
    where = f"{ranks.world} x {device.type}" if ranks.world > 1 else device
    logger.info("%s: %d training and %d validation rows on %s", folder, len(train_store), len(valid_store), where)
    _check_poses(config, train_store, valid_store)
    with _recorded(config, folder, ranks.world) if ranks.main else nullcontext():
        errors = _Run(config, folder, device, ranks, train_store, valid_store).train()
    metrics = {**errors, "device": _device_name(device), "seconds": time.monotonic() - started}
    if ranks.main:
        _write_json(folder / "metrics.json", metrics)
    return metrics


def _check_poses(config: TrainConfig, *stores: PoseStore) -> None:
    """Before hours of the first stage, not after them."""
    if config.stage == "hrnet":
        return
    for store in stores:
        if not np.isfinite(store.pose3d).all((1, 2)).any():
            raise ValueError(
                f"{store.path}: no row has 3D joints, which the second stage learns; --stage hrnet trains the first"
            )


@contextmanager
def _recorded(config: TrainConfig, folder: Path, world: int) -> Iterator[None]:
    """config.json, which marks a run directory; not left where a run failed before there was something to resume."""
    path = folder / "config.json"
    if not (config.resume and any(folder.glob("*.state.pt"))):  # the record of how it began
        _write_json(path, {"version": hpe_fast.__version__, "ranks": world, **asdict(config)})
    try:
        yield
    except Exception:
        if not any(folder.glob("*.state.pt")):
            path.unlink(missing_ok=True)
        raise


class _Run:
    """The two stages and what passes between them."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        device: torch.device,
        ranks: Ranks,
        train: PoseStore,
        valid: PoseStore,
    ) -> None:
        self.config, self.folder, self.device, self.ranks = config, folder, device, ranks
        self.stores = {"train": train, "valid": valid}
        self.progress: dict[str, Progress] = {}

    def train(self) -> dict[str, Any]:
        detector = self._detector()
        found = None if detector is None else self._detect(detector, "valid")
        errors: dict[str, Any] = {} if found is None else detection_errors(found, self.stores["valid"])
        if self.config.stage != "hrnet":
            lifter = self._lifter(detector, found)
            if found is not None:
                mean_pose = torch.tensor(lifter.metadata["mean_pose"])
                evaluation = evaluate(found, lifter, self.stores["valid"], mean_pose)
                errors = evaluation.errors
                logger.info("\n%s", table(errors))
                if self.ranks.main:
                    self._draw_predictions(detector, evaluation)
                    _write_text(self.folder / "table.txt", table(errors))
        if self.ranks.main:
            history = {name: progress.history for name, progress in self.progress.items()}
            plots.curves(history, self.folder / "curves.png")
        return {**errors, **_speeds(self.progress)}

    def _fit(self, stage: Stage) -> None:
        with _tensorboard(self.folder) if self.ranks.main else nullcontext() as writer:
            fit = Fit(
                stage,
                self.folder,
                log=logger.info,
                writer=writer,
                resume=self.config.resume,
                checkpoint_minutes=self.config.checkpoint_minutes,
                ranks=self.ranks,
            )
            self.progress[stage.name] = fit.run()

    def _detector(self) -> nn.Module | None:
        """Trained now, or for ``--stage lifter`` the one in the run directory, if there is one."""
        path = self.folder / "hrnet.safetensors"
        if self.config.stage != "lifter":
            stage = DetectorStage(self.config, self.stores["train"], self.stores["valid"], self.device, self.ranks)
            for loader in (stage.loader, stage.valid_loader):
                _report_skipped(loader)
            self._fit(stage)
        elif not path.exists():
            return None
        detector = load_checkpoint(path)
        if detector.config["architecture"] == "lifter":
            raise ValueError(f"{path}: holds a lifter, a detector is wanted")
        _check_detector(path, detector.metadata, self.config.detector)
        return detector.to(self.device)

    def _detect(self, detector: nn.Module, split: str) -> Detections:
        logger.info("detecting joints in the %s pictures", {"train": "training", "valid": "validation"}[split])
        loader = make_loader(self.stores[split], self.config, self.device, self.ranks)
        return detect_all(detector, loader, self.config, self.ranks)

    def _lifter(self, detector: nn.Module | None, found: Detections | None) -> nn.Module:
        needs_detections = self.config.lifter.input != "true_2d"
        if needs_detections and detector is None:
            raise ValueError(
                f"--lifter.input {self.config.lifter.input} needs a trained detector, but there is no "
                f"{self.folder / 'hrnet.safetensors'}: train it first, or use --lifter.input true_2d"
            )
        train_found = self._detect(detector, "train") if needs_detections else None
        train = LifterSamples.from_store(self.stores["train"], self.device, train_found)
        valid = LifterSamples.from_store(self.stores["valid"], self.device, found)
        self._fit(LifterStage(self.config, train, valid, str(self.stores["train"].path), self.ranks))
        return load_checkpoint(self.folder / "lifter.safetensors").to(self.device)

    def _draw_predictions(self, detector: nn.Module, evaluation: Evaluation, count: int = 8) -> None:
        store = self.stores["valid"]
        chosen = torch.linspace(0, len(evaluation.joints3d) - 1, min(count, len(evaluation.joints3d))).long()
        rows = evaluation.detections.rows[chosen].tolist()
        plots.predictions_figure(
            [store.image(row) for row in rows],
            heatmaps_of(detector, store, rows, self.config, self.device),
            store.pose2d[rows],
            from_unit_crop(evaluation.detections.keypoints[chosen], store.image_size).numpy(),
            root_relative(torch.tensor(store.pose3d[rows])).numpy(),
            evaluation.joints3d[chosen].numpy(),
            path=self.folder / "predictions.png",
        )


def _check_detector(path: Path, metadata: dict[str, Any], config: DetectorConfig) -> None:
    """A detector that was there already looks at pictures as it was trained to, or not at all."""
    wanted = json.loads(json.dumps(detector_metadata(config, "")))
    for name in ("codec", "normalization"):
        if name in metadata and json.loads(json.dumps(metadata[name])) != wanted[name]:
            raise ValueError(
                f"{path}: trained with {name} {metadata[name]}, the settings say {wanted[name]}: give the --preset and "
                "--detector options that it was trained with"
            )


def run_directory(config: TrainConfig) -> Path:
    """``--out``, or a new folder under runs/, or with ``--resume`` the newest one there.

    Raises:
        ValueError: nothing to resume, or ``--out`` already holds a run and ``--resume`` was not given.
    """
    if config.out is not None:
        started = (config.out / "config.json").exists()
        if config.resume and not started:
            raise ValueError(f"--resume: {config.out} holds no run (no config.json); leave --resume out to start one")
        if started and not config.resume and config.stage != "lifter":
            raise ValueError(f"--out {config.out} already holds a run: go on with --resume, or choose another folder")
        return config.out
    if config.resume:
        runs = sorted(Path("runs").glob("*/config.json"), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise ValueError("--resume: there is no run under runs/; name one with --out")
        return runs[-1].parent
    return Path("runs") / f"{config.preset}-{time.strftime('%Y%m%d-%H%M%S')}"


def _open_data(config: TrainConfig, folder: Path, ranks: Ranks) -> tuple[Path, Path]:
    """Stores for training and validation; the first rank converts a dataset, the others wait and find it converted."""
    if config.data is None:
        sample = bundled_sample()
        return sample["train"], sample["valid"]
    if not ranks.main:
        ranks.wait()
    paths = open_dataset(config.data, cache=folder / "data")
    if ranks.main:
        ranks.wait()
    return paths


def _report_skipped(loader: ImageLoader) -> None:
    if loader.skipped:
        logger.info("left out %d damaged pictures:\n%s", len(loader.skipped), "\n".join(loader.skipped.values()))


def _start_log(folder: Path, ranks: Ranks) -> None:
    """Lines of the first rank go to the terminal, around the progress bar, and to train.log."""
    folder.mkdir(parents=True, exist_ok=True)
    logger.setLevel(logging.INFO if ranks.main else logging.ERROR)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    if not ranks.main:
        return
    file = logging.FileHandler(folder / "train.log")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(file)
    logger.addHandler(_TqdmHandler())


class _TqdmHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record))


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Any]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        yield writer


def _write_json(path: Path, value: dict[str, Any]) -> None:
    _write_text(path, json.dumps(value, indent=2, default=str))


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n")


def _speeds(progress: dict[str, Progress]) -> dict[str, float | None]:
    def rate(name: str) -> float | None:
        stage = progress.get(name)
        return stage.samples / stage.seconds if stage and stage.seconds else None

    detector = progress.get("hrnet")
    wait = detector.wait_seconds / detector.seconds if detector and detector.seconds else None
    return {"hrnet_img_per_s": rate("hrnet"), "lifter_samples_per_s": rate("lifter"), "data_wait_share": wait}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"
