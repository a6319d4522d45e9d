"""Training as it is written without this package, with our data: what the training benchmarks compare with.

``PlainDetector`` is eager float32 in NCHW with targets made on the CPU sample by sample, the official loss joint by
joint (twice, which is our scale) and torch's default optimiser. It gets pictures and labels from our loader as a gift.
Each of ``OPTIONS`` can be switched on alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import official
from benchmarks.cases import can_compile
from hpe_fast.data.store import PoseStore
from hpe_fast.training.config import OptimizerConfig, TrainConfig
from hpe_fast.training.detector import DetectorStage
from hpe_fast.training.lifting import LifterSamples, LifterStage
from hpe_fast.training.optimizer import Update

#: Each on top of the fused loss, since a graph cannot hold targets that the CPU makes.
OPTIONS = ("channels_last", "bf16", "graph", "compile")


def options_here(device: str) -> list[str]:
    """The options that this machine can measure."""
    possible = {"graph": device == "cuda", "compile": can_compile(device)}
    return [name for name in OPTIONS if possible.get(name, True)]


class PlainDetector(DetectorStage):
    """The official way, or with some options more."""

    def __init__(
        self,
        config: TrainConfig,
        train: PoseStore,
        valid: PoseStore,
        device: torch.device,
        *,
        fused_loss: bool = False,
        options: tuple[str, ...] = (),
    ) -> None:
        config = replace(config, amp="bf16" in options, graph="graph" in options, compile="compile" in options)
        super().__init__(config, train, valid, device)
        self._fused_loss, self._channels_last = fused_loss, "channels_last" in options
        if not self._channels_last:
            self.model.to(memory_format=torch.contiguous_format)
        if "graph" not in options:  # a graph needs an optimiser that can be captured
            use_default_optimizer(self.update)

    def _forward(self, images: Tensor, *rest: Tensor | None) -> Tensor | list[Tensor]:
        if self._channels_last:
            return super()._forward(images, *rest)
        network = self._network
        self._network = lambda pictures: network(pictures.contiguous())
        try:
            return super()._forward(images, *rest)
        finally:
            self._network = network

    def _backward(self, heatmaps: Tensor, keypoints: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        if self._fused_loss:
            return super()._backward(heatmaps, keypoints, weights)
        codec = self.codec
        targets, kept = official.generate_targets(
            keypoints.cpu().numpy(), weights.cpu().numpy(), codec.stride, codec.heatmap_size
        )
        loss = 2 * joints_mse_loss(heatmaps, *(torch.from_numpy(t).to(heatmaps.device) for t in (targets, kept)))
        (loss / self.config.accumulate).backward()
        return loss.detach(), torch.zeros_like(self.joint_losses)


def joints_mse_loss(output: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The official ``JointsMSELoss``: joint by joint, weights squared."""
    batch, joints = output.shape[:2]
    predicted = output.reshape(batch, joints, -1).split(1, 1)
    wanted = target.reshape(batch, joints, -1).split(1, 1)
    loss = torch.zeros((), device=output.device)
    for j in range(joints):
        w = weight[:, j, None]
        loss = loss + 0.5 * F.mse_loss(predicted[j].squeeze(1) * w, wanted[j].squeeze(1) * w)
    return loss / joints


def plain_lifter(config: TrainConfig, train: LifterSamples, valid: LifterSamples) -> LifterStage:
    """The plain loop: float32, torch's own layers, dropout and default optimiser."""
    plain = replace(config, amp=False, graph=False, lifter=replace(config.lifter, fused=False))
    stage = LifterStage(plain, train, valid, "benchmark")
    use_default_optimizer(stage.update)
    return stage


def use_default_optimizer(update: Update) -> None:
    """The same rule for the weights, as torch runs it unless asked."""
    config: OptimizerConfig = update.config
    parameters = [p for group in update.optimizer.param_groups for p in group["params"]]
    common = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.name == "sgd":
        update.optimizer = torch.optim.SGD(parameters, momentum=config.momentum, **common)
    else:
        update.optimizer = torch.optim.AdamW(parameters, betas=(config.momentum, 0.999), **common)
