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
    """What the detector found in every picture of a store.

    Example:
        >>> found = Detections(torch.rand(2, 17, 2), torch.ones(2, 17), torch.tensor([4, 9]))
        >>> found.rows.tolist()
        [4, 9]
    """

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
        model: images ``[B, 3, h, w]`` to heatmaps ``[B, 17, h', w']``.
        loader: of the store's pictures, at the size of the model's input.
        codec: what the heatmaps are.
        normalization: of the model's input.
        amp: compute in ``fast_dtype`` instead of float32.
        progress: show a bar.

    Returns:
        Detections: keypoints in unit-crop coordinates.

    Raises:
        DataError: a picture is damaged; its file and row are named.

    Example:
        >>> import cv2, numpy as np, tempfile
        >>> from hpe_fast.data.store import PoseStore, PoseStoreWriter
        >>> from hpe_fast.models import hrnet
        >>> from hpe_fast.ops import IMAGENET, OFFICIAL
        >>> path = tempfile.mkdtemp() + "/poses.h5"
        >>> jpeg = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
        >>> with PoseStoreWriter(path, (64, 64)) as writer:
        ...     for _ in range(3):
        ...         writer.append(jpeg, np.full((17, 2), 30.0), np.ones(17))
        >>> loader = ImageLoader(PoseStore(path), batch_size=2)
        >>> model = hrnet(width=8, modules=(1, 1, 1), blocks=1)
        >>> detect(model, loader, OFFICIAL.resized(64, 16), IMAGENET).keypoints.shape
        torch.Size([3, 17, 2])
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
    """3D joints ``[N, 17, 3]`` (mm, root-relative, on the CPU) of unit-crop keypoints ``[N, 17, 2]``.

    Example:
        >>> from hpe_fast.models import lifter
        >>> lift(lifter(width=16), torch.rand(5, 17, 2), batch_size=2).shape
        torch.Size([5, 17, 3])
    """
    lifter.eval()
    device = next(lifter.parameters()).device
    return torch.cat([lifter(part.to(device)).float().cpu() for part in keypoints.split(batch_size)])


def root_relative(pose3d: Tensor) -> Tensor:
    """Poses ``[N, 17, 3]`` mm with the hip at the origin.

    Example:
        >>> root_relative(torch.ones(2, 17, 3)).abs().max()
        tensor(0.)
    """
    return pose3d - pose3d[:, :1]
