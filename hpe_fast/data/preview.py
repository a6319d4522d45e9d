"""Contact sheet of augmented samples: ``python -m hpe_fast.data.preview STORE --out sheet.png``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from hpe_fast.data.augment import AUGMENTATIONS
from hpe_fast.data.loader import Batch, ImageLoader
from hpe_fast.data.store import PoseStore
from hpe_fast.files import atomic_path
from hpe_fast.ops import Normalization, prepare_images
from hpe_fast.skeleton import EDGES, LEFT, RIGHT

# What the network gets, back on the 0..1 scale.
_PLAIN = Normalization((0.0,) * 3, (1.0,) * 3)
_RED, _BLUE, _GREEN = (230, 50, 50), (60, 110, 255), (60, 200, 80)


@dataclass(frozen=True)
class PreviewConfig:
    """Draw augmented samples of a pose store, joints on top: right red, left blue, trunk green, hollow: not counted."""

    store: Annotated[Path, tyro.conf.Positional]
    """Pose store with pictures."""
    out: Path = Path("sheet.png")
    """Picture to write."""
    augmentation: str = "paper"
    """Preset: paper, official or none."""
    rows: int = 6
    """Rows of the sheet."""
    columns: int = 8
    """Columns of the sheet."""
    image_size: int | None = None
    """Side of a picture in pixels; the stored one if not given."""
    seed: int = 0
    """Seed of order, augmentation and noise."""
    epoch: int = 0
    """Which epoch's augmentation."""


def preview(config: PreviewConfig) -> np.ndarray:
    """The sheet, uint8 [H,W,3] RGB.

    Raises:
        ValueError: for an unknown preset or a store without pictures.
    """
    if config.augmentation not in AUGMENTATIONS:
        raise ValueError(f"augmentation must be one of {sorted(AUGMENTATIONS)}, got {config.augmentation!r}")
    if config.rows < 1 or config.columns < 1:
        raise ValueError(f"rows and columns must be at least 1, got {config.rows} and {config.columns}")
    loader = ImageLoader(
        PoseStore(config.store),
        config.rows * config.columns,
        image_size=config.image_size,
        augmentation=AUGMENTATIONS[config.augmentation],
        seed=config.seed,
        shuffle=True,
    )
    batch = next(loader.epoch(config.epoch))
    height, width = loader.image_size
    sheet = np.zeros((config.rows, config.columns, height, width, 3), np.uint8)
    for place, picture in zip(np.ndindex(config.rows, config.columns), _pictures(batch, config.seed), strict=False):
        sheet[place] = picture
    return sheet.transpose(0, 2, 1, 3, 4).reshape(config.rows * height, config.columns * width, 3)


def _pictures(batch: Batch, seed: int) -> list[np.ndarray]:
    noise = {"noise_std": batch.noise_std, "seed": seed, "sample_ids": batch.sample_ids}
    images = prepare_images(batch.images, _PLAIN, color=batch.color, **(noise if batch.noise_std is not None else {}))
    pixels = (images.permute(0, 2, 3, 1).clamp(0, 1) * 255).round().byte().numpy()
    return [
        _with_joints(image, keypoints, weights)
        for image, keypoints, weights in zip(pixels, batch.keypoints.numpy(), batch.weights.numpy(), strict=True)
    ]


def _with_joints(image: np.ndarray, keypoints: np.ndarray, weights: np.ndarray) -> np.ndarray:
    import cv2

    image = np.ascontiguousarray(image)
    points = [tuple(int(v) for v in np.round(point)) for point in keypoints]
    for parent, joint in EDGES:
        cv2.line(image, points[parent], points[joint], _color_of(joint), 1, cv2.LINE_AA)
    for joint, point in enumerate(points):
        cv2.circle(image, point, 2, _color_of(joint), -1 if weights[joint] else 1, cv2.LINE_AA)
    return image


def _color_of(joint: int) -> tuple[int, int, int]:
    return _RED if joint in RIGHT else _BLUE if joint in LEFT else _GREEN


def main() -> None:
    """Command line."""
    import cv2

    config = tyro.cli(PreviewConfig)
    sheet = preview(config)
    with atomic_path(config.out) as temporary:
        if not cv2.imwrite(str(temporary), sheet[:, :, ::-1]):
            raise OSError(f"{config.out}: cannot be written")
    print(f"wrote {config.out}")


if __name__ == "__main__":
    main()
