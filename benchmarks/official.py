"""What the official HRNet and SimpleBaseline code computes with numpy, joint by joint, restated from its rules.

leoxiaobin/deep-high-resolution-net.pytorch 6f69e46: ``JointsDataset.generate_target``, ``JointsMSELoss``,
``get_max_preds`` and the quarter offset of ``get_final_preds``. Written anew; looped where the original loops, because
that is what it costs.
"""

from __future__ import annotations

import numpy as np


def generate_target(
    joints: np.ndarray, visible: np.ndarray, stride: tuple[float, float], size: tuple[int, int], sigma: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
    """Targets [J,H,W] and weights [J] of one sample's joints [J,2] in network-input pixels."""
    height, width = size
    target = np.zeros((len(joints), height, width), np.float32)
    weight = visible.astype(np.float32)
    reach = int(3 * sigma)
    span = np.arange(2 * reach + 1, dtype=np.float32)
    for j in range(len(joints)):
        # int() truncates towards zero, also below it.
        mu_x, mu_y = (int(joints[j, axis] / stride[axis] + 0.5) for axis in (0, 1))
        left, top, right, bottom = mu_x - reach, mu_y - reach, mu_x + reach + 1, mu_y + reach + 1
        if left >= width or top >= height or right < 0 or bottom < 0:
            weight[j] = 0
            continue
        patch = np.exp(-((span - reach) ** 2 + (span[:, None] - reach) ** 2) / (2 * sigma**2))
        if weight[j] > 0.5:
            columns, rows = slice(max(0, left), min(right, width)), slice(max(0, top), min(bottom, height))
            inside = patch[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            target[j, rows, columns] = inside
    return target, weight


def generate_targets(
    joints: np.ndarray, visible: np.ndarray, stride: tuple[float, float], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Targets [B,J,H,W] and weights [B,J]: sample by sample, then stacked, as a data loader does."""
    samples = [generate_target(j, v, stride, size) for j, v in zip(joints, visible, strict=True)]
    return np.stack([target for target, _ in samples]), np.stack([weight for _, weight in samples])


def joints_mse_loss(output: np.ndarray, target: np.ndarray, weight: np.ndarray) -> tuple[float, np.ndarray]:
    """``0.5 * mean(w^2 (p - t)^2)``, joint by joint, and its gradient [B,J,H,W]."""
    batch, joints = output.shape[:2]
    predicted, wanted = output.reshape(batch, joints, -1), target.reshape(batch, joints, -1)
    grad = np.empty_like(predicted)
    loss = 0.0
    for j in range(joints):
        w = weight[:, j, None]
        difference = w * predicted[:, j] - w * wanted[:, j]
        loss += 0.5 * float(np.mean(difference**2))
        grad[:, j] = w * difference / (difference.size * joints)
    return loss / joints, grad.reshape(output.shape)


def max_predictions(heatmaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First maximum of each map: coordinates [B,J,2] in heatmap pixels (0 where it is not positive), values [B,J]."""
    width = heatmaps.shape[3]
    flat = heatmaps.reshape(*heatmaps.shape[:2], -1)
    index, value = np.argmax(flat, 2), np.amax(flat, 2)
    found = np.stack([index % width, np.floor(index / width)], 2).astype(np.float32)
    return found * (value > 0)[..., None], value


def final_predictions(heatmaps: np.ndarray, stride: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Maxima moved a quarter pixel towards the larger neighbour: [B,J,2] in network-input pixels, values [B,J]."""
    height, width = heatmaps.shape[2:]
    coords, value = max_predictions(heatmaps)
    for b in range(coords.shape[0]):
        for j in range(coords.shape[1]):
            heatmap = heatmaps[b, j]
            x, y = int(np.floor(coords[b, j, 0] + 0.5)), int(np.floor(coords[b, j, 1] + 0.5))
            if 1 < x < width - 1 and 1 < y < height - 1:
                slope = np.array([heatmap[y, x + 1] - heatmap[y, x - 1], heatmap[y + 1, x] - heatmap[y - 1, x]])
                coords[b, j] += np.sign(slope) * 0.25
    return coords * np.array(stride, np.float32), value


def normalized(
    images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...], noise_std: np.ndarray | None = None
) -> np.ndarray:
    """uint8 [B,H,W,3] to float32 [B,3,H,W], image by image, with Gaussian noise of standard deviation ``noise_std``."""
    random = np.random.default_rng(0)
    samples = []
    for i, image in enumerate(images):
        value = image.astype(np.float32) / np.float32(255)
        if noise_std is not None:
            value += noise_std[i] * random.standard_normal(value.shape, np.float32)
        value = (value - np.float32(mean)) / np.float32(std)
        samples.append(value.transpose(2, 0, 1))
    return np.stack(samples)
