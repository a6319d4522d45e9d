"""What a target heatmap is, and what a normalised picture is: the constants that training and decoding must share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

#: Pixels; far beyond any heatmap.
_LARGEST = 1 << 20

Rounding = Literal["none", "floor", "nearest"]
Size = tuple[int, int]

#: Values of ``Rounding`` in csrc/kernels.h.
ROUNDING_CODES: dict[str, int] = {"none": 0, "floor": 1, "nearest": 2}


def _size(name: str, value: int | Size) -> Size:
    size = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(size) != 2 or not all(isinstance(v, int) and v > 0 for v in size):
        raise ValueError(f"{name} must be a positive int or (height, width), got {value!r}")
    return size


@dataclass(frozen=True)
class HeatmapCodec:
    """How joints become heatmaps and back.

    The target of a joint at ``(x, y)`` network-input pixels is
    ``amplitude * exp(-((u - cx)^2 + (v - cy)^2) / (2 sigma^2))`` at heatmap pixel ``(u, v)``, where
    ``c = round((x, y) / stride)`` and ``stride = image_size / heatmap_size``.

    Args:
        sigma: standard deviation in heatmap pixels.
        amplitude: value at the centre.
        truncate: half-width of the square window in sigmas (``int(truncate * sigma)`` pixels around the rounded
            centre); zero outside. A joint whose whole window lies off the map gets weight 0. ``None``: the whole map.
        rounding: of the centre: ``"nearest"`` truncates ``c + 0.5`` toward zero as the official code does, ``"floor"``
            (the decoder then adds the half pixel that flooring loses on average), or ``"none"`` (sub-pixel).
        image_size: network input, ``(height, width)`` or one int, in pixels.
        heatmap_size: heatmap, ``(height, width)`` or one int, in pixels.

    Raises:
        ValueError: for a value out of range.

    Example:
        >>> from hpe_fast.ops import OFFICIAL
        >>> OFFICIAL.stride
        (4.0, 4.0)
        >>> OFFICIAL.resized(128, 32).image_size
        (128, 128)
    """

    sigma: float = 2.0
    amplitude: float = 1.0
    truncate: float | None = 3.0
    rounding: Rounding = "nearest"
    image_size: int | Size = (256, 256)
    heatmap_size: int | Size = (64, 64)

    def __post_init__(self) -> None:
        for name in ("sigma", "amplitude"):
            value = getattr(self, name)
            if not hasattr(value, "__float__") or not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if self.truncate is not None and not (math.isfinite(self.truncate) and self.truncate > 0):
            raise ValueError(f"truncate must be a positive number or None, got {self.truncate!r}")
        if self.sigma > _LARGEST or self.radius > _LARGEST:  # the kernels count pixels in 32 bits
            raise ValueError(f"sigma and truncate * sigma must be at most {_LARGEST} pixels, got sigma {self.sigma!r}")
        if self.rounding not in ROUNDING_CODES:
            raise ValueError(f"rounding must be one of {sorted(ROUNDING_CODES)}, got {self.rounding!r}")
        object.__setattr__(self, "image_size", _size("image_size", self.image_size))
        object.__setattr__(self, "heatmap_size", _size("heatmap_size", self.heatmap_size))
        # Made here and not when first asked for: torch.compile does not trace functools.cached_property.
        code = float(ROUNDING_CODES[self.rounding])
        params = [float(self.sigma), float(self.amplitude), float(self.radius), code, *self.stride]
        object.__setattr__(self, "_params", params)

    @property
    def stride(self) -> tuple[float, float]:
        """Network-input pixels per heatmap pixel, ``(x, y)``."""
        return self.image_size[1] / self.heatmap_size[1], self.image_size[0] / self.heatmap_size[0]

    @property
    def radius(self) -> int:
        """Half-width of the window in heatmap pixels, -1 for the whole map."""
        return -1 if self.truncate is None else int(self.truncate * self.sigma)

    @property
    def params(self) -> list[float]:
        """``[sigma, amplitude, radius, rounding code, stride x, stride y]``: the codec as the operators take it."""
        return self._params

    def resized(self, image_size: int | Size, heatmap_size: int | Size) -> HeatmapCodec:
        """The same target for another network input and heatmap size."""
        return replace(self, image_size=image_size, heatmap_size=heatmap_size)


#: The official HRNet / SimpleBaseline target (leoxiaobin/deep-high-resolution-net.pytorch ``generate_target``).
OFFICIAL = HeatmapCodec()

#: What the paper's code trained with: 300 * N(floor(joint), 1.5 I) on the whole map.
PAPER = HeatmapCodec(sigma=math.sqrt(1.5), amplitude=300 / (2 * math.pi * 1.5), truncate=None, rounding="floor")

#: Sub-pixel centre on the whole map (DARK, Zhang et al. 2020).
UNBIASED = HeatmapCodec(truncate=None, rounding="none")


@dataclass(frozen=True)
class Normalization:
    """How pixels become network input: ``(pixel / 255 - mean) / std`` per RGB channel.

    Raises:
        ValueError: for anything but three finite means and three positive deviations.

    Example:
        >>> from hpe_fast.ops import IMAGENET
        >>> IMAGENET.mean
        (0.485, 0.456, 0.406)
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} must be three finite numbers, one a channel, got {values!r}")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std must be three positive numbers, got {self.std!r}")


#: ImageNet statistics, which official checkpoints expect.
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

#: ``pixel / 128 - 1``, the paper's code.
PAPER_NORMALIZATION = Normalization((128 / 255,) * 3, (128 / 255,) * 3)
