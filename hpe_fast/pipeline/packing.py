"""Convolutions of a folded network as oneDNN runs them fastest on a CPU: weights laid out once, ReLU and sum inside.

torch's own layer brings the weights into oneDNN's layout again at every call (at batch 1 as much memory traffic as the
pictures), and each ReLU and each shortcut goes through memory once more. torch.compile uses the same operators.
"""

from __future__ import annotations

import copy
from types import MethodType

import torch
from torch import Tensor, nn

from hpe_fast.models.resnet import BasicBlock, Bottleneck


def can_pack() -> bool:
    """Whether this torch has the operators.

    Example:
        >>> isinstance(can_pack(), bool)
        True
    """
    packer = hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
    return torch.backends.mkldnn.is_available() and packer and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


class PackedConv(nn.Module):
    """A convolution and what follows it: a sum with a shortcut if one is given, and a ReLU.

    Its weights are opaque: they cannot be saved or copied.
    """

    def __init__(self, layer: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        self._geometry = list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups
        weight = layer.weight.detach().to_mkldnn()
        self._weight = torch._C._nn.mkldnn_reorder_conv2d_weight(weight, *self._geometry)
        self._bias = None if layer.bias is None else layer.bias.detach()
        self._relu = "relu" if relu else "none"

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        run = torch.ops.mkldnn._convolution_pointwise
        layer = (self._weight, self._bias, *self._geometry)
        if shortcut is None:
            return run(x, *layer, self._relu, [], "")
        return run.binary(x, shortcut, *layer, "add", 1.0, self._relu, [], "")


def pack(model: nn.Module) -> nn.Module:
    """A copy of a network whose BatchNorm is folded, with packed convolutions; the numbers differ by rounding.

    Residual blocks, and sequences of convolution and ReLU, become one call a convolution; other layers stay.

    Example:
        >>> from hpe_fast.models import hrnet
        >>> from hpe_fast.pipeline import fold_batchnorm
        >>> model = fold_batchnorm(hrnet(width=8, modules=(1, 1, 1), blocks=1))
        >>> images = torch.rand(1, 3, 64, 64).to(memory_format=torch.channels_last)
        >>> torch.allclose(pack(model)(images), model(images), atol=1e-4)
        True
    """
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        if isinstance(module, (BasicBlock, Bottleneck)):
            _pack_block(module)
        elif isinstance(module, nn.Sequential):
            _pack_sequence(module)
    return model


def _packable(layer: nn.Module | None) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _pack_block(block: BasicBlock | Bottleneck) -> None:
    names = ["conv1", "conv2", "conv3"][: 2 if isinstance(block, BasicBlock) else 3]
    norms = [getattr(block, f"bn{i + 1}") for i in range(len(names))]
    if all(isinstance(norm, nn.Identity) for norm in norms):
        for name in names:
            setattr(block, name, PackedConv(getattr(block, name), relu=True))
        block.forward = MethodType(_packed_block, block)


def _packed_block(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    y = block.conv1(x)
    if isinstance(block, Bottleneck):
        return block.conv3(block.conv2(y), block.downsample(x))
    return block.conv2(y, block.downsample(x))


def _pack_sequence(sequence: nn.Sequential) -> None:
    """Every convolution, with the ReLU that follows it (directly, or after what is left of a BatchNorm)."""
    layers = [(name, layer) for name, layer in sequence.named_children() if not isinstance(layer, nn.Identity)]
    for (name, layer), (after, following) in zip(layers, [*layers[1:], ("", None)], strict=True):
        if _packable(layer):
            relu = isinstance(following, nn.ReLU)
            setattr(sequence, name, PackedConv(layer, relu))
            if relu:
                setattr(sequence, after, nn.Identity())
