"""ResNet's residual blocks, and SimpleBaseline: a ResNet with three deconvolutions that give heatmaps."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

#: Residual block and blocks a layer of each ResNet (He et al. 2015, table 1).
DEPTHS: dict[int, tuple[str, tuple[int, int, int, int]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
DECONV_WIDTH = 256


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution before a BatchNorm: padded to keep ``ceil(size / stride)``, without bias."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, relu: bool = True) -> nn.Sequential:
    """Convolution, BatchNorm and (unless ``relu=False``) ReLU as items 0, 1 and 2."""
    layers = [conv(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn2(self.conv2(y))
        return y.add_(self.downsample(x)).relu_()


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride, as torchvision has it) and 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn2(self.conv2(y)).relu_()
        y = self.bn3(self.conv3(y))
        return y.add_(self.downsample(x)).relu_()


Block = type[BasicBlock] | type[Bottleneck]


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Identity() if stride == 1 and inputs == outputs else conv_bn(inputs, outputs, 1, stride, relu=False)


def residual_layer(block: Block, inputs: int, width: int, blocks: int, stride: int = 1) -> nn.Sequential:
    """``blocks`` residual blocks, the first of which changes channels and resolution."""
    later = (block(width * block.expansion, width) for _ in range(blocks - 1))
    return nn.Sequential(block(inputs, width, stride), *later)


def initialize(model: nn.Module) -> None:
    """Weights for training from scratch.

    Every convolution followed by BatchNorm gets He's normal initialisation. The only convolutions with a bias are the
    ones that make heatmaps; they get N(0, 0.001) and bias 0, so that training starts from empty heatmaps. The official
    code draws *all* convolutions from N(0, 0.001), which is harmless there because ImageNet weights replace them;
    trained from scratch, weights that small make the first steps (relative to the weights) far too long.
    """
    for module in model.modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            continue
        if module.bias is None:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.normal_(module.weight, std=0.001)
            nn.init.zeros_(module.bias)


def heatmap_layer(inputs: int, joints: int) -> nn.Conv2d:
    """The 1x1 convolution that turns features into one heatmap a joint."""
    return nn.Conv2d(inputs, joints, 1)


def check_positive(**arguments: int) -> None:
    """Raise ValueError for an argument that is no positive int."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive int, got {value!r}")


class SimpleBaseline(nn.Module):
    """The network that ``simple_baseline`` builds, where its arguments are explained.

    Example:
        >>> SimpleBaseline(18, 17).config["depth"]
        18
    """

    def __init__(self, depth: int, joints: int) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"architecture": "simple_baseline", "depth": depth, "joints": joints}
        self.metadata: dict[str, Any] = {}
        kind, blocks = DEPTHS[depth]
        block = {"basic": BasicBlock, "bottleneck": Bottleneck}[kind]
        self.conv1 = conv(3, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        channels = 64
        for i, count in enumerate(blocks):
            layer = residual_layer(block, channels, 64 << i, count, stride=1 if i == 0 else 2)
            self.add_module(f"layer{i + 1}", layer)
            channels = (64 << i) * block.expansion
        self.deconv_layers = nn.Sequential(*_deconvolutions(channels, 3))
        self.final_layer = heatmap_layer(DECONV_WIDTH, joints)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to heatmaps ``[B, joints, 8 ceil(H / 32), 8 ceil(W / 32)]``."""
        x = self.maxpool(self.bn1(self.conv1(images)).relu_())
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.final_layer(self.deconv_layers(x))


def _deconvolutions(inputs: int, count: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i in range(count):
        up = nn.ConvTranspose2d(DECONV_WIDTH if i else inputs, DECONV_WIDTH, 4, 2, padding=1, bias=False)
        layers += [up, nn.BatchNorm2d(DECONV_WIDTH), nn.ReLU(inplace=True)]
    return layers


def simple_baseline(depth: int = 50, joints: int = 17) -> SimpleBaseline:
    """The ResNet with three deconvolutions that the paper compares HRNet with.

    Xiao, Wu, Wei: Simple Baselines for Human Pose Estimation and Tracking, 2018. Parameter names are those of
    microsoft/human-pose-estimation.pytorch, so that its checkpoints load. Initialised to be trained from scratch
    (see ``initialize``).

    Args:
        depth: of the ResNet: 18, 34, 50, 101 or 152.
        joints: heatmaps to give.

    Returns:
        A module from images ``[B, 3, H, W]`` to heatmaps ``[B, joints, 8 ceil(H / 32), 8 ceil(W / 32)]``.

    Raises:
        ValueError: for another depth, or joints that are no positive int.

    Example:
        >>> import torch
        >>> simple_baseline(18)(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 17, 16, 16])
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth must be one of {sorted(DEPTHS)}, got {depth!r}")
    check_positive(joints=joints)
    return SimpleBaseline(depth, joints)
