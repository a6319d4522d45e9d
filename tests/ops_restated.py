"""The operators once more, in plain loops and float64, from the published rules: what kernels and twins are held to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hpe_fast.ops import HeatmapCodec

DEVICES = ["cpu"] + ([pytest.param("cuda", marks=pytest.mark.cuda)] if torch.cuda.is_available() else [])
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
FORMATS = [torch.contiguous_format, torch.channels_last]

#: (rtol, atol) of values computed from numbers of a dtype.
TOLERANCE = {
    torch.float64: (1e-5, 1e-7),
    torch.float32: (1e-5, 1e-6),
    torch.float16: (1e-3, 1e-3),
    torch.bfloat16: (8e-3, 1e-3),
}


def heatmap_centre(position: float, stride: float, rounding: str) -> float:
    """In float32, which decides on which side of a boundary a centre falls."""
    with np.errstate(over="ignore"):
        scaled = (np.float32(position) / np.float32(stride)).clip(-1e6, 1e6)  # farther is as far
    if rounding == "none":
        return float(scaled)
    return float(math.floor(scaled)) if rounding == "floor" else float(int(scaled + np.float32(0.5)))


def target(joint: np.ndarray, weight: float, codec: HeatmapCodec) -> tuple[np.ndarray, float]:
    """Map [H, W] and loss weight of one joint (HRNet ``generate_target``, and its relatives without a window)."""
    height, width = codec.heatmap_size
    blank = np.zeros((height, width))
    if not (np.isfinite(joint).all() and math.isfinite(weight)):
        return blank, 0.0
    mu_x, mu_y = (heatmap_centre(joint[i], codec.stride[i], codec.rounding) for i in (0, 1))
    xs, ys = np.arange(width), np.arange(height)
    inside = np.ones((height, width), bool)
    if codec.truncate is not None:
        r = int(codec.truncate * codec.sigma)
        middle = [int(np.float32(mu) + np.float32(0.5)) if codec.rounding == "none" else int(mu) for mu in (mu_x, mu_y)]
        left, top = middle[0] - r, middle[1] - r
        right, bottom = middle[0] + r + 1, middle[1] + r + 1
        if left >= width or top >= height or right < 0 or bottom < 0:
            return blank, 0.0
        inside = ((ys >= top) & (ys < bottom))[:, None] & ((xs >= left) & (xs < right))
    if not weight > 0.5:
        return blank, weight
    squared = (xs - mu_x) ** 2 + ((ys - mu_y) ** 2)[:, None]
    return np.where(inside, codec.amplitude * np.exp(-squared / (2 * codec.sigma**2)), 0.0), weight


def targets(
    keypoints: torch.Tensor, weights: torch.Tensor | None, codec: HeatmapCodec
) -> tuple[np.ndarray, np.ndarray]:
    """Maps [B, J, H, W] and loss weights [B, J]."""
    joints = keypoints.double().cpu().numpy()
    visible = np.ones(joints.shape[:2]) if weights is None else weights.double().cpu().numpy()
    maps, new = np.zeros((*joints.shape[:2], *codec.heatmap_size)), np.zeros(joints.shape[:2])
    for b, j in np.ndindex(*joints.shape[:2]):
        maps[b, j], new[b, j] = target(joints[b, j], visible[b, j], codec)
    return maps, new


def mse(
    heatmaps: torch.Tensor, keypoints: torch.Tensor, weights: torch.Tensor | None, codec: HeatmapCodec
) -> tuple[np.ndarray, np.ndarray]:
    """Losses [B, J], and the gradient [B, J, H, W] of their mean (mmpose ``KeypointMSELoss``)."""
    maps, w = targets(keypoints, weights, codec)
    difference = heatmaps.detach().double().cpu().numpy() - maps
    return w * (difference**2).mean((2, 3)), 2 * w[..., None, None] * difference / difference.size


def flip_average(maps: np.ndarray, flipped: np.ndarray, permutation: list[int], shift: bool) -> np.ndarray:
    """Official flip test: mirror back, exchange left and right, shift, average."""
    back = flipped[:, permutation, :, ::-1].copy()
    if shift:
        back[..., 1:] = back[..., :-1].copy()
    return maps.dtype.type(0.5) * (maps + back)


def quarter(m: np.ndarray, x: int, y: int) -> np.ndarray:
    """Official ``get_final_preds``."""
    height, width = m.shape
    if not (1 < x < width - 1 and 1 < y < height - 1):
        return np.zeros(2)
    return 0.25 * np.sign([m[y, x + 1] - m[y, x - 1], m[y + 1, x] - m[y - 1, x]])


def dark(m: np.ndarray, x: int, y: int, sigma: float) -> np.ndarray:
    """mmpose ``refine_keypoints_dark``: OpenCV blurs the whole map. Steps of more than two pixels are left out."""
    height, width = m.shape
    if not (1 < x < width - 2 and 1 < y < height - 2):
        return np.zeros(2)
    k = 2 * round(2.5 * sigma) + 1
    cv2 = pytest.importorskip("cv2")  # a machine that only tests kernels may lack it
    padded = cv2.GaussianBlur(np.pad(m.astype(np.float64), k // 2), (k, k), 0)
    p = np.log(np.maximum(padded[k // 2 : k // 2 + height, k // 2 : k // 2 + width], 1e-10))
    gradient = 0.5 * np.array([p[y, x + 1] - p[y, x - 1], p[y + 1, x] - p[y - 1, x]])
    dxx = 0.25 * (p[y, x + 2] - 2 * p[y, x] + p[y, x - 2])
    dyy = 0.25 * (p[y + 2, x] - 2 * p[y, x] + p[y - 2, x])
    dxy = 0.25 * (p[y + 1, x + 1] - p[y - 1, x + 1] - p[y + 1, x - 1] + p[y - 1, x - 1])
    hessian = np.array([[dxx, dxy], [dxy, dyy]])
    step = -np.linalg.inv(hessian) @ gradient if np.linalg.det(hessian) != 0 else np.zeros(2)
    return step if np.abs(step).max() <= 2 else np.zeros(2)


def decode_one(m: np.ndarray, codec: HeatmapCodec, refine: str) -> tuple[np.ndarray, float]:
    """Network-input coordinates (2,) and score of one float32 map."""
    if np.isnan(m).all():
        return np.zeros(2), math.nan
    index = int(np.argmax(np.where(np.isnan(m), -np.inf, m)))
    score = float(np.float32(m.flat[index]))
    if np.isnan(score):  # only -inf beside NaN
        score = -math.inf
    if score <= 0:
        return np.zeros(2), score
    y, x = divmod(index, m.shape[1])
    offset = {
        "none": lambda: np.zeros(2),
        "quarter": lambda: quarter(m, x, y),
        "dark": lambda: dark(m, x, y, codec.sigma),
    }
    position = np.array([x, y]) + offset[refine]() + (0.5 if codec.rounding == "floor" else 0.0)
    return position * np.array(codec.stride), score


def decode(
    maps: np.ndarray, codec: HeatmapCodec, refine: str, to_image: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [B, J, 2] and scores [B, J]."""
    coords, scores = np.zeros((*maps.shape[:2], 2)), np.zeros(maps.shape[:2])
    for b, j in np.ndindex(*maps.shape[:2]):
        coords[b, j], scores[b, j] = decode_one(maps[b, j], codec, refine)
        if to_image is not None:
            coords[b, j] = to_image[b, :, :2] @ coords[b, j] + to_image[b, :, 2]
    return coords, scores


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x32-10 on Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [
            second >> 32 ^ c[1] ^ k[0],
            second & 0xFFFFFFFF,
            first >> 32 ^ c[3] ^ k[1],
            first & 0xFFFFFFFF,
        ]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return tuple(c)


def normal(seed: int, sample: int, element: int) -> float:
    """Noise of one element: Box-Muller on the words of its counter."""
    low = 0xFFFFFFFF
    block, lane = divmod(element, 4)
    sample &= 2**64 - 1
    words = philox((block & low, block >> 32, sample & low, sample >> 32), (seed & low, seed >> 32))
    u = [(word + 0.5) / 2**32 for word in words]
    pair = lane // 2 * 2
    wave = math.cos if lane % 2 == 0 else math.sin
    return math.sqrt(-2 * math.log(u[pair])) * wave(2 * math.pi * u[pair + 1])
