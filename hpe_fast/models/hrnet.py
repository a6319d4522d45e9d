"""HRNet: parallel branches of four resolutions that exchange features again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hpe_fast.models.resnet import (
    BasicBlock,
    Bottleneck,
    check_positive,
    conv,
    conv_bn,
    heatmap_layer,
    initialize,
    residual_layer,
)

STAGES = (2, 3, 4)
STEM_WIDTH = 64


class Transition(nn.ModuleList):
    """Between two stages: adapts the branches there are and makes a new one, at half the lowest resolution."""

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        kept = [
            nn.Identity() if before == after else conv_bn(before, after, 3)
            for before, after in zip(inputs, outputs, strict=False)
        ]
        # The official code nests a new branch one level deeper, and its names show it.
        new = nn.Sequential(conv_bn(inputs[-1], outputs[-1], 3, stride=2))
        super().__init__([*kept, new])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [layer(maps[min(i, len(maps) - 1)]) for i, layer in enumerate(self)]


class ExchangeModule(nn.Module):
    """Residual blocks on every branch, then every output is the sum of all branches brought to its resolution.

    Args:
        widths: channels of each branch, highest resolution first.
        blocks: residual blocks a branch.
        outputs: branches to give out; 1 at the network's end.
    """

    def __init__(self, widths: Sequence[int], blocks: int, outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(residual_layer(BasicBlock, width, width, blocks) for width in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_exchange(widths, source, target) for source in range(len(widths)))
            for target in range(outputs)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        return [self._fuse(layers, maps, target) for target, layers in enumerate(self.fuse_layers)]

    @staticmethod
    def _fuse(layers: nn.ModuleList, maps: list[Tensor], target: int) -> Tensor:
        size = maps[target].shape[-2:]
        parts = [layer(x) for layer, x in zip(layers, maps, strict=True)]
        # To the target's size rather than by a factor: odd sizes fit too, and powers of two give the same numbers.
        parts[target + 1 :] = [F.interpolate(part, size=size, mode="nearest") for part in parts[target + 1 :]]
        total = parts[0] + parts[1]
        for part in parts[2:]:
            total = total + part
        return total.relu_()


def _exchange(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """From branch ``source`` to the channels, and if it is lower to the resolution, of branch ``target``."""
    if source == target:
        return nn.Identity()
    if source > target:
        return conv_bn(widths[source], widths[target], 1, relu=False)
    same = [conv_bn(widths[source], widths[source], 3, stride=2) for _ in range(target - source - 1)]
    return nn.Sequential(*same, conv_bn(widths[source], widths[target], 3, stride=2, relu=False))


class HRNet(nn.Module):
    """The network that ``hrnet`` builds, where its arguments are explained.

    Example:
        >>> HRNet(8, 17, (1, 1, 1), 1).config["blocks"]
        1
    """

    def __init__(
        self, width: int, joints: int, modules: Sequence[int], blocks: int, supervise_stages: bool = False
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "architecture": "hrnet",
            "width": width,
            "joints": joints,
            "modules": list(modules),
            "blocks": blocks,
            "supervise_stages": supervise_stages,
        }
        self.metadata: dict[str, Any] = {}
        self.conv1 = conv(3, STEM_WIDTH, 3, 2)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        self.conv2 = conv(STEM_WIDTH, STEM_WIDTH, 3, 2)
        self.bn2 = nn.BatchNorm2d(STEM_WIDTH)
        self.layer1 = residual_layer(Bottleneck, STEM_WIDTH, STEM_WIDTH, blocks)
        widths = [STEM_WIDTH * Bottleneck.expansion]
        for stage, count in zip(STAGES, modules, strict=True):
            inputs, widths = widths, [width << branch for branch in range(stage)]
            outputs = [stage] * count if stage != STAGES[-1] else [stage] * (count - 1) + [1]
            self.add_module(f"transition{stage - 1}", Transition(inputs, widths))
            self.add_module(f"stage{stage}", nn.Sequential(*(ExchangeModule(widths, blocks, n) for n in outputs)))
        self.final_layer = heatmap_layer(width, joints)
        if supervise_stages:
            self.stage2_head = heatmap_layer(width, joints)
            self.stage3_head = heatmap_layer(width, joints)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Images ``[B, 3, H, W]`` to heatmaps ``[B, joints, ceil(H / 4), ceil(W / 4)]``.

        In training with ``supervise_stages`` a list of three: after stage 2, after stage 3, final.
        """
        x = self.bn1(self.conv1(images)).relu_()
        x = self.bn2(self.conv2(x)).relu_()
        stage1 = [self.layer1(x)]
        stage2 = self.stage2(self.transition1(stage1))
        stage3 = self.stage3(self.transition2(stage2))
        stage4 = self.stage4(self.transition3(stage3))
        heatmaps = self.final_layer(stage4[0])
        if self.training and self.config["supervise_stages"]:
            return [self.stage2_head(stage2[0]), self.stage3_head(stage3[0]), heatmaps]
        return heatmaps


def hrnet(
    width: int = 32,
    joints: int = 17,
    modules: Sequence[int] = (1, 4, 3),
    blocks: int = 4,
    supervise_stages: bool = False,
) -> HRNet:
    """A High-Resolution Network that turns images into heatmaps.

    Sun, Xiao, Liu, Wang: Deep High-Resolution Representation Learning for Human Pose Estimation, 2019. Names, shapes
    and order of the parameters are those of leoxiaobin/deep-high-resolution-net.pytorch, so that its checkpoints load.
    Works at any size; with 256 and with 255 pixels the heatmaps have 64. Runs fastest in ``torch.channels_last``.
    Initialised to be trained from scratch (see ``resnet.initialize``), not as the official code does.

    Args:
        width: channels of the branch of the highest resolution; each lower one has twice as many.
        joints: heatmaps to give.
        modules: exchange modules in stages 2, 3 and 4.
        blocks: residual blocks a branch in each module, and bottlenecks in ``layer1``.
        supervise_stages: own a heatmap layer (``stage2_head``, ``stage3_head``, which official files lack) after each
            stage, and return ``[stage 2, stage 3, final]`` heatmaps in training mode; the paper's future work.
            In evaluation mode only the final heatmaps are computed.

    Returns:
        A module from images ``[B, 3, H, W]`` to heatmaps ``[B, joints, ceil(H / 4), ceil(W / 4)]``.

    Raises:
        ValueError: for an argument that is no positive int, or modules that are not three.

    Example:
        >>> import torch
        >>> hrnet(width=8, modules=(1, 1, 1), blocks=1)(torch.zeros(1, 3, 64, 48)).shape
        torch.Size([1, 17, 16, 12])
    """
    if not isinstance(modules, Sequence) or len(modules) != len(STAGES):
        raise ValueError(f"modules must be three positive ints (stages 2, 3 and 4), got {modules!r}")
    named = {f"modules[{i}]": count for i, count in enumerate(modules)}
    check_positive(width=width, joints=joints, blocks=blocks, **named)
    return HRNet(width, joints, modules, blocks, bool(supervise_stages))


def hrnet_w32(joints: int = 17, supervise_stages: bool = False) -> HRNet:
    """The official HRNet-W32: 28.5 M parameters.

    Example:
        >>> hrnet_w32().config["modules"]
        [1, 4, 3]
    """
    return hrnet(32, joints, supervise_stages=supervise_stages)


def hrnet_w48(joints: int = 17, supervise_stages: bool = False) -> HRNet:
    """The official HRNet-W48: 63.6 M parameters.

    Example:
        >>> hrnet_w48(joints=16).config["width"]
        48
    """
    return hrnet(48, joints, supervise_stages=supervise_stages)


def hrnet_paper(joints: int = 17, supervise_stages: bool = False) -> HRNet:
    """What the code of *Deep 3D Human Pose Estimation* trained: W32 with one module a stage, 9.3 M parameters.

    Example:
        >>> sum(p.numel() for p in hrnet_paper().parameters())
        9301745
    """
    return hrnet(32, joints, modules=(1, 1, 1), supervise_stages=supervise_stages)


def hrnet_tiny(joints: int = 17, supervise_stages: bool = False) -> HRNet:
    """An HRNet for CPUs: W32 with one module a stage and one block a branch; 2.9 M parameters.

    Example:
        >>> sum(p.numel() for p in hrnet_tiny().parameters())
        2943089
    """
    return hrnet(32, joints, modules=(1, 1, 1), blocks=1, supervise_stages=supervise_stages)
