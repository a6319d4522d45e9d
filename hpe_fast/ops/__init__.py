"""Operators on heatmaps and pictures, each with a CPU kernel, a CUDA kernel and a plain-PyTorch twin."""

from hpe_fast.ops.codec import (
    IMAGENET,
    OFFICIAL,
    PAPER,
    PAPER_NORMALIZATION,
    UNBIASED,
    HeatmapCodec,
    Normalization,
)
from hpe_fast.ops.functional import (
    decode_heatmaps,
    heatmap_mse_loss,
    heatmap_mse_loss_and_grad,
    prepare_images,
    render_heatmaps,
)
from hpe_fast.ops.native import build_info

__all__ = [
    "IMAGENET",
    "OFFICIAL",
    "PAPER",
    "PAPER_NORMALIZATION",
    "UNBIASED",
    "HeatmapCodec",
    "Normalization",
    "build_info",
    "decode_heatmaps",
    "heatmap_mse_loss",
    "heatmap_mse_loss_and_grad",
    "prepare_images",
    "render_heatmaps",
]
