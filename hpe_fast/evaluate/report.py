"""Every error of a pose store's rows: over all frames, as the mean of the actions, of each action and of each joint."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpe_fast import metrics
from hpe_fast.data.store import PoseStore
from hpe_fast.evaluate.networks import Detections, lift, root_relative
from hpe_fast.models import from_unit_crop, unit_crop
from hpe_fast.skeleton import JOINTS, ROOT

#: Whose 3D poses are measured, by key of the report.
GUESSES = {"mean_pose": "mean pose", "lifter_true_2d": "lifter on true 2D", "pipeline": "whole pipeline"}
#: Errors of 3D poses and of keypoints, in the report's order.
METRICS_3D = ("mpjpe_mm", "pa_mpjpe_mm", "n_mpjpe_mm", "mpjve_mm", "pck3d_150mm", "auc3d")
METRICS_2D = ("epe2d_px", "pck2d_02_torso")
#: Name of an action that the store leaves empty.
NO_NAME = "(no name)"

_OF_FRAMES: dict[str, Callable[..., Tensor]] = {
    "mpjpe_mm": metrics.mpjpe,
    "pa_mpjpe_mm": metrics.mpjpe,  # of the fitted poses
    "n_mpjpe_mm": metrics.n_mpjpe,
    "pck3d_150mm": metrics.pck3d,
    "auc3d": metrics.auc3d,
    "epe2d_px": metrics.epe2d,
    "pck2d_02_torso": metrics.pck2d,
}


@dataclass(frozen=True)
class Predictions:
    """What is said of some of a store's rows, beside the truth; everything on the CPU.

    Example:
        >>> deep, flat = torch.zeros(2, 17, 3), torch.zeros(2, 17, 2)
        >>> made = Predictions(
        ...     rows=torch.arange(2), target=deep, guesses={"lifter_true_2d": deep + torch.tensor([3.0, 4.0, 0.0])},
        ...     target2d=flat, visible=torch.ones(2, 17) > 0, keypoints=None, actions=["Walk", "Walk"],
        ...     follows=torch.tensor([False, True]))
        >>> made.pairs, len(made.select(torch.tensor([1])).rows)
        (1, 1)
    """

    rows: Tensor
    """[N] int64, ascending."""
    target: Tensor
    """[N, 17, 3] mm, root-relative; NaN where unknown."""
    guesses: dict[str, Tensor]
    """[N, 17, 3] mm, root-relative, by key of ``GUESSES``; what could not be made is not there."""
    target2d: Tensor
    """[N, 17, 2] px."""
    visible: Tensor
    """[N, 17] bool."""
    keypoints: Tensor | None
    """[N, 17, 2] px, what the detector found; None without pictures."""
    actions: list[str]
    """N names."""
    follows: Tensor
    """[N] bool: whether the row before in this list is the frame before in the same recording."""
    fitted: dict[str, Tensor] = field(default_factory=dict)
    """[N, 17, 3] float64, the guesses after the fit of PA-MPJPE: done once, for it takes longest."""

    def select(self, chosen: Tensor) -> Predictions:
        """Some of the rows, by their ascending places ``[M]`` int64 in this list."""
        before = torch.cat([torch.full((1,), -2), chosen[:-1]]) if len(chosen) else chosen
        return replace(
            self,
            rows=self.rows[chosen],
            target=self.target[chosen],
            guesses={name: guess[chosen] for name, guess in self.guesses.items()},
            fitted={name: guess[chosen] for name, guess in self.fitted.items()},
            target2d=self.target2d[chosen],
            visible=self.visible[chosen],
            keypoints=None if self.keypoints is None else self.keypoints[chosen],
            actions=[self.actions[i] for i in chosen.tolist()],
            follows=self.follows[chosen] & (before + 1 == chosen),
        )

    @property
    def pairs(self) -> int:
        """Consecutive frames with 3D joints, what MPJVE is measured on."""
        known = torch.isfinite(self.target).all(2)
        return int((self.follows[1:] & (known[1:] & known[:-1]).any(1)).sum())


def predictions(
    store: PoseStore,
    lifter: nn.Module,
    mean_pose: Tensor | None,
    detections: Detections | None,
    frame_step: int = 1,
) -> Predictions:
    """What the networks say of a store's rows: of those in ``detections``, or of all where there are no pictures.

    Args:
        lifter: unit-crop keypoints ``[B, 17, 2]`` to root-relative joints ``[B, 17, 3]`` mm.
        mean_pose: ``[17, 3]`` mm, root-relative mean of the training poses, if it is known.
        detections: of the store's pictures, in any order.
        frame_step: by how much the frame numbers of consecutive frames differ.

    Returns:
        Predictions: poses in mm, root-relative; keypoints in px of the store's pictures.

    Example:
        >>> import tempfile
        >>> from hpe_fast.data.store import PoseStoreWriter
        >>> from hpe_fast.models import lifter
        >>> path = tempfile.mkdtemp() + "/poses.h5"
        >>> with PoseStoreWriter(path, (64, 64)) as writer:
        ...     for i in range(3):
        ...         writer.append(None, np.full((17, 2), 9.0), np.ones(17), pose3d=np.ones((17, 3)), frame=i)
        >>> made = predictions(PoseStore(path), lifter(width=16), None, None)
        >>> made.pairs, list(made.guesses)
        (2, ['lifter_true_2d'])
    """
    order = None if detections is None else torch.argsort(detections.rows)
    rows = torch.arange(len(store)) if order is None else detections.rows[order]
    chosen = rows.numpy()
    target, target2d = root_relative(torch.tensor(store.pose3d[chosen])), torch.tensor(store.pose2d[chosen])
    guesses = {} if mean_pose is None else {"mean_pose": mean_pose.to(target).expand_as(target)}
    guesses["lifter_true_2d"] = lift(lifter, unit_crop(target2d, store.image_size))
    keypoints = None
    if order is not None:
        found = detections.keypoints[order]
        guesses["pipeline"] = lift(lifter, found)
        keypoints = from_unit_crop(found, store.image_size)
    actions = [store.action[row].strip() or NO_NAME for row in chosen]
    visible, follows = torch.tensor(store.visible[chosen]) > 0, following(store, rows, frame_step)
    return Predictions(rows, target, guesses, target2d, visible, keypoints, actions, follows)


def following(store: PoseStore, rows: Tensor, frame_step: int = 1) -> Tensor:
    """Whether each of the rows ``[N]`` is the next frame after the one before it: ``[N]`` bool, the first never.

    They must be neighbours in the store, of one subject, action and camera, with frame numbers ``frame_step`` apart.
    """
    places = rows.numpy()
    same = np.diff(places) == 1
    same &= np.diff(store.frame[places]) == frame_step
    for names in (store.subject, store.action, store.camera):
        column = np.asarray(names, dtype=object)[places]
        same &= column[1:] == column[:-1]
    return torch.from_numpy(np.concatenate([np.zeros(min(1, len(places)), bool), same.astype(bool)]))


def report(made: Predictions) -> dict[str, Any]:
    """All errors of some predictions.

    Returns:
        The errors over all frames ("frame mean") under ``METRICS_3D`` (for each guess) and ``METRICS_2D``; beside
        them ``action_mean`` (the mean of the actions' own values), ``actions`` and ``joints`` (frame means by name),
        ``rows``, ``rows_with_3d`` and ``consecutive_pairs``. Errors are in mm, px, and shares of 1. None stands where
        nothing could be measured, NaN where a prediction is not finite.

    Example:
        >>> deep, flat = torch.zeros(2, 17, 3), torch.zeros(2, 17, 2)
        >>> made = Predictions(
        ...     rows=torch.arange(2), target=deep, guesses={"lifter_true_2d": deep + torch.tensor([3.0, 4.0, 0.0])},
        ...     target2d=flat, visible=torch.ones(2, 17) > 0, keypoints=None, actions=["Walk", "Walk"],
        ...     follows=torch.tensor([False, True]))
        >>> found = report(made)
        >>> found["mpjpe_mm"]["lifter_true_2d"], found["actions"]["Walk"]["rows"], found["epe2d_px"]
        (5.0, 2, None)
    """
    fitted = {name: metrics.aligned(guess, made.target) for name, guess in made.guesses.items()}
    made = replace(made, fitted=fitted)
    places: dict[str, list[int]] = {}
    for place, action in enumerate(made.actions):
        places.setdefault(action, []).append(place)
    actions = {name: _summary(made.select(torch.tensor(places[name]))) for name in sorted(places)}
    each = _errors(made, per_joint=True)
    joints = {name: _mapped(lambda values, j=j: values[j], each) for j, name in enumerate(JOINTS)}
    return {
        "mean": "frame mean: every known joint of every frame counts alike; action_mean: the mean over the actions",
        **_summary(made),
        "action_mean": _mean_of(list(actions.values())),
        "actions": actions,
        "joints": joints,
    }


def _summary(made: Predictions) -> dict[str, Any]:
    with_3d = int(torch.isfinite(made.target).all(2).any(1).sum())
    counts = {"rows": len(made.rows), "rows_with_3d": with_3d, "consecutive_pairs": made.pairs}
    return {**counts, **_mapped(lambda values: values[0], _errors(made))}


def _errors(made: Predictions, per_joint: bool = False) -> dict[str, Any]:
    """For each metric (and guess) a list: one value, or one a joint."""
    found: dict[str, Any] = {}
    for name in METRICS_3D:
        guesses = made.fitted if name == "pa_mpjpe_mm" else made.guesses
        found[name] = {guess: _measured(name, made, guesses.get(guess), per_joint) for guess in GUESSES}
    return found | {name: _measured(name, made, made.keypoints, per_joint) for name in METRICS_2D}


def _measured(name: str, made: Predictions, predicted: Tensor | None, per_joint: bool) -> list[float | None]:
    """The metric's values; None where there is nothing to measure, NaN where a prediction is not finite."""
    if predicted is None:
        return [None] * (len(JOINTS) if per_joint else 1)
    target = made.target2d if name in METRICS_2D else made.target

    def values(guess: Tensor) -> list[float]:
        if name in METRICS_2D:
            return _OF_FRAMES[name](guess, target, made.visible, per_joint=per_joint).reshape(-1).tolist()
        if name == "mpjve_mm":
            return metrics.mpjve(guess, target, made.follows[1:], per_joint=per_joint).reshape(-1).tolist()
        return _OF_FRAMES[name](guess, target, per_joint=per_joint).reshape(-1).tolist()

    measured = values(predicted)
    if not any(math.isnan(value) for value in measured):
        return measured
    empty = [math.isnan(value) for value in values(target)]  # the truth itself is NaN only where nothing counts
    return [None if nothing else value for value, nothing in zip(measured, empty, strict=True)]


def _mapped(function: Callable[[list], Any], errors: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _mapped(function, value) if isinstance(value, dict) else function(value) for name, value in errors.items()
    }


def _mean_of(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each error over the groups that have it."""

    def mean(pick: Callable[[dict[str, Any]], float | None]) -> float | None:
        known = [value for value in map(pick, groups) if value is not None]
        return sum(known) / len(known) if known else None

    deep = {name: {guess: mean(lambda group, n=name, g=guess: group[n][g]) for guess in GUESSES} for name in METRICS_3D}
    return deep | {name: mean(lambda group, n=name: group[n]) for name in METRICS_2D}


def row_errors(made: Predictions) -> tuple[np.ndarray, str]:
    """Each row's error and its unit: of the pipeline's 3D where the truth is known anywhere, else of the keypoints.

    Returns:
        ``[N]`` float64, NaN where a row's truth is unknown, and ``"mm"`` or ``"px"``.
    """
    if bool(torch.isfinite(made.target[:, ROOT]).any()):
        guess = made.guesses.get("pipeline", made.guesses["lifter_true_2d"])
        return metrics.frame_errors(guess, made.target).numpy(), "mm"
    if made.keypoints is None:
        return np.full(len(made.rows), np.nan), "px"
    target = made.target2d.masked_fill(~made.visible[..., None], math.nan)
    return metrics.frame_errors(made.keypoints, target).numpy(), "px"
