"""What the two networks say of a pose store's rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpe_fast.data.loader import ImageLoader
from hpe_fast.device import fast_dtype
from hpe_fast.models import unit_crop
from hpe_fast.ops import HeatmapCodec, Normalization, decode_heatmaps, prepare_images
from hpe_fast.pipeline import REFINE
from hpe_fast.skeleton import NUM_JOINTS


@dataclass(frozen=True)
class Detections:
    """What the detector found in every picture of a store."""

    keypoints: Tensor
    """[N, 17, 2] float32, unit-crop coordinates, on the CPU."""
    scores: Tensor
    """[N, 17] float32."""
    rows: Tensor
    """[N] int64: which row of the store each is."""


@torch.no_grad()
def detect(
    model: nn.Module,
    loader: ImageLoader,
    codec: HeatmapCodec,
    normalization: Normalization,
    *,
    amp: bool = True,
    progress: bool = False,
) -> Detections:
    """Run the detector over a loader's first epoch; the model is left in evaluation mode.

    Args:
        amp: compute in ``fast_dtype`` instead of float32.
        progress: show a bar.
    """
    from tqdm import tqdm

    model.eval()
    device = next(model.parameters()).device
    dtype = fast_dtype(device) if amp else torch.float32
    found = []
    bar = tqdm(loader.epoch(0), "detecting", len(loader), unit="batch", dynamic_ncols=True, disable=not progress)
    for batch in bar:
        images = prepare_images(batch.images, normalization, color=batch.color, dtype=dtype)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            heatmaps = model(images)
        coords, scores = decode_heatmaps(heatmaps, codec, refine=REFINE)
        found.append((unit_crop(coords, codec.image_size).cpu(), scores.cpu(), batch.rows.cpu()))
    if not found:
        return Detections(torch.zeros(0, NUM_JOINTS, 2), torch.zeros(0, NUM_JOINTS), torch.zeros(0, dtype=torch.int64))
    keypoints, scores, rows = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Detections(keypoints, scores, rows)


@torch.no_grad()
def lift(lifter: nn.Module, keypoints: Tensor, batch_size: int = 8192) -> Tensor:
    """3D joints ``[N, 17, 3]`` (mm, root-relative, on the CPU) of unit-crop keypoints ``[N, 17, 2]``."""
    lifter.eval()
    device = next(lifter.parameters()).device
    return torch.cat([lifter(part.to(device)).float().cpu() for part in keypoints.split(batch_size)])


def root_relative(pose3d: Tensor) -> Tensor:
    """``[N, 17, 3]`` with the hip at the origin."""
    return pose3d - pose3d[:, :1]
