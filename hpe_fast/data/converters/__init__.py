"""Any copy of Human3.6M (and COCO's 2D poses) as pose stores."""

from __future__ import annotations

from hpe_fast.data.converters.conversion import LAYOUTS, SPLITS, convert, detect_layout
from hpe_fast.data.converters.inspection import describe, draw_sheet, find_problems
from hpe_fast.data.converters.opening import open_dataset
from hpe_fast.data.converters.shards import ConvertOptions

__all__ = [
    "LAYOUTS",
    "SPLITS",
    "ConvertOptions",
    "convert",
    "describe",
    "detect_layout",
    "draw_sheet",
    "find_problems",
    "open_dataset",
]
