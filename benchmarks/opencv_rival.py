"""A torch DataLoader with OpenCV in its workers: what one writes without DALI, written as fast as OpenCV allows.

It gets the draws of the augmentation as a gift (made before the clock starts), so that both sides show the same pixels.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hpe_fast.data.augment import Augmentation, Draw, draw
from hpe_fast.data.store import PoseStore
from hpe_fast.ops import PAPER_NORMALIZATION


def decode(jpeg: bytes) -> np.ndarray:
    """uint8 [H,W,3] RGB."""
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def move(image: np.ndarray, matrix: np.ndarray, fill: float) -> np.ndarray:
    """Quarter turns and whole-pixel shifts, by the nearest pixel."""
    size = image.shape[1::-1]
    return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_NEAREST, borderValue=(fill, fill, fill))


def finish(image: np.ndarray, color: np.ndarray, noise_std: float) -> np.ndarray:
    """Colours, noise and ``(x / 255 - mean) / std`` with the paper's one mean and std for all channels: float32 HWC."""
    mean, std = PAPER_NORMALIZATION.mean[0], PAPER_NORMALIZATION.std[0]
    image = cv2.transform(image, color)
    noise = np.empty(image.shape, np.float32)
    cv2.randn(noise, (-mean / std,) * 3, (noise_std / std,) * 3)
    return cv2.scaleAdd(image.astype(np.float32), 1 / (255 * std), noise)


def draw_all(store: PoseStore, augmentation: Augmentation, seed: int, epoch: int) -> Draw:
    """The draws of every row, as the loader makes them."""
    rows, size = np.arange(len(store)), store.image_size
    return draw(augmentation, seed, epoch, rows, store.pose2d, store.visible, size, size)


class AugmentedPictures(Dataset):
    """Network input float32 [H,W,3] and joints [17,2] of each row."""

    def __init__(self, path: Path, augmentation: Augmentation, seed: int = 0, epoch: int = 0) -> None:
        self.store = PoseStore(path)
        drawn = draw_all(self.store, augmentation, seed, epoch)
        self.matrix, self.color = drawn.matrix.astype(np.float64), drawn.color
        self.noise_std, self.fill = drawn.noise_std, augmentation.fill

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        picture = move(decode(self.store.read_jpeg(row)), self.matrix[row], self.fill)
        joints = self.store.pose2d[row] @ self.matrix[row, :, :2].T + self.matrix[row, :, 2]
        return finish(picture, self.color[row], float(self.noise_std[row])), joints.astype(np.float32)


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)


def make_loader(dataset: AugmentedPictures, batch_size: int, workers: int) -> DataLoader:
    """Batches float32 [B,H,W,3] (network input in channels_last memory) and joints [B,17,2], workers kept alive."""
    return DataLoader(
        dataset,
        batch_size,
        num_workers=workers,
        worker_init_fn=_one_thread,
        persistent_workers=True,
        prefetch_factor=4,
        # Not fork: DALI's and torch's threads would not live on in the copy, but their locks would.
        multiprocessing_context="spawn",
        pin_memory=torch.cuda.is_available(),
    )
