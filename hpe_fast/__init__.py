"""3D human pose estimation: HRNet heatmaps, a dense lifter, fused kernels."""

from __future__ import annotations

__version__ = "0.1.0"
