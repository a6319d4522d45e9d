"""Pictures of poses: skeletons, heatmaps, the paper's figures, training curves. Right red, left blue, trunk green."""

from hpe_fast.plots.figures import curves, predictions_figure, skeleton3d
from hpe_fast.plots.images import contact_sheet, draw_skeleton, heatmap_overlay
from hpe_fast.plots.page import pose_page

__all__ = [
    "contact_sheet",
    "curves",
    "draw_skeleton",
    "heatmap_overlay",
    "pose_page",
    "predictions_figure",
    "skeleton3d",
]
