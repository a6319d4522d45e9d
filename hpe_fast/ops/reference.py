"""The operators in plain PyTorch: arguments and meaning of the kernels, on any device, differentiable by torch.

They run where no kernel does (``HPE_FAST_BACKEND=torch``, CUDA tensors without CUDA kernels), and they are what the
kernels are tested and measured against. ``codec`` is ``HeatmapCodec.params``; csrc/target.h is the definition of a
target.
"""

from __future__ import annotations

import math
import struct

import torch
from torch import Tensor

from hpe_fast.ops.codec import ROUNDING_CODES

REFINE_CODES: dict[str, int] = {"none": 0, "quarter": 1, "dark": 2}

_MAX_EXPONENT = 27.6310211  # -ln(1e-12): Gaussian tails below are zero
_FAR = 1e6  # heatmap pixels; centres are clamped to it
_QUARTER, _DARK = REFINE_CODES["quarter"], REFINE_CODES["dark"]
_NONE, _FLOOR = ROUNDING_CODES["none"], ROUNDING_CODES["floor"]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of sums and losses over heatmaps of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def memory_format_of(x: Tensor) -> torch.memory_format:
    """The dense format a 4D tensor has or is nearest to; NCHW where both fit."""
    if x.is_contiguous():
        return torch.contiguous_format
    if x.is_contiguous(memory_format=torch.channels_last) or 0 < x.stride(1) < x.stride(3):
        return torch.channels_last
    return torch.contiguous_format


def _constants(values: list[float], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A vector made on the device: a copy from the host would stop a CUDA graph's capture."""
    return torch.cat([torch.full((1,), value, dtype=dtype, device=like.device) for value in values])


def _axis(position: Tensor, stride: float, size: int, codec: list[float]) -> tuple[Tensor, Tensor]:
    """Gaussian of one axis [B, J, size], and where the window lies off the map [B, J]."""
    sigma, _, radius, rounding = codec[:4]
    # A tensor, because CUDA multiplies by the reciprocal of a number, which is another rounding.
    scaled = torch.nan_to_num(position) / torch.full((), stride, dtype=torch.float32, device=position.device)
    centre = scaled.clamp(-_FAR, _FAR)
    nearest = torch.trunc(centre + 0.5)
    if rounding != _NONE:
        centre = torch.floor(centre) if rounding == _FLOOR else nearest
    pixels = torch.arange(size, dtype=torch.float32, device=position.device)
    exponent = (pixels - centre[..., None]).square() * (1.0 / (2.0 * sigma * sigma))
    values = torch.exp(-exponent).masked_fill(exponent >= _MAX_EXPONENT, 0.0)
    if radius < 0:
        return values, torch.zeros_like(centre, dtype=torch.bool)
    middle = nearest if rounding == _NONE else centre
    left, right = middle - radius, middle + radius + 1
    inside = (pixels >= left[..., None]) & (pixels < right[..., None])
    # Strict on the lower side, as in the official code: a window that ends at 0 draws nothing yet keeps its weight.
    return values.masked_fill(~inside, 0.0), (left >= size) | (right < 0)


def _targets(
    keypoints: Tensor, weights: Tensor | None, codec: list[float], size: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss weights [B, J], and the axis tables [B, J, H] and [B, J, W] whose product is the target."""
    weights = torch.ones_like(keypoints[..., 0]) if weights is None else weights
    finite = torch.isfinite(keypoints).all(-1) & torch.isfinite(weights)
    along_x, off_x = _axis(keypoints[..., 0], codec[4], size[1], codec)
    along_y, off_y = _axis(keypoints[..., 1], codec[5], size[0], codec)
    weights = weights.masked_fill(~finite | off_x | off_y, 0.0)
    amplitude = codec[1] * (weights > 0.5)  # the official gate: half-visible joints have an empty target
    return weights.to(dtype), (amplitude[..., None] * along_y).to(dtype), along_x.to(dtype)


def _outer(along_y: Tensor, along_x: Tensor, memory_format: torch.memory_format) -> Tensor:
    if memory_format == torch.channels_last:
        along_y, along_x = along_y.transpose(1, 2).contiguous(), along_x.transpose(1, 2).contiguous()
        return (along_y[:, :, None] * along_x[:, None]).permute(0, 3, 1, 2)
    return along_y[..., None] * along_x[..., None, :]


def render_heatmaps(
    keypoints: Tensor,
    weights: Tensor | None,
    codec: list[float],
    height: int,
    width: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """Target heatmaps [B, J, H, W]."""
    _, along_y, along_x = _targets(keypoints, weights, codec, (height, width), accumulation_dtype(dtype))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return _outer(along_y, along_x, memory_format).to(dtype).contiguous(memory_format=memory_format)


def _difference(
    heatmaps: Tensor, keypoints: Tensor, weights: Tensor | None, codec: list[float]
) -> tuple[Tensor, Tensor]:
    """Loss weights [B, J] and prediction minus target [B, J, H, W]."""
    dtype = accumulation_dtype(heatmaps.dtype)
    weights, along_y, along_x = _targets(keypoints, weights, codec, heatmaps.shape[2:], dtype)
    return weights, heatmaps.to(dtype) - _outer(along_y, along_x, memory_format_of(heatmaps))


def heatmap_mse(
    heatmaps: Tensor, keypoints: Tensor, weights: Tensor | None, codec: list[float], per_joint: bool
) -> Tensor:
    """Mean of ``w (p - t)^2``: a scalar, or [B, J]."""
    weights, difference = _difference(heatmaps, keypoints, weights, codec)
    losses = weights * difference.square().mean((2, 3))
    return losses if per_joint else losses.mean()


def heatmap_mse_backward(
    grad_out: Tensor,
    heatmaps: Tensor,
    keypoints: Tensor,
    weights: Tensor | None,
    codec: list[float],
    per_joint: bool,
) -> Tensor:
    """Gradient of :func:`heatmap_mse` with respect to the heatmaps."""
    weights, difference = _difference(heatmaps, keypoints, weights, codec)
    count = difference.shape[2] * difference.shape[3] if per_joint else difference.numel()
    scale = 2.0 / max(count, 1) * grad_out * weights
    grad = (scale[..., None, None] * difference).to(heatmaps.dtype)
    return grad.contiguous(memory_format=memory_format_of(heatmaps))


def heatmap_mse_and_grad(
    heatmaps: Tensor, keypoints: Tensor, weights: Tensor | None, codec: list[float], grad_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [], ``grad_scale`` times its gradient [B, J, H, W], and the loss of each joint [B, J]."""
    weights, difference = _difference(heatmaps, keypoints, weights, codec)
    losses = weights * difference.square().mean((2, 3))
    scale = 2.0 * grad_scale / max(difference.numel(), 1) * weights
    grad = (scale[..., None, None] * difference).to(heatmaps.dtype)
    return losses.mean(), grad.contiguous(memory_format=memory_format_of(heatmaps)), losses


def _flip_average(heatmaps: Tensor, flipped: Tensor, permutation: list[int], shift: bool) -> Tensor:
    back = torch.stack([flipped[:, j] for j in permutation], 1).flip(-1)  # views, and one copy
    if shift:
        back = torch.cat([back[..., :1], back[..., :-1]], -1)
    return 0.5 * (heatmaps + back)


def _maximum(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score, x and y [B, J] of the first maximum; NaN is ignored, and the score of a map of nothing else."""
    width = maps.shape[-1]
    scores, index = torch.nan_to_num(maps, -math.inf, math.inf, -math.inf).flatten(2).max(-1)
    lowest = torch.nan_to_num(maps, math.inf, math.inf, -math.inf).flatten(2).amin(-1)
    scores = scores.masked_fill(lowest > scores, math.nan)  # the lowest is above the highest where there is no number
    return scores, index % width, index // width


def _at(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Values [B, J, ...] of maps at positions [B, J, ...], clamped to the map."""
    height, width = maps.shape[2:]
    index = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return maps.flatten(2).gather(-1, index.flatten(2)).view(index.shape)


def _quarter_offset(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A quarter pixel towards the larger neighbour (official ``get_final_preds``), [B, J, 2]."""
    height, width = maps.shape[2:]
    step = torch.arange(1, -2, -2, device=maps.device)
    along_x = _at(maps, x[..., None] + step, y[..., None].expand(*y.shape, 2))
    along_y = _at(maps, x[..., None].expand(*x.shape, 2), y[..., None] + step)
    slope = torch.stack([along_x[..., 0] - along_x[..., 1], along_y[..., 0] - along_y[..., 1]], -1)
    inside = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)
    sign = (slope > 0).float() - (slope < 0).float()
    return (0.25 * sign).masked_fill(~inside[..., None], 0.0)


#: Largest step of dark's refinement, heatmap pixels: its stencil reaches so far (kDarkReach in csrc/kernels.h).
DARK_REACH = 2


def _blur_taps(sigma: float) -> list[float]:
    """The Gaussian that mmpose's DARK blurs with before it differentiates."""
    sigma = struct.unpack("f", struct.pack("f", sigma))[0]  # float32 as in the kernels: the size must agree on ties
    radius = round(2.5 * sigma)
    blur = 0.3 * (radius - 1) + 0.8  # OpenCV's sigma for a kernel of this size
    taps = [math.exp(-i * i / (2 * blur * blur)) for i in range(-radius, radius + 1)]
    return [tap / sum(taps) for tap in taps]


def _log_stencil(maps: Tensor, x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """Logarithm of the blurred map on the 5x5 pixels around each position, [B, J, 5, 5]; zeros beyond the map."""
    taps = _constants(_blur_taps(sigma), maps, torch.float64)
    reach = len(taps) // 2 + 2
    offset = torch.arange(-reach, reach + 1, device=maps.device)
    columns, rows = x[..., None] + offset, y[..., None] + offset
    shape = (*x.shape, len(offset), len(offset))
    patch = _at(maps, columns[..., None, :].expand(shape), rows[..., None].expand(shape)).double()
    inside_x = (columns >= 0) & (columns < maps.shape[3])
    inside_y = (rows >= 0) & (rows < maps.shape[2])
    patch = patch.masked_fill(~(inside_y[..., None] & inside_x[..., None, :]), 0.0)
    blurred = (patch.unfold(-1, len(taps), 1) @ taps).unfold(-2, len(taps), 1) @ taps
    return torch.log(torch.fmax(blurred, blurred.new_full((), 1e-10)))


def _dark_offset(maps: Tensor, x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """Newton step to the maximum of the log-heatmap (Zhang et al. 2020; mmpose ``refine_keypoints_dark``)."""
    height, width = maps.shape[2:]
    p = _log_stencil(maps, x, y, sigma)
    dx, dy = 0.5 * (p[..., 2, 3] - p[..., 2, 1]), 0.5 * (p[..., 3, 2] - p[..., 1, 2])
    dxx = 0.25 * (p[..., 2, 4] - 2 * p[..., 2, 2] + p[..., 2, 0])
    dyy = 0.25 * (p[..., 4, 2] - 2 * p[..., 2, 2] + p[..., 0, 2])
    dxy = 0.25 * (p[..., 3, 3] - p[..., 1, 3] - p[..., 3, 1] + p[..., 1, 1])
    determinant = dxx * dyy - dxy * dxy
    offset = torch.stack([dxy * dy - dyy * dx, dxy * dx - dxx * dy], -1) / determinant[..., None]
    inside = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2) & (determinant.abs() > 0)  # not NaN either
    inside &= offset.abs().amax(-1) <= DARK_REACH
    return offset.masked_fill(~inside[..., None], 0.0).float()


def decode_heatmaps(
    heatmaps: Tensor,
    flipped: Tensor | None,
    to_image: Tensor | None,
    codec: list[float],
    refine: int,
    shift_flipped: bool,
    flip_permutation: list[int],
) -> tuple[Tensor, Tensor]:
    """Coordinates [B, J, 2] and scores [B, J] of the maxima, float32."""
    maps = heatmaps.to(accumulation_dtype(heatmaps.dtype))
    if maps.numel() == 0:  # no joints, or no pixel to find one at
        scores = torch.full(maps.shape[:2], math.nan, dtype=torch.float32, device=maps.device)
        return scores.new_zeros((*scores.shape, 2)), scores
    if flipped is not None:
        maps = _flip_average(maps, flipped.to(maps.dtype), flip_permutation, shift_flipped)
    scores, x, y = _maximum(maps)
    coords = torch.stack([x, y], -1).float()
    if refine == _QUARTER:
        coords = coords + _quarter_offset(maps, x, y)
    elif refine == _DARK:
        coords = coords + _dark_offset(maps, x, y, codec[0])
    if codec[3] == _FLOOR:
        coords = coords + 0.5
    coords = coords.masked_fill(~(scores > 0)[..., None], 0.0)
    coords = torch.stack([coords[..., 0] * codec[4], coords[..., 1] * codec[5]], -1)
    if to_image is not None:
        coords = (to_image[:, None, :, :2] * coords[..., None, :]).sum(-1) + to_image[:, None, :, 2]
    return coords, scores.float()


def _philox(words: list[Tensor], seed: int) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al., SC 2011); 32-bit words in int64 tensors."""
    mask = 0xFFFFFFFF
    key = [seed & mask, seed >> 32 & mask]
    for _ in range(10):
        first, second = words[0] * 0xD2511F53, words[2] * 0xCD9E8D57
        words = [
            (second >> 32 & mask) ^ words[1] ^ key[0],
            second & mask,
            (first >> 32 & mask) ^ words[3] ^ key[1],
            first & mask,
        ]
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return words


def standard_normals(seed: int, sample_ids: Tensor, count: int) -> Tensor:
    """Noise N(0, 1) of each sample, [B, count] float64: a function of seed, sample id and element alone."""
    blocks = torch.arange((count + 3) // 4, device=sample_ids.device)
    blocks, ids = torch.broadcast_tensors(blocks, sample_ids[:, None])
    mask = 0xFFFFFFFF
    words = _philox([blocks & mask, blocks >> 32, ids & mask, ids >> 32 & mask], seed)
    u = [(word.double() + 0.5) * 2.0**-32 for word in words]
    radius = [torch.sqrt(-2.0 * torch.log(u[i])) for i in (0, 2)]
    angle = [2.0 * math.pi * u[i] for i in (1, 3)]
    normals = [radius[i] * wave(angle[i]) for i in (0, 1) for wave in (torch.cos, torch.sin)]
    return torch.stack(normals, -1).flatten(1)[:, :count]


def prepare_images(
    images: Tensor,
    color: Tensor | None,
    noise_std: Tensor | None,
    sample_ids: Tensor | None,
    mean: list[float],
    std: list[float],
    seed: int,
    dtype: torch.dtype,
) -> Tensor:
    """uint8 [B, H, W, 3] to normalised [B, 3, H, W] in channels_last memory."""
    value = images.float()
    if color is not None:
        pixels = torch.baddbmm(color[:, None, :, 3], value.flatten(1, 2), color[:, :, :3].transpose(1, 2))
        value = pixels.clamp(0.0, 255.0).view(value.shape)
    value = value / 255.0
    if noise_std is not None:
        noise = standard_normals(seed, sample_ids, value[0].numel() if len(value) else 0)
        value = value + (noise_std[:, None] * noise).float().view(value.shape)
    value = (value - _constants(mean, value)) / _constants(std, value)
    return value.to(dtype).permute(0, 3, 1, 2)
