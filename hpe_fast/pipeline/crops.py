"""Which part of a picture the network sees, and how it is resampled.

Everything is in index coordinates (the centre of the top-left pixel is (0, 0)). A crop has no rotation, so the map from
crop to picture is ``x = sx * u + tx``, ``y = sy * v + ty``, kept as ``[sx, tx, sy, ty]``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hpe_fast.pipeline.inputs import to_rgb

#: How much larger than the person's box the crop is (mmpose, official HRNet).
PADDING = 1.25
#: Pixels that are converted to float at a time: 3 * 4 bytes each.
PIXELS_AT_ONCE = 2**24


def box_crops(boxes: Tensor, size: tuple[int, int], padding: float = PADDING) -> Tensor:
    """Crops around boxes: the same centre, padded, widened to the network's aspect ratio.

    A box is measured from pixel edges, so that (0, 0, width, height) is the whole picture. The official code maps the
    box's centre to ``width / 2`` of the crop in index coordinates, half a crop pixel off; here the centre goes to the
    centre, ``(width - 1) / 2``.

    Args:
        boxes: ``[N, 4]`` float64 x, y, width, height, px.
        size: of the network's input, ``(height, width)``.
        padding: factor on the box.

    Returns:
        ``[N, 4]`` float64 sx, tx, sy, ty.

    Example:
        >>> box_crops(torch.tensor([[0.0, 0, 512, 256]]), (256, 256), padding=1)
        tensor([[   2.0000,    0.5000,    2.0000, -127.5000]])
    """
    height, width = size
    x, y, w, h = boxes.unbind(1)
    scale = padding * torch.maximum(w / width, h / height)
    return torch.stack(
        [scale, x + (w - 1) / 2 - scale * (width - 1) / 2, scale, y + (h - 1) / 2 - scale * (height - 1) / 2], 1
    )


def whole_crop(picture_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The crop ``[4]`` that shows a whole picture, centred, with black beside it where the aspect ratios differ."""
    height, width = picture_size
    return box_crops(torch.tensor([[0, 0, width, height]], dtype=torch.float64), size, padding=1.0)[0]


def resample(pictures: Tensor, crop: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut the same crop out of pictures: bilinear, after averaging blocks where it shrinks by 2 or more.

    Black outside of the picture; within half a pixel of its edge the edge's colour.

    Args:
        pictures: uint8 ``[B, H, W, C]``, grey, RGB or RGBA.
        crop: ``[4]`` sx, tx, sy, ty.
        size: of the crop, ``(height, width)``.

    Returns:
        uint8 ``[B, height, width, 3]`` on the pictures' device.

    Example:
        >>> pictures = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8, 1)
        >>> resample(pictures, whole_crop((8, 8), (4, 4)), (4, 4))[0, :, :, 0]
        tensor([[ 4,  6,  8, 10],
                [20, 22, 24, 26],
                [36, 38, 40, 42],
                [52, 54, 56, 58]], dtype=torch.uint8)
    """
    sx, tx, sy, ty = crop.tolist()
    if (sx, tx, sy, ty) == (1, 0, 1, 0) and tuple(pictures.shape[1:3]) == tuple(size):
        return to_rgb(pictures).contiguous()
    columns = _Axis(sx, tx, size[1], pictures.shape[2])
    rows = _Axis(sy, ty, size[0], pictures.shape[1])
    if columns.empty or rows.empty:
        return pictures.new_zeros(len(pictures), *size, 3)
    region = pictures[:, rows.start : rows.stop, columns.start : columns.stop]
    at_once = max(1, PIXELS_AT_ONCE // (region.shape[1] * region.shape[2]))
    return torch.cat([_sample(part, rows, columns) for part in region.split(at_once)])


class _Axis:
    """Where the samples of a crop lie along one axis of a picture: the range they need, and the averaging before."""

    def __init__(self, scale: float, shift: float, samples: int, pixels: int) -> None:
        self.block = max(1, math.floor(scale))
        self.start = max(0, math.floor(shift) - self.block)
        self.stop = min(pixels, math.ceil(scale * (samples - 1) + shift) + self.block + 1)
        self.empty = self.stop <= self.start
        self.scale, self.shift, self.samples, self.pixels = scale, shift, samples, pixels

    def padding(self) -> int:
        """Pixels missing to whole blocks."""
        return -(self.stop - self.start) % self.block

    def positions(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Samples on grid_sample's scale (-1 and 1 are the outer edges), and whether each is inside the picture."""
        pixel = self.scale * torch.arange(self.samples, dtype=torch.float64, device=device) + self.shift
        blocks = (self.stop - self.start + self.padding()) / self.block
        block = (pixel - self.start + 0.5) / self.block  # from the region's edge
        return (2 * block / blocks - 1).float(), (pixel >= -0.5) & (pixel <= self.pixels - 0.5)


def _sample(region: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    values = to_rgb(region).movedim(3, 1).float()
    if rows.block > 1 or columns.block > 1:
        values = F.pad(values, (0, columns.padding(), 0, rows.padding()), mode="replicate")
        values = F.avg_pool2d(values, (rows.block, columns.block))
    (y, y_inside), (x, x_inside) = rows.positions(region.device), columns.positions(region.device)
    grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], 2)
    grid = grid.expand(len(region), *grid.shape)
    out = F.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=False)
    out = out * (y_inside[:, None] & x_inside)
    return out.round_().clamp_(0, 255).to(torch.uint8).movedim(1, 3).contiguous()
