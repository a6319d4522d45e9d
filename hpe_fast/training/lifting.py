"""The second stage: a dense network learns to lift 2D joints to 3D; its samples live on the device as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpe_fast.data.store import PoseStore
from hpe_fast.device import fast_dtype
from hpe_fast.evaluate import Detections, lift, root_relative
from hpe_fast.metrics import mpjpe
from hpe_fast.models import lifter as build_lifter
from hpe_fast.models import save_checkpoint, unit_crop
from hpe_fast.skeleton import FLIP_PERMUTATION, JOINTS, NUM_JOINTS
from hpe_fast.training.checkpoint import fingerprint
from hpe_fast.training.config import LifterConfig, TrainConfig
from hpe_fast.training.dense import forward_dense
from hpe_fast.training.detector import shared_settings, split, start_from
from hpe_fast.training.distributed import Ranks, synchronize_batch_norm
from hpe_fast.training.graph import GraphedStep
from hpe_fast.training.optimizer import Update


@dataclass
class LifterSamples:
    """2D and 3D joints of a store, on the device."""

    keypoints: Tensor
    """[N, 17, 2] labels, unit-crop coordinates."""
    pose3d: Tensor
    """[N, 17, 3] mm, camera frame, absolute."""
    intrinsics: Tensor
    """[N, 4] fx, fy, cx, cy in unit-crop coordinates; NaN where unknown."""
    detections: Tensor
    """[N, 17, 2] the first stage's keypoints; the labels where there are none."""

    @classmethod
    def from_store(cls, store: PoseStore, device: torch.device, found: Detections | None = None) -> LifterSamples:
        """Rows of a store that have 3D joints (and were not left out of ``found``).

        Raises:
            ValueError: no row has.
        """
        pose3d = torch.tensor(store.pose3d)
        known = torch.isfinite(pose3d).all(2).all(1)
        keypoints = unit_crop(torch.tensor(store.pose2d), store.image_size)
        detections = keypoints
        if found is not None:
            detections = keypoints.index_copy(0, found.rows, found.keypoints)
            known &= torch.zeros(len(store), dtype=torch.bool).index_fill(0, found.rows, True)
        if not known.any():
            raise ValueError(f"{store.path}: no row has 3D joints, so there is nothing to train the lifter on")
        height, width = store.image_size
        intrinsics = torch.tensor(store.intrinsics) + torch.tensor([0, 0, 0.5, 0.5])
        intrinsics = intrinsics / torch.tensor([width, height, width, height])
        return cls(*(t[known].float().to(device) for t in (keypoints, pose3d, intrinsics, detections)))

    def __len__(self) -> int:
        return len(self.keypoints)


@lru_cache
def _constant(values: tuple, device: torch.device) -> Tensor:
    """Made once, since a copy from the host cannot be captured in a CUDA graph."""
    return torch.tensor(values, device=device)


def mirror(keypoints: Tensor, joints3d: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror the chosen ``[B]`` samples: x changes sign, left and right change places."""
    swap = _constant(FLIP_PERMUTATION, keypoints.device)
    mirrored2d = torch.stack([1 - keypoints[..., 0], keypoints[..., 1]], -1)[:, swap]
    mirrored3d = torch.cat([-joints3d[..., :1], joints3d[..., 1:]], -1)[:, swap]
    chosen = chosen[:, None, None]
    return torch.where(chosen, mirrored2d, keypoints), torch.where(chosen, mirrored3d, joints3d)


def quarter_turns(keypoints: Tensor, joints3d: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    """Turn samples by ``turns [B]`` quarters (clockwise on screen) about the crop's centre and the optical axis."""
    cos = _constant((1.0, 0.0, -1.0, 0.0), turns.device)[turns % 4]
    sin = _constant((0.0, 1.0, 0.0, -1.0), turns.device)[turns % 4]
    rotation = torch.stack([cos, sin, -sin, cos], 1).view(-1, 2, 2)  # row vectors: (x, y) @ rotation; y points down
    turned2d = (keypoints - 0.5) @ rotation + 0.5
    turned3d = torch.cat([joints3d[..., :2] @ rotation, joints3d[..., 2:]], -1)
    return turned2d, turned3d


def virtual_view(keypoints: Tensor, pose3d: Tensor, intrinsics: Tensor, yaw: Tensor) -> tuple[Tensor, Tensor]:
    """The same people turned by ``yaw [B]`` radians about a vertical axis through the hip, cropped as before.

    The turned joints are projected by the sample's own camera, then moved and scaled so that their bounding box has the
    old one's centre and larger side, as a crop around the person would.

    Returns:
        keypoints ``[B, 17, 2]`` (unit crop) and absolute ``pose3d [B, 17, 3]`` (mm).
    """
    zero, one, cos, sin = torch.zeros_like(yaw), torch.ones_like(yaw), yaw.cos(), yaw.sin()
    rotation = torch.stack([cos, zero, -sin, zero, one, zero, sin, zero, cos], 1).view(-1, 3, 3)
    turned = (pose3d - pose3d[:, :1]) @ rotation + pose3d[:, :1]
    focal, centre = intrinsics[:, None, :2], intrinsics[:, None, 2:]
    projected = turned[..., :2] / turned[..., 2:].clamp(min=1.0) * focal + centre
    (old_centre, old_side), (new_centre, new_side) = _box(keypoints), _box(projected)
    return (projected - new_centre) * (old_side / new_side) + old_centre, turned


def _box(keypoints: Tensor) -> tuple[Tensor, Tensor]:
    low, high = keypoints.amin(1, keepdim=True), keypoints.amax(1, keepdim=True)
    return (low + high) / 2, (high - low).amax(2, keepdim=True).clamp(min=1e-6)


def draw_samples(samples: LifterSamples, rows: Tensor, config: LifterConfig) -> tuple[Tensor, Tensor]:
    """Inputs ``[B, 17, 2]`` (unit crop) and targets ``[B, 17, 3]`` (mm, root-relative) of rows, augmented."""
    keypoints, pose3d = samples.keypoints[rows], samples.pose3d[rows]
    chance = torch.rand(4, len(rows), device=rows.device)
    if config.virtual_views:
        intrinsics = samples.intrinsics[rows]
        yaw = (torch.rand(len(rows), device=rows.device) * 2 - 1) * torch.pi
        seen, turned = virtual_view(keypoints, pose3d, intrinsics, yaw)
        chosen = ((chance[0] < config.virtual_views) & intrinsics.isfinite().all(1))[:, None, None]
        keypoints, pose3d = torch.where(chosen, seen, keypoints), torch.where(chosen, turned, pose3d)
    if config.jitter:
        keypoints = keypoints + config.jitter * torch.randn_like(keypoints)
    if config.input != "true_2d":
        share = 0.5 if config.input == "mixture" else 1.0
        detected = (chance[1] < share)[:, None, None]
        keypoints = torch.where(detected, samples.detections[rows], keypoints)
        pose3d = torch.where(detected, samples.pose3d[rows], pose3d)
    joints3d = root_relative(pose3d)
    if config.rotation:
        turns = torch.where(chance[2] < 0.5, torch.where(chance[2] < 0.25, 1, 3), 0)
        keypoints, joints3d = quarter_turns(keypoints, joints3d, turns)
    if config.flip:
        keypoints, joints3d = mirror(keypoints, joints3d, chance[3] < 0.5)
    return keypoints, joints3d


class LifterStage:
    """What ``Fit`` trains second; see ``engine.Stage``.

    Every rank holds all samples (they are small) and takes its share of each batch.
    """

    name = "lifter"
    wait_seconds = 0.0  # samples are on the device already

    def __init__(
        self,
        config: TrainConfig,
        train: LifterSamples,
        valid: LifterSamples,
        trained_on: str,
        ranks: Ranks | None = None,
    ) -> None:
        lifter, ranks = config.lifter, ranks or Ranks()
        self.config, self.train, self.valid, self.trained_on, self.ranks = config, train, valid, trained_on, ranks
        self.device = train.keypoints.device
        self.amp_dtype = fast_dtype(self.device) if config.amp else torch.float32
        torch.manual_seed(config.seed + 1)
        self.model = build_lifter(width=lifter.width, blocks=lifter.blocks, dropout=lifter.dropout).to(self.device)
        if not start_from(self.model, lifter.start, self.name) or "warning" in self.model.metadata:
            self.model.fit_statistics(*self._statistics_sample())  # else they belong to the weights
        synchronized = config.sync_bn and ranks.world > 1
        if synchronized:
            self.model = synchronize_batch_norm(self.model, ranks)
        if ranks.rank:
            torch.manual_seed(config.seed + 1 + (ranks.rank << 32))  # for its own dropout and augmentation
        self._by_hand = lifter.fused and self.device.type == "cpu" and not synchronized
        self.update = Update(lifter.optimizer, self.model, ranks)
        self.epochs, self.joint_losses = lifter.epochs, torch.zeros(NUM_JOINTS, device=self.device)
        self.batch_size = min(lifter.batch_size * config.accumulate, len(train) // ranks.world)
        self.batch_size -= self.batch_size % config.accumulate
        if self.batch_size < 2 * config.accumulate:  # batch normalisation has no deviation of one
            raise ValueError(
                f"{len(train)} poses are too few for {ranks.world} ranks and --accumulate {config.accumulate}"
            )
        self.steps_per_epoch = len(train) // (self.batch_size * ranks.world)
        graphed = self.device.type == "cuda" and config.graph
        self._run = GraphedStep(self._step) if graphed else self._step
        data = fingerprint(train.pose3d.cpu().numpy(), train.keypoints.cpu().numpy())
        self.settings = {**asdict(lifter), "poses": len(train), "data": data, **shared_settings(config)}

    def _statistics_sample(self) -> tuple[Tensor, Tensor]:
        """Statistics of what the network will see, augmentation included."""
        rows = torch.arange(len(self.train), device=self.device)
        return draw_samples(self.train, rows, self.config.lifter)

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor]]:
        generator = torch.Generator().manual_seed((self.config.seed << 32) + epoch)
        order = torch.randperm(len(self.train), generator=generator)[self.ranks.rank :: self.ranks.world]
        order = order.to(self.device)
        for i in range(start, self.steps_per_epoch):
            yield (order[i * self.batch_size : (i + 1) * self.batch_size],)

    def step(self, batch: tuple[Tensor]) -> Tensor:
        return self._run(*batch)

    def _step(self, rows: Tensor) -> Tensor:
        losses = [self._backward(*part) for part in split((rows,), self.config.accumulate)]
        self.joint_losses.copy_(torch.stack([joints for _, joints in losses]).mean(0))
        self.update()
        return torch.stack([loss for loss, _ in losses]).mean()

    def _backward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        keypoints, joints3d = draw_samples(self.train, rows, self.config.lifter)
        predicted, wanted = self._forward(keypoints).float(), self.model.normalize_joints(joints3d)
        loss = torch.nn.functional.mse_loss(predicted, wanted)
        (loss / self.config.accumulate).backward()
        return loss.detach(), (predicted.detach() - wanted).square().mean((0, 2))

    def _forward(self, keypoints: Tensor) -> Tensor:
        if self._by_hand:
            return forward_dense(self.model, keypoints, self.amp_dtype)
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype != torch.float32):
            return self.model.forward_normalized(keypoints)

    def blame(self, rows: Tensor) -> str:
        return f"rows {rows.tolist()} of those with 3D joints"

    def validate(self) -> dict[str, float]:
        target = root_relative(self.valid.pose3d).cpu()
        model = self.update.evaluated
        errors = {"true_2d": float(mpjpe(lift(model, self.valid.keypoints), target))}
        if self.config.lifter.input != "true_2d":
            errors["detections"] = float(mpjpe(lift(model, self.valid.detections), target))
        return {f"mpjpe_{name}_mm": value for name, value in errors.items()}

    def score(self, metrics: dict[str, float]) -> float:
        return -metrics.get("mpjpe_detections_mm", metrics["mpjpe_true_2d_mm"])

    def export(self, path: Path) -> None:
        mean_pose = root_relative(self.train.pose3d).mean(0).tolist()
        metadata = {"trained_on": self.trained_on, "joint_order": "h36m17", "mean_pose": mean_pose}
        save_checkpoint(path, self.update.evaluated, metadata)

    def log_extras(self, writer: Any, step: int) -> None:
        for name, loss in zip(JOINTS, self.joint_losses.tolist(), strict=True):
            writer.add_scalar(f"{self.name}_joint_loss/{name}", loss, step)

    def illustrate(self, writer: Any, epoch: int) -> None:
        """Poses make no picture of their own; the detector's are there."""
