"""What an evaluation looks like: the paper's figures, best and worst cases, a grid, and poses to turn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpe_fast.data.store import PoseStore
from hpe_fast.evaluate.report import Predictions, row_errors
from hpe_fast.pipeline import PosePipeline
from hpe_fast.plots import contact_sheet, draw_skeleton, pose_page, predictions_figure

#: Rows of each figure, and pictures of the grid.
FIGURE_ROWS, GRID = 6, 40


def write_figures(
    folder: Path, store: PoseStore, made: Predictions, pipeline: PosePipeline, samples: int = GRID
) -> list[Path]:
    """Write an evaluation's pictures into a folder.

    ========================  ====================================================================================
    ``figure1.png``           the paper's Figure 1: rows at equal distances, with input, heatmaps, 2D and 3D, true
                              and predicted
    ``figure2.png``           the paper's Figure 2: the same without the truth
    ``best.png, worst.png``   Figure 1 of the rows with the smallest and the largest error
    ``grid.png``              ``samples`` rows at equal distances with what was found in 2D
    ``poses.html``            the same rows' 3D poses, the worst and the best ones first; turns with the mouse
    ========================  ====================================================================================

    Args:
        made: predictions for the store.
        pipeline: of the networks measured, for the heatmaps.
        samples: how many rows the grid and the page show.

    Returns:
        The files written; without pictures in the store only the page.

    Raises:
        ValueError: samples is not positive.
        OSError: a file cannot be written.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    spread, best, worst = _spread(made, FIGURE_ROWS), *_extremes(made, FIGURE_ROWS)
    written = []
    if made.keypoints is not None:
        for name, places, truth in (
            ("figure1", spread, True),
            ("figure2", spread, False),
            ("best", best, True),
            ("worst", worst, True),
        ):
            if len(places):
                written.append(folder / f"{name}.png")
                _figure(written[-1], store, made, pipeline, places, truth)
        written.append(folder / "grid.png")
        _grid(written[-1], store, made, _spread(made, samples))
    written.append(folder / "poses.html")
    _page(written[-1], store, made, list(dict.fromkeys([*worst, *best, *_spread(made, samples)])))
    return written


def _spread(made: Predictions, count: int) -> list[int]:
    """Places at equal distances."""
    return np.unique(np.linspace(0, len(made.rows) - 1, min(count, len(made.rows))).round().astype(int)).tolist()


def _extremes(made: Predictions, count: int) -> tuple[list[int], list[int]]:
    """Places of the smallest and of the largest errors, each from its end; a prediction that is not finite is worst."""
    errors, _ = row_errors(made)
    known = torch.isfinite(made.target).all(2).any(1) if _deep(made) else made.visible.any(1)
    if made.keypoints is None and not _deep(made):
        return [], []
    order = [i for i in np.argsort(errors, kind="stable").tolist() if known[i]]  # NaN comes last
    return order[:count], order[::-1][:count]


def _deep(made: Predictions) -> bool:
    return row_errors(made)[1] == "mm"


def _figure(
    path: Path, store: PoseStore, made: Predictions, pipeline: PosePipeline, places: list[int], truth: bool
) -> None:
    images = [store.image(int(made.rows[place])) for place in places]
    predictions_figure(
        images,
        pipeline(images, return_heatmaps=True).heatmaps,
        made.target2d[places] if truth else None,
        made.keypoints[places],
        made.target[places] if truth and _deep(made) else None,
        made.guesses["pipeline"][places],
        path=path,
    )


def _grid(path: Path, store: PoseStore, made: Predictions, places: list[int]) -> None:
    images = [store.image(int(made.rows[place])) for place in places]
    contact_sheet(images, made.keypoints[places], made.visible[places], path=path)


def _page(path: Path, store: PoseStore, made: Predictions, places: list[int]) -> None:
    errors, unit = row_errors(made)
    labels = []
    for place in places:
        row = int(made.rows[place])
        error = f", error {errors[place]:.{0 if unit == 'mm' else 1}f} {unit}" if np.isfinite(errors[place]) else ""
        labels.append(f"row {row} {store.name[row]} ({made.actions[place]}){error}")
    pipeline = made.guesses.get("pipeline", made.guesses["lifter_true_2d"])
    images = None if made.keypoints is None else [_drawn(store, made, place) for place in places]
    page_title = f"Predicted 3D poses, {store.path.name}"
    pose_page(pipeline[places], made.target[places], images=images, labels=labels, title=page_title, path=path)


def _drawn(store: PoseStore, made: Predictions, place: int) -> np.ndarray:
    keypoints: Tensor = made.keypoints[place]
    return draw_skeleton(store.image(int(made.rows[place])), keypoints)
