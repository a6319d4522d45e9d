"""The lifter: a dense residual network from 2D joints to 3D joints, with its normalisation inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hpe_fast.models.resnet import check_positive

#: Below this a coordinate counts as constant (crops are 1 wide, poses about 1000 mm).
CONSTANT = 1e-6


class ResidualStage(nn.Module):
    """Two dense layers and a shortcut, without a ReLU after the sum."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, width)
        self.batch_norm1 = nn.BatchNorm1d(width)
        self.w2 = nn.Linear(width, width)
        self.batch_norm2 = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(self.batch_norm1(self.w1(x)).relu())
        y = self.dropout(self.batch_norm2(self.w2(y)).relu())
        return x + y


class Lifter(nn.Module):
    """The network that ``lifter`` builds, where its arguments are explained.

    Attributes:
        input_mean, input_std: ``[in_joints * 2]``, of the keypoints in crop units.
        output_mean, output_std: ``[out_joints * 3]``, of the joints in mm. A standard deviation of 0 marks a coordinate
            that is the same in every sample (the hip of root-relative poses): it is always given out as its mean.

    Example:
        >>> Lifter(17, 17, 64, 2, 0.5).output_std.shape
        torch.Size([51])
    """

    def __init__(self, in_joints: int, out_joints: int, width: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "architecture": "lifter",
            "in_joints": in_joints,
            "out_joints": out_joints,
            "width": width,
            "blocks": blocks,
            "dropout": dropout,
        }
        self.metadata: dict[str, Any] = {}
        self.w1 = nn.Linear(2 * in_joints, width)
        self.batch_norm1 = nn.BatchNorm1d(width)
        self.linear_stages = nn.ModuleList(ResidualStage(width, dropout) for _ in range(blocks))
        self.w2 = nn.Linear(width, 3 * out_joints)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("input_mean", torch.zeros(2 * in_joints))
        self.register_buffer("input_std", torch.ones(2 * in_joints))
        self.register_buffer("output_mean", torch.zeros(3 * out_joints))
        self.register_buffer("output_std", torch.ones(3 * out_joints))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, keypoints: Tensor) -> Tensor:
        """Keypoints ``[B, in_joints, 2]`` in crop units to joints ``[B, out_joints, 3]`` in mm."""
        return self.denormalize_joints(self.forward_normalized(keypoints))

    def forward_normalized(self, keypoints: Tensor) -> Tensor:
        """Keypoints ``[B, in_joints, 2]`` in crop units to *normalised* joints ``[B, out_joints, 3]``.

        The training loss is taken against ``normalize_joints(targets)``. Where only ``forward`` can be called (inside
        DistributedDataParallel) ``normalize_joints(model(keypoints))`` is the same, up to rounding.
        """
        x = self.normalize_keypoints(keypoints)
        x = self.dropout(self.batch_norm1(self.w1(x)).relu())
        for stage in self.linear_stages:
            x = stage(x)
        return self.w2(x).unflatten(-1, (-1, 3))

    def normalize_keypoints(self, keypoints: Tensor) -> Tensor:
        """``[B, in_joints, 2]`` in crop units to the network's input ``[B, in_joints * 2]``."""
        joints = self.config["in_joints"]
        if keypoints.dim() != 3 or keypoints.shape[1:] != (joints, 2):
            raise ValueError(f"keypoints must be [B, {joints}, 2], got {list(keypoints.shape)}")
        return (keypoints.flatten(1).to(self.input_mean.dtype) - self.input_mean) / _divisor(self.input_std)

    def normalize_joints(self, joints3d: Tensor) -> Tensor:
        """``[B, out_joints, 3]`` in mm to the space of the training loss; a constant coordinate becomes 0."""
        flat = joints3d.flatten(1).to(self.output_mean.dtype)
        return ((flat - self.output_mean) / _divisor(self.output_std)).unflatten(-1, (-1, 3))

    def denormalize_joints(self, normalized: Tensor) -> Tensor:
        """The inverse of ``normalize_joints``."""
        flat = normalized.flatten(1).to(self.output_mean.dtype)
        return (flat * self.output_std + self.output_mean).unflatten(-1, (-1, 3))

    @torch.no_grad()
    def fit_statistics(self, keypoints: Tensor, joints3d: Tensor) -> None:
        """Take mean and standard deviation from the training set, in float64.

        Args:
            keypoints: ``[N, in_joints, 2]`` in crop units.
            joints3d: ``[N, out_joints, 3]`` in mm, relative to the root.

        Raises:
            ValueError: for another shape, no sample, or a value that is not finite.
        """
        for name, values, joints, axes in (
            ("keypoints", keypoints, self.config["in_joints"], 2),
            ("joints3d", joints3d, self.config["out_joints"], 3),
        ):
            if values.dim() != 3 or values.shape[1:] != (joints, axes) or len(values) == 0:
                raise ValueError(f"{name} must be [N, {joints}, {axes}] with N > 0, got {list(values.shape)}")
            if not values.isfinite().all():
                raise ValueError(f"{name} must be finite: leave out the samples that are not known")
        for prefix, values in (("input", keypoints), ("output", joints3d)):
            std, mean = torch.std_mean(values.flatten(1).double(), dim=0, correction=0)
            std[std < CONSTANT] = 0
            getattr(self, f"{prefix}_mean").copy_(mean)
            getattr(self, f"{prefix}_std").copy_(std)


def _divisor(std: Tensor) -> Tensor:
    return torch.where(std == 0, torch.ones_like(std), std)


def lifter(
    in_joints: int = 17, out_joints: int = 17, width: int = 1024, blocks: int = 2, dropout: float = 0.5
) -> Lifter:
    """The dense network that lifts 2D joints to 3D.

    Martinez, Hossain, Romero, Little: A Simple Yet Effective Baseline for 3D Human Pose Estimation, 2017, with the
    parameter names of weigq/3d_pose_baseline_pytorch; 4.3 M parameters. Keypoints come in crop units,
    ``(x + 0.5) / width`` and ``(y + 0.5) / height`` of the person's crop, and so do not depend on its resolution. The
    normalisation statistics are buffers, identity until ``fit_statistics``; a checkpoint needs nothing beside it.

    Args:
        in_joints: joints in.
        out_joints: joints out.
        width: of the dense layers.
        blocks: residual stages of two layers.
        dropout: probability after each layer; 0.5 in Martinez et al., in effect 0 in the paper's code.

    Returns:
        A module from keypoints ``[B, in_joints, 2]`` to joints ``[B, out_joints, 3]`` in mm relative to the root.

    Raises:
        ValueError: for sizes that are no positive int, or a dropout outside [0, 1).

    Example:
        >>> import torch
        >>> model = lifter(width=64)
        >>> model.fit_statistics(torch.rand(100, 17, 2), 300 * torch.randn(100, 17, 3))
        >>> model.eval()(torch.rand(5, 17, 2)).shape
        torch.Size([5, 17, 3])
    """
    check_positive(in_joints=in_joints, out_joints=out_joints, width=width, blocks=blocks)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
    return Lifter(in_joints, out_joints, width, blocks, float(dropout))


def unit_crop(keypoints: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels of a crop to crop units, what the lifter takes.

    Args:
        keypoints: ``[..., 2]``, index coordinates (the centre of the top-left pixel is (0, 0)).
        size: ``(height, width)`` of the crop, pixels.

    Returns:
        ``[..., 2]``: 0 is the left (upper) edge of the crop, 1 the right (lower) one.

    Example:
        >>> import torch
        >>> unit_crop(torch.tensor([-0.5, 255.5]), (256, 256))
        tensor([0., 1.])
    """
    height, width = size
    x, y = keypoints.unbind(-1)  # apart: a tensor of the size would be a copy from the host, which no CUDA graph allows
    return torch.stack([(x + 0.5) / width, (y + 0.5) / height], -1)


def from_unit_crop(keypoints: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop units ``[..., 2]`` to pixels of a crop of ``size`` (height, width); the inverse of ``unit_crop``.

    Example:
        >>> import torch
        >>> from_unit_crop(torch.tensor([0.0, 1.0]), (256, 256))
        tensor([ -0.5000, 255.5000])
    """
    height, width = size
    x, y = keypoints.unbind(-1)
    return torch.stack([x * width - 0.5, y * height - 0.5], -1)
