"""The first stage: HRNet learns heatmaps."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpe_fast.data.augment import AUGMENTATIONS
from hpe_fast.data.loader import ImageLoader
from hpe_fast.data.store import PoseStore
from hpe_fast.device import fast_dtype
from hpe_fast.evaluate import Detections, detect, detection_errors
from hpe_fast.models import build_model, load_checkpoint, save_checkpoint
from hpe_fast.models.weight_files import weight_file
from hpe_fast.ops import (
    IMAGENET,
    PAPER_NORMALIZATION,
    Normalization,
    prepare_images,
)
from hpe_fast.plots import heatmap_overlay
from hpe_fast.skeleton import JOINTS, NUM_JOINTS
from hpe_fast.training.checkpoint import fingerprint
from hpe_fast.training.compiling import compiled
from hpe_fast.training.config import MODELS, DetectorConfig, TrainConfig, codec_of
from hpe_fast.training.distributed import Ranks, synchronize_batch_norm
from hpe_fast.training.graph import GraphedStep
from hpe_fast.training.optimizer import Update
from hpe_fast.training.supervision import backward

logger = logging.getLogger("hpe_fast.train")

NORMALIZATIONS: dict[str, Normalization] = {"imagenet": IMAGENET, "paper": PAPER_NORMALIZATION}


def build_detector(config: DetectorConfig) -> nn.Module:
    """The network of a configuration, freshly initialised."""
    model = dict(MODELS[config.model])
    if config.supervise_stages:
        model["supervise_stages"] = True
    return build_model(model)


def start_from(model: nn.Module, weights: str | None, stage: str) -> bool:
    """Load the weights that a stage starts from, if any; whether there are some.

    Raises:
        FileNotFoundError, CheckpointError: they are not there, or not this network's.
    """
    if weights is not None:
        path = weight_file(weights, stage)
        load_checkpoint(path, model)
        logger.info("%s: starts from %s", stage, path)
    return weights is not None


def make_loader(
    store: PoseStore, config: TrainConfig, device: torch.device, ranks: Ranks, batches: int = 1, **options: object
) -> ImageLoader:
    """This rank's pictures of a store at the network's size, as a run's settings want them, ``batches`` at a time."""
    store.require_square()
    return ImageLoader(
        store,
        config.detector.batch_size * batches,
        image_size=codec_of(config.detector).image_size,
        seed=config.seed,
        device=device,
        rank=ranks.rank,
        world=ranks.world,
        threads=torch.get_num_threads(),
        skip_bad=config.skip_bad,
        **options,
    )


def detect_all(model: nn.Module, loader: ImageLoader, config: TrainConfig, ranks: Ranks) -> Detections:
    """What the detector finds in every picture of a loader without augmentation; each rank looks at its share."""
    detector = config.detector
    found = detect(model, loader, codec_of(detector), NORMALIZATIONS[detector.normalization], amp=config.amp)
    if ranks.world == 1:
        return found
    keypoints, scores, rows = (torch.cat(ranks.gather(t)) for t in (found.keypoints, found.scores, found.rows))
    rows, inverse = rows.unique(return_inverse=True)  # the first rows come twice where the ranks do not divide them
    first = torch.zeros_like(rows).scatter_(0, inverse, torch.arange(len(inverse)))
    return Detections(keypoints[first], scores[first], rows)


@torch.no_grad()
def heatmaps_of(
    model: nn.Module, store: PoseStore, rows: list[int], config: TrainConfig, device: torch.device
) -> Tensor:
    """Heatmaps ``[len(rows), 17, H, W]`` float32 on the CPU, for figures."""
    pictures = torch.stack([torch.from_numpy(store.image(row)) for row in rows]).to(device)
    images = prepare_images(pictures, NORMALIZATIONS[config.detector.normalization])
    images = nn.functional.interpolate(images, codec_of(config.detector).image_size, mode="bilinear", antialias=True)
    return model.eval()(images).float().cpu()


class DetectorStage:
    """What ``Fit`` trains first; see ``engine.Stage``."""

    name = "hrnet"

    def __init__(
        self,
        config: TrainConfig,
        train: PoseStore,
        valid: PoseStore,
        device: torch.device,
        ranks: Ranks | None = None,
    ) -> None:
        detector, ranks = config.detector, ranks or Ranks()
        self.config, self.device, self.ranks = config, device, ranks
        self.codec, self.normalization = codec_of(detector), NORMALIZATIONS[detector.normalization]
        self.amp_dtype = fast_dtype(device) if config.amp else torch.float32
        torch.manual_seed(config.seed)
        self.model = build_detector(detector)
        start_from(self.model, detector.start, self.name)
        self.model = self.model.to(device, memory_format=torch.channels_last)
        if config.sync_bn:
            self.model = synchronize_batch_norm(self.model, ranks)
        self.update = Update(detector.optimizer, self.model, ranks)
        self._network = compiled(self.model, device) if config.compile else self.model
        self.epochs, self.joint_losses = detector.epochs, torch.zeros(NUM_JOINTS, device=device)
        train_options = {"augmentation": AUGMENTATIONS[detector.augmentation], "shuffle": True, "drop_last": True}
        self.loader = make_loader(train, config, device, ranks, config.accumulate, **train_options)
        self.valid_loader = make_loader(valid, config, device, ranks)
        self.steps_per_epoch = len(self.loader)
        data = fingerprint(train.crc32, train.pose2d, train.visible)
        self.settings = {**asdict(detector), "pictures": len(train), "data": data, **shared_settings(config)}
        graphed = device.type == "cuda" and config.graph
        self._run = GraphedStep(self._step) if graphed else self._step

    @property
    def wait_seconds(self) -> float:
        return self.loader.wait_seconds

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor | None, ...]]:
        for b in self.loader.epoch(epoch, start):
            yield b.images, b.keypoints, b.weights, b.color, b.noise_std, b.sample_ids, b.rows

    def step(self, batch: tuple[Tensor | None, ...]) -> Tensor:
        return self._run(*batch)

    def _step(self, *batch: Tensor | None) -> Tensor:
        losses, joint_losses = [], []
        for images, keypoints, weights, color, noise_std, sample_ids, _ in split(batch, self.config.accumulate):
            heatmaps = self._forward(images, color, noise_std, sample_ids)
            loss, per_joint = self._backward(heatmaps, keypoints, weights)
            losses.append(loss)
            joint_losses.append(per_joint)
        self.joint_losses.copy_(torch.stack(joint_losses).mean(0))
        self.update()
        return torch.stack(losses).mean()

    def _forward(
        self, images: Tensor, color: Tensor | None, noise_std: Tensor | None, sample_ids: Tensor
    ) -> Tensor | list[Tensor]:
        pictures = prepare_images(
            images,
            self.normalization,
            color=color,
            noise_std=noise_std,
            seed=self.config.seed,
            sample_ids=sample_ids,
            dtype=self.amp_dtype,
        )
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype != torch.float32):
            return self._network(pictures)

    def _backward(self, heatmaps: Tensor | list[Tensor], keypoints: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        share = 1 / self.config.accumulate
        return backward(heatmaps, keypoints, weights, self.codec, self.config.detector, share)

    def blame(self, rows: Tensor) -> str:
        return f"rows {rows.tolist()} of {self.loader.store.path}"

    def validate(self) -> dict[str, float]:
        found = detect_all(self.update.evaluated, self.valid_loader, self.config, self.ranks)
        return detection_errors(found, self.valid_loader.store)

    def score(self, metrics: dict[str, float]) -> float:
        return metrics["pck2d_02_torso"]

    def export(self, path: Path) -> None:
        metadata = detector_metadata(self.config.detector, str(self.loader.store.path))
        save_checkpoint(path, self.update.evaluated, metadata)

    def log_extras(self, writer: Any, step: int) -> None:
        for name, loss in zip(JOINTS, self.joint_losses.tolist(), strict=True):
            writer.add_scalar(f"{self.name}_joint_loss/{name}", loss, step)

    def illustrate(self, writer: Any, epoch: int, count: int = 4) -> None:
        """Validation pictures under their heatmaps."""
        store = self.valid_loader.store
        rows = torch.linspace(0, len(store) - 1, min(count, len(store))).long().tolist()
        heatmaps = heatmaps_of(self.update.evaluated, store, rows, self.config, self.device)
        for row, heatmap in zip(rows, heatmaps, strict=True):
            picture = heatmap_overlay(store.image(row), heatmap)
            writer.add_image(f"{self.name}/row_{row}", picture, epoch, dataformats="HWC")


def split(batch: tuple[Tensor | None, ...], parts: int) -> list[tuple[Tensor | None, ...]]:
    """A batch as equal parts, for gradient accumulation."""
    if parts == 1:
        return [batch]
    return list(zip(*([None] * parts if t is None else t.chunk(parts) for t in batch), strict=True))


def shared_settings(config: TrainConfig) -> dict[str, object]:
    """Settings of the whole run that change the numbers of a stage."""
    return {name: getattr(config, name) for name in ("seed", "amp", "compile", "accumulate", "sync_bn")}


def detector_metadata(config: DetectorConfig, trained_on: str) -> dict[str, object]:
    """What a detector's file must say beside the weights."""
    return {
        "codec": asdict(codec_of(config)),
        "normalization": asdict(NORMALIZATIONS[config.normalization]),
        "trained_on": trained_on,
        "joint_order": "h36m17",
    }
