"""The first stage: HRNet learns heatmaps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from hpe_fast.data.augment import AUGMENTATIONS
from hpe_fast.data.loader import ImageLoader
from hpe_fast.data.store import PoseStore
from hpe_fast.device import fast_dtype
from hpe_fast.evaluate import Detections, detect, detection_errors
from hpe_fast.models import build_model, save_checkpoint
from hpe_fast.ops import (
    IMAGENET,
    PAPER_NORMALIZATION,
    HeatmapCodec,
    Normalization,
    heatmap_mse_loss_and_grad,
    prepare_images,
)
from hpe_fast.training.config import MODELS, DetectorConfig, TrainConfig, codec_of
from hpe_fast.training.engine import GraphedStep, make_optimizer

NORMALIZATIONS: dict[str, Normalization] = {"imagenet": IMAGENET, "paper": PAPER_NORMALIZATION}


def build_detector(config: DetectorConfig) -> nn.Module:
    """The network of a configuration, freshly initialised."""
    model = dict(MODELS[config.model])
    if config.supervise_stages:
        model["supervise_stages"] = True
    return build_model(model)


def backward(heatmaps: Tensor | list[Tensor], keypoints: Tensor, weights: Tensor, codec: HeatmapCodec) -> Tensor:
    """Loss of every supervised output, summed, and its gradient sent into the network: one pass over each heatmap."""
    outputs = heatmaps if isinstance(heatmaps, list) else [heatmaps]
    parts = [heatmap_mse_loss_and_grad(output.detach(), keypoints, weights, codec) for output in outputs]
    torch.autograd.backward(outputs, [grad for _, grad, _ in parts])
    return torch.stack([loss for loss, _, _ in parts]).sum()


def make_loader(store: PoseStore, config: TrainConfig, device: torch.device, **options: object) -> ImageLoader:
    """Pictures of a store at the network's size, as a run's settings want them."""
    return ImageLoader(
        store,
        config.detector.batch_size,
        image_size=codec_of(config.detector).image_size,
        seed=config.seed,
        device=device,
        threads=torch.get_num_threads(),
        skip_bad=config.skip_bad,
        **options,
    )


def detect_all(model: nn.Module, loader: ImageLoader, config: TrainConfig) -> Detections:
    """What the detector finds in every picture of a loader without augmentation."""
    detector = config.detector
    return detect(model, loader, codec_of(detector), NORMALIZATIONS[detector.normalization], amp=config.amp)


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

    def __init__(self, config: TrainConfig, train: PoseStore, valid: PoseStore, device: torch.device) -> None:
        detector = config.detector
        self.config, self.device = config, device
        self.codec, self.normalization = codec_of(detector), NORMALIZATIONS[detector.normalization]
        self.amp_dtype = fast_dtype(device) if config.amp else torch.float32
        torch.manual_seed(config.seed)
        self.model = build_detector(detector).to(device, memory_format=torch.channels_last)
        self.optimizer_config = detector.optimizer
        self.optimizer = make_optimizer(detector.optimizer, self.model)
        self.epochs = detector.epochs
        augmentation = AUGMENTATIONS[detector.augmentation]
        self.loader = make_loader(train, config, device, augmentation=augmentation, shuffle=True, drop_last=True)
        self.valid_loader = make_loader(valid, config, device)
        self.steps_per_epoch = len(self.loader)
        self.settings = {**asdict(detector), "seed": config.seed, "pictures": len(train), "amp": config.amp}
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

    def _step(self, images, keypoints, weights, color, noise_std, sample_ids, rows) -> Tensor:
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
            heatmaps = self.model(pictures)
        loss = backward(heatmaps, keypoints, weights, self.codec)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def blame(self, batch: tuple[Tensor | None, ...]) -> str:
        return f"rows {batch[6].tolist()} of {self.loader.store.path}"

    def validate(self) -> dict[str, float]:
        return detection_errors(detect_all(self.model, self.valid_loader, self.config), self.valid_loader.store)

    def export(self, path: Path) -> None:
        save_checkpoint(path, self.model, detector_metadata(self.config.detector, str(self.loader.store.path)))


def detector_metadata(config: DetectorConfig, trained_on: str) -> dict[str, object]:
    """What a detector's file must say beside the weights."""
    return {
        "codec": asdict(codec_of(config)),
        "normalization": asdict(NORMALIZATIONS[config.normalization]),
        "trained_on": trained_on,
        "joint_order": "h36m17",
    }
