"""How good the two stages are on a pose store: ``python -m hpe_fast.evaluate --data STORE --weights RUN``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpe_fast import metrics
from hpe_fast.data.loader import ImageLoader
from hpe_fast.data.store import PoseStore
from hpe_fast.device import fast_dtype
from hpe_fast.models import unit_crop
from hpe_fast.ops import HeatmapCodec, Normalization, decode_heatmaps, prepare_images


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
    model: nn.Module, loader: ImageLoader, codec: HeatmapCodec, normalization: Normalization, *, amp: bool = True
) -> Detections:
    """Run the detector over a loader's first epoch; the model is left in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    dtype = fast_dtype(device) if amp else torch.float32
    found = []
    for batch in loader.epoch(0):
        images = prepare_images(batch.images, normalization, color=batch.color, dtype=dtype)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            heatmaps = model(images)
        coords, scores = decode_heatmaps(heatmaps, codec, refine="dark" if codec.rounding == "none" else "quarter")
        found.append((unit_crop(coords, codec.image_size).cpu(), scores.cpu(), batch.rows.cpu()))
    if not found:
        return Detections(torch.zeros(0, 17, 2), torch.zeros(0, 17), torch.zeros(0, dtype=torch.int64))
    keypoints, scores, rows = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Detections(keypoints, scores, rows)


def detection_errors(detections: Detections, store: PoseStore) -> dict[str, float]:
    """2D errors: ``epe2d_px`` in pixels of the store's pictures, ``pck2d_02_torso`` as a share of visible joints."""
    height, width = store.image_size
    predicted = detections.keypoints.double() * torch.tensor([width, height]) - 0.5
    rows = detections.rows.numpy()
    target = torch.from_numpy(store.pose2d[rows])
    visible = torch.from_numpy(store.visible[rows]) > 0
    return {
        "epe2d_px": float(metrics.epe2d(predicted, target, visible)),
        "pck2d_02_torso": float(metrics.pck2d(predicted, target, visible, 0.2)),
    }


@torch.no_grad()
def lift(lifter: nn.Module, keypoints: Tensor, batch_size: int = 8192) -> Tensor:
    """3D joints ``[N, 17, 3]`` (mm, root-relative, on the CPU) of unit-crop keypoints ``[N, 17, 2]``."""
    lifter.eval()
    device = next(lifter.parameters()).device
    return torch.cat([lifter(part.to(device)).float().cpu() for part in keypoints.split(batch_size)])


def root_relative(pose3d: Tensor) -> Tensor:
    """``[N, 17, 3]`` with the hip at the origin."""
    return pose3d - pose3d[:, :1]


def pose_errors(predicted: Tensor, target: Tensor) -> dict[str, float]:
    """``mpjpe_mm`` and ``pa_mpjpe_mm`` of root-relative poses ``[N, 17, 3]``, mean over frames."""
    return {
        "mpjpe_mm": float(metrics.mpjpe(predicted, target)),
        "pa_mpjpe_mm": float(metrics.pa_mpjpe(predicted, target)),
    }
