"""What the detector learns from: the loss of its heatmaps, and which joints it counts."""

from __future__ import annotations

import torch
from torch import Tensor

from hpe_fast.ops import HeatmapCodec, heatmap_mse_loss, heatmap_mse_loss_and_grad
from hpe_fast.training.config import DetectorConfig


def backward(
    heatmaps: Tensor | list[Tensor],
    keypoints: Tensor,
    weights: Tensor,
    codec: HeatmapCodec,
    config: DetectorConfig,
    share: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Loss of every supervised output, summed, and its gradient sent into the network.

    One pass over each heatmap; hard joints need another one before it, to find them.

    Args:
        heatmaps: the network's output; several with ``supervise_stages``, the final one last.
        keypoints: ``[B, J, 2]`` network-input pixels.
        weights: ``[B, J]``, 1 where the joint counts.
        codec: what a target is.
        config: which joints count, and how much.
        share: factor of the gradient, for one part of a batch.

    Returns:
        The loss, and its mean over the batch for each joint ``[J]`` (of the final heatmaps, all joints).
    """
    scale = 1.0
    if config.hidden_weight:
        # A joint is only drawn where its weight is above 0.5 (the official gate), so the hidden ones get 1.
        scale, weights = config.hidden_weight, _with_hidden(weights, keypoints, config)
    outputs = heatmaps if isinstance(heatmaps, list) else [heatmaps]
    losses, grads = [], []
    for output in outputs:
        predicted, counted, factor = output.detach(), weights, scale
        if config.hard_joints:
            all_joints = heatmap_mse_loss(predicted, keypoints, weights, codec, per_joint=True)
            counted = weights * hardest(all_joints, config.hard_joints)
            factor = scale * weights.shape[1] / config.hard_joints
        loss, grad, per_joint = heatmap_mse_loss_and_grad(
            predicted, keypoints, counted, codec, grad_scale=factor * share
        )
        losses.append(loss * factor if factor != 1 else loss)
        grads.append(grad)
    torch.autograd.backward(outputs, grads)
    per_joint = (all_joints if config.hard_joints else per_joint).mean(0) * scale
    return torch.stack(losses).sum(), per_joint


def hardest(per_joint: Tensor, count: int) -> Tensor:
    """1 for the ``count`` joints of each sample with the largest loss ``[B, J]``, else 0.

    Online hard keypoint mining: the official ``JointsOHKMMSELoss`` takes 8 and divides their sum by 8.

    Example:
        >>> hardest(torch.tensor([[0.3, 0.1, 0.2]]), 2)
        tensor([[1., 0., 1.]])
    """
    found = per_joint.topk(count, dim=1).indices
    return torch.zeros_like(per_joint, dtype=torch.float32).scatter_(1, found, 1.0)


def _with_hidden(weights: Tensor, keypoints: Tensor, config: DetectorConfig) -> Tensor:
    """Weights with those of labelled joints that cannot be seen, in units of ``hidden_weight``."""
    inside = ((keypoints >= -0.5) & (keypoints < config.image_size - 0.5)).all(2)
    return torch.where(weights > 0, weights / config.hidden_weight, inside.float())
