"""The errors that training writes into metrics.json: of the mean pose, of the lifter alone, and of the pipeline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpe_fast import metrics
from hpe_fast.data.store import PoseStore
from hpe_fast.evaluate.networks import Detections, lift, root_relative
from hpe_fast.models import from_unit_crop, unit_crop


def detection_errors(detections: Detections, store: PoseStore) -> dict[str, float]:
    """2D errors: ``epe2d_px`` in pixels of the store's pictures, ``pck2d_02_torso`` as a share of visible joints.

    Example:
        >>> import numpy as np, tempfile
        >>> from hpe_fast.data.store import PoseStoreWriter
        >>> path = tempfile.mkdtemp() + "/poses.h5"
        >>> with PoseStoreWriter(path, (64, 64)) as writer:
        ...     writer.append(None, np.random.default_rng(0).uniform(0, 63, (17, 2)), np.ones(17))
        >>> store = PoseStore(path)
        >>> found = Detections(unit_crop(torch.tensor(store.pose2d), (64, 64)), torch.ones(1, 17), torch.tensor([0]))
        >>> errors = detection_errors(found, store)
        >>> round(errors["epe2d_px"], 3), errors["pck2d_02_torso"]
        (0.0, 1.0)
    """
    predicted = from_unit_crop(detections.keypoints, store.image_size)
    rows = detections.rows.numpy()
    target = torch.tensor(store.pose2d[rows])
    visible = torch.tensor(store.visible[rows]) > 0
    return {
        "epe2d_px": float(metrics.epe2d(predicted, target, visible)),
        "pck2d_02_torso": float(metrics.pck2d(predicted, target, visible, 0.2)),
    }


def pose_errors(predicted: Tensor, target: Tensor) -> dict[str, float]:
    """``mpjpe_mm`` and ``pa_mpjpe_mm`` of root-relative poses ``[N, 17, 3]``, frame means; NaN without truth.

    Example:
        >>> round(pose_errors(torch.ones(2, 17, 3), torch.zeros(2, 17, 3))["mpjpe_mm"], 3)
        1.732
    """
    return {
        "mpjpe_mm": float(metrics.mpjpe(predicted, target)),
        "pa_mpjpe_mm": float(metrics.pa_mpjpe(predicted, target)),
    }


@dataclass(frozen=True)
class Evaluation:
    """Predictions for a store and their errors; what ``evaluate`` returns.

    Example:
        >>> found = Detections(torch.rand(2, 17, 2), torch.ones(2, 17), torch.tensor([0, 1]))
        >>> Evaluation(found, torch.zeros(2, 17, 3), {"epe2d_px": 3.2}).errors
        {'epe2d_px': 3.2}
    """

    detections: Detections
    joints3d: Tensor
    """[N, 17, 3] mm, root-relative: what the whole pipeline says of the rows of ``detections``."""
    errors: dict
    """The error keys of metrics.json."""


def evaluate(detections: Detections, lifter: nn.Module, store: PoseStore, mean_pose: Tensor) -> Evaluation:
    """Errors of the mean pose, of the lifter on true 2D, and of the whole pipeline (lifter on detections).

    Args:
        detections: of the store's pictures.
        lifter: unit-crop keypoints ``[B, 17, 2]`` to root-relative joints ``[B, 17, 3]`` mm.
        store: the truth: ``pose3d`` in mm, ``pose2d`` in px.
        mean_pose: ``[17, 3]`` mm, root-relative mean of the training poses.

    Returns:
        Evaluation: errors in mm, px and shares of 1.

    Example:
        >>> import numpy as np, tempfile
        >>> from hpe_fast.data.store import PoseStoreWriter
        >>> from hpe_fast.models import lifter
        >>> path = tempfile.mkdtemp() + "/poses.h5"
        >>> with PoseStoreWriter(path, (64, 64)) as writer:
        ...     writer.append(None, np.full((17, 2), 9.0), np.ones(17), pose3d=np.full((17, 3), 700.0))
        >>> found = Detections(torch.rand(1, 17, 2), torch.ones(1, 17), torch.tensor([0]))
        >>> evaluate(found, lifter(width=16), PoseStore(path), torch.zeros(17, 3)).errors["mpjpe_mm"]["mean_pose"]
        0.0
    """
    joints3d = lift(lifter, detections.keypoints)
    rows = detections.rows.numpy()
    target = root_relative(torch.tensor(store.pose3d[rows]))
    true_2d = lift(lifter, unit_crop(torch.tensor(store.pose2d[rows]), store.image_size))
    guesses = {"mean_pose": mean_pose.expand_as(target), "lifter_true_2d": true_2d, "pipeline": joints3d}
    poses = {name: pose_errors(guess, target) for name, guess in guesses.items()}
    errors = {key: {name: errors[key] for name, errors in poses.items()} for key in ("mpjpe_mm", "pa_mpjpe_mm")}
    return Evaluation(detections, joints3d, {**errors, **detection_errors(detections, store)})


def table(errors: dict) -> str:
    """The errors as text for a person.

    Example:
        >>> each = {"mean_pose": 250.0, "lifter_true_2d": 80.0, "pipeline": 120.0}
        >>> print(table({"mpjpe_mm": each, "pa_mpjpe_mm": each, "epe2d_px": 3.21, "pck2d_02_torso": 0.8}))
                                MPJPE mm   PA-MPJPE mm
        mean pose                  250.0         250.0
        lifter on true 2D           80.0          80.0
        whole pipeline             120.0         120.0
        2D: mean error 3.21 px, PCK@0.2 torso 0.800
    """
    rows = [
        ("mean pose", "mean_pose"),
        ("lifter on true 2D", "lifter_true_2d"),
        ("whole pipeline", "pipeline"),
    ]
    lines = [f"{'':20}{'MPJPE mm':>12}{'PA-MPJPE mm':>14}"]
    lines += [f"{label:20}{errors['mpjpe_mm'][key]:12.1f}{errors['pa_mpjpe_mm'][key]:14.1f}" for label, key in rows]
    lines.append(f"2D: mean error {errors['epe2d_px']:.2f} px, PCK@0.2 torso {errors['pck2d_02_torso']:.3f}")
    return "\n".join(lines)
