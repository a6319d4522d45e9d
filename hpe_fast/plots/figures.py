"""Figures by matplotlib, without a display: the paper's rows of predictions, poses in space, training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hpe_fast.files import atomic_path
from hpe_fast.plots.images import PathLike, as_array, as_image, heatmap_overlay, joint_color
from hpe_fast.skeleton import EDGES, NUM_JOINTS, ROOT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hpe_fast.plots.images import Array

TITLES = {
    "heatmaps": "heatmaps",
    "true2d": "true 2D",
    "pred2d": "predicted 2D",
    "true3d": "true 3D, side",
    "pred3d": "predicted 3D, side",
}


def skeleton3d(axes: Axes, joints3d: Array, *, radius: float | None = None) -> None:
    """Draw a pose into matplotlib 3D axes, seen from the right of the picture: the camera is on the left.

    Args:
        axes: of ``projection="3d"``. Their x, y and z are the camera's z (depth), -x and -y (up).
        joints3d: ``[17, 3]`` mm, camera frame; joints that are not finite are left out.
        radius: half of the side of the cube shown around the pose's middle, mm. ``None``: as large as the pose.

    Raises:
        ValueError: ``joints3d`` has another shape.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().add_subplot(projection="3d")
        >>> skeleton3d(axes, np.random.default_rng(0).normal(0, 300, (17, 3)))
        >>> len(axes.lines)
        16
    """
    joints = as_array(joints3d).astype(float)
    if joints.shape != (NUM_JOINTS, 3):
        raise ValueError(f"joints3d must be [{NUM_JOINTS}, 3], got {list(joints.shape)}")
    points = np.stack([joints[:, 2], -joints[:, 0], -joints[:, 1]], 1)  # a rotation: no mirror image
    for parent, child in EDGES:
        bone = points[[parent, child]]
        if np.isfinite(bone).all():
            axes.plot(*bone.T, color=_unit(joint_color(child)), linewidth=2.5, solid_capstyle="round")
    known = points[np.isfinite(points).all(1)]
    if len(known):
        axes.scatter(*known.T, s=5, color="black", depthshade=False)
        _frame_cube(axes, known, radius)
    axes.view_init(elev=8, azim=-70)
    axes.set(xticklabels=[], yticklabels=[], zticklabels=[])
    axes.tick_params(length=0)


def predictions_figure(
    images: Sequence[Array],
    heatmaps: Array | None,
    true2d: Array | None,
    pred2d: Array,
    true3d: Array | None,
    pred3d: Array | None,
    *,
    path: PathLike | None = None,
) -> Figure:
    """The paper's Figure 1, one row a picture: input, heatmaps, true and predicted 2D, true and predicted 3D (side).

    Without truth it is the paper's Figure 2. Every column whose argument is ``None`` is left out. Where truth is given
    the mean distance stands below the prediction (3D: after the hips are put on each other).

    Args:
        images: N times uint8 ``[H, W, 3]`` RGB.
        heatmaps: ``[N, J, h, w]``, covering the pictures.
        true2d: ``[N, 17, 2]`` px.
        pred2d: ``[N, 17, 2]`` px.
        true3d: ``[N, 17, 3]`` mm.
        pred3d: ``[N, 17, 3]`` mm.
        path: also save the figure there (.png).

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: there is no picture, or the arguments are not equally long.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> flat, deep = rng.uniform(0, 64, (1, 17, 2)), rng.normal(0, 300, (1, 17, 3))
        >>> figure = predictions_figure([np.zeros((64, 64, 3), np.uint8)], None, None, flat, None, deep)
        >>> len(figure.axes)
        3
    """
    from matplotlib.figure import Figure

    given = {"heatmaps": heatmaps, "true2d": true2d, "pred2d": pred2d, "true3d": true3d, "pred3d": pred3d}
    columns = {name: as_array(value) for name, value in given.items() if value is not None}
    for name, value in columns.items():
        if len(images) == 0 or len(value) != len(images):
            raise ValueError(
                f"{name} must have one row for each of the {len(images)} images (at least one), got {len(value)}"
            )
    pictures = [as_image(image) for image in images]
    figure = Figure(figsize=(2.1 * (len(columns) + 1), 2.25 * len(pictures) + 0.3), layout="constrained", dpi=110)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    for row, picture in enumerate(pictures):
        _prediction_row(figure, row, len(pictures), picture, {name: value[row] for name, value in columns.items()})
    return _saved_figure(figure, path)


def curves(history: Mapping[str, Sequence[Mapping[str, float]]], path: PathLike | None = None) -> Figure:
    """Draw how training went: a row of axes for each stage, one for each kind of value.

    Args:
        history: for each stage its epochs: ``{"epoch": 1, "loss": ..., "mpjpe_mm": ..., ...}``. Values whose names end
            alike (``_mm``, ``_px``) share axes; a loss has a logarithmic scale.
        path: also save the figure there (.png).

    Returns:
        The matplotlib figure.

    Example:
        >>> figure = curves({"hrnet": [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.1}], "lifter": []})
        >>> [axes.get_title() for axes in figure.axes]
        ['hrnet: loss']
    """
    from matplotlib.figure import Figure

    stages = {stage: _kinds(epochs) for stage, epochs in history.items() if epochs}
    width = max((len(kinds) for kinds in stages.values()), default=1)
    figure = Figure(figsize=(4.2 * width, 3.0 * max(len(stages), 1)), layout="constrained", dpi=110)
    for row, (stage, kinds) in enumerate(stages.items()):
        for column, (kind, names) in enumerate(kinds.items()):
            axes = figure.add_subplot(len(stages), width, row * width + column + 1)
            _draw_curve(axes, history[stage], names)
            axes.set_title(f"{stage}: {kind}", fontsize=10)
    return _saved_figure(figure, path)


def _unit(color: tuple[int, int, int]) -> tuple[float, ...]:
    return tuple(channel / 255 for channel in color)


def _prediction_row(figure: Figure, row: int, rows: int, picture: np.ndarray, values: dict[str, np.ndarray]) -> None:
    width = len(values) + 1
    radius = _radius([values[name] for name in ("true3d", "pred3d") if name in values])
    for column, name in enumerate(["input", *values]):
        deep = name in ("true3d", "pred3d")
        axes = figure.add_subplot(rows, width, row * width + column + 1, projection="3d" if deep else None)
        if row == 0:
            axes.set_title(TITLES.get(name, name), fontsize=10)
        if deep:
            skeleton3d(axes, values[name], radius=radius)
        else:
            _flat_axes(axes, name, picture, values.get(name))
        error = _error_text(name, values)
        if error and deep:
            axes.text2D(0.5, -0.04, error, transform=axes.transAxes, ha="center", fontsize=8)
        elif error:
            axes.set_xlabel(error, fontsize=8)


def _flat_axes(axes: Axes, name: str, picture: np.ndarray, value: np.ndarray | None) -> None:
    faint = name in ("true2d", "pred2d")
    axes.imshow(heatmap_overlay(picture, value) if name == "heatmaps" else picture, alpha=0.35 if faint else 1)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if faint:
        for parent, child in EDGES:
            axes.plot(*value[[parent, child]].T, color=_unit(joint_color(child)), linewidth=2.2, solid_capstyle="round")
        axes.scatter(*value.T, s=5, color="black", zorder=3)
        axes.set(xlim=(-0.5, picture.shape[1] - 0.5), ylim=(picture.shape[0] - 0.5, -0.5))


def _error_text(name: str, values: dict[str, np.ndarray]) -> str:
    truth = name.replace("pred", "true")
    if not name.startswith("pred") or truth not in values:
        return ""
    difference = values[name].astype(float) - values[truth]
    if name == "pred3d":
        difference = difference - difference[ROOT]
    distances = np.linalg.norm(difference, axis=-1)
    known = np.isfinite(distances)
    unit = "mm" if name == "pred3d" else "px"
    return f"error {distances[known].mean():.{0 if unit == 'mm' else 1}f} {unit}" if known.any() else ""


def _radius(poses: list[np.ndarray]) -> float | None:
    """Half of the largest extent of some poses, so that they are drawn at one scale."""
    extents = [
        np.ptp(pose[np.isfinite(pose).all(-1)], axis=0).max() for pose in poses if np.isfinite(pose).all(-1).any()
    ]
    return float(max(extents)) / 2 if extents else None


def _frame_cube(axes: Axes, points: np.ndarray, radius: float | None) -> None:
    low, high = points.min(0), points.max(0)
    half = 1.05 * max(radius if radius is not None else (high - low).max() / 2, 1e-3)
    for middle, set_limit in zip((low + high) / 2, (axes.set_xlim, axes.set_ylim, axes.set_zlim), strict=True):
        set_limit(middle - half, middle + half)
    axes.set_box_aspect((1, 1, 1), zoom=1.25)


def _kinds(epochs: Sequence[Mapping[str, float]]) -> dict[str, list[str]]:
    """Names of a stage's values, grouped by what they measure."""
    kinds: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for epoch in epochs for name in epoch if name != "epoch"):
        ending = name.rpartition("_")[2]
        kinds.setdefault(f"error in {ending}" if ending in ("mm", "px") else name, []).append(name)
    return kinds


def _draw_curve(axes: Axes, epochs: Sequence[Mapping[str, float]], names: list[str]) -> None:
    for name in names:
        points = [(epoch.get("epoch", i + 1), epoch[name]) for i, epoch in enumerate(epochs) if name in epoch]
        axes.plot(*zip(*points, strict=True), marker=".", label=name)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    values = [epoch[name] for epoch in epochs for name in names if name in epoch]
    if any("loss" in name for name in names) and min(values) > 0:
        axes.set_yscale("log")
    if len(names) > 1:
        axes.legend(fontsize=8)


def _saved_figure(figure: Figure, path: PathLike | None) -> Figure:
    if path is not None:
        with atomic_path(path) as temporary:
            figure.savefig(temporary)
    return figure
