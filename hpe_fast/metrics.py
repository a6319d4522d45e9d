"""How far poses are from the truth: the errors that papers on 3D human pose report.

Tensors in, float64 tensors out. 3D joints are millimetres, 2D joints pixels. A mean runs over every known joint of
every frame ("frame mean"); with ``per_joint=True`` it runs over the frames only and gives one value a joint. A mean
over actions is the mean of the values computed on each action's frames.

What is unknown and what is wrong:

* A joint whose *target* is not finite is unknown and counts nowhere. Where nothing is left to count the result is NaN.
* A *prediction* that is not finite is wrong: a distance becomes NaN or infinite, in PCK and AUC it is a miss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpe_fast.skeleton import ROOT, TORSO

__all__ = [
    "AUC_THRESHOLDS_MM",
    "aligned",
    "auc3d",
    "epe2d",
    "frame_errors",
    "mpjpe",
    "mpjve",
    "n_mpjpe",
    "pa_mpjpe",
    "pck2d",
    "pck3d",
]

#: Thresholds of ``auc3d`` in mm: 0, 5, ..., 150.
AUC_THRESHOLDS_MM: tuple[float, ...] = tuple(float(threshold) for threshold in range(0, 151, 5))


def mpjpe(predicted: Tensor, target: Tensor, *, align_root: bool = False, per_joint: bool = False) -> Tensor:
    """Mean per-joint position error: the mean Euclidean distance, "protocol 1".

    Equation (1) of *Deep 3D Human Pose Estimation* prints a squared norm and divides by N - 1 for N + 1 terms. What its
    code computes and its tables report is this: the mean of the distances, not of their squares.

    Args:
        predicted: ``[N, J, 3]`` mm.
        target: ``[N, J, 3]`` mm, not finite where unknown.
        align_root: subtract the hip from both first, as protocol 1 asks. Not needed for root-relative poses.
        per_joint: one value a joint.

    Returns:
        ``[]`` or ``[J]`` float64, mm.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: shapes differ or are not ``[N, J, 3]``.

    Example:
        >>> target = torch.zeros(2, 17, 3)
        >>> float(mpjpe(target + torch.tensor([3.0, 4.0, 0.0]), target))
        5.0
    """
    predicted, target = _poses(predicted, target, 3)
    if align_root:
        predicted, target = _root_relative(predicted), _root_relative(target)
    return _mean(_distances(predicted, target), _known(target), per_joint)


def pa_mpjpe(predicted: Tensor, target: Tensor, *, per_joint: bool = False) -> Tensor:
    """MPJPE after the similarity transform (rotation, scale, translation) that fits each frame best, "protocol 2".

    Least squares by Procrustes analysis (Gower 1975; Umeyama 1991 for the determinant that forbids a mirror image), as
    VideoPose3D's ``p_mpjpe``. The fit uses the known joints only.

    Args:
        predicted: ``[N, J, 3]`` mm.
        target: ``[N, J, 3]`` mm, not finite where unknown.
        per_joint: one value a joint.

    Returns:
        ``[]`` or ``[J]`` float64, mm.

    Raises:
        TypeError, ValueError: as ``mpjpe``.

    Example:
        >>> target = torch.randn(4, 17, 3, dtype=torch.float64)
        >>> turned = 2 * target.roll(1, dims=2) + 7
        >>> float(pa_mpjpe(turned, target)) < 1e-9
        True
    """
    return mpjpe(aligned(predicted, target), target, per_joint=per_joint)


def aligned(predicted: Tensor, target: Tensor) -> Tensor:
    """Each frame's prediction after the similarity transform that fits it best: what ``pa_mpjpe`` measures.

    Args:
        predicted: ``[N, J, 3]`` mm.
        target: ``[N, J, 3]`` mm, not finite where unknown; the fit uses the known joints only.

    Returns:
        ``[N, J, 3]`` float64, mm; NaN where a frame's prediction is not finite.

    Raises:
        TypeError, ValueError: as ``mpjpe``.

    Example:
        >>> target = torch.randn(4, 17, 3, dtype=torch.float64)
        >>> torch.allclose(aligned(0.5 * target - 7, target), target)
        True
    """
    return _procrustes(*_poses(predicted, target, 3))


def n_mpjpe(predicted: Tensor, target: Tensor, *, align_root: bool = False, per_joint: bool = False) -> Tensor:
    """MPJPE after the scale that fits each frame best, "protocol 3".

    The scale of a frame is ``sum(predicted * target) / sum(predicted^2)`` (Rhodin et al. 2018; VideoPose3D's
    ``n_mpjpe``). It acts about the origin, so poses must be root-relative or ``align_root`` set.

    Args:
        predicted: ``[N, J, 3]`` mm.
        target: ``[N, J, 3]`` mm, not finite where unknown.
        align_root: subtract the hip from both first.
        per_joint: one value a joint.

    Returns:
        ``[]`` or ``[J]`` float64, mm. A frame whose prediction is all zero keeps scale 1.

    Raises:
        TypeError, ValueError: as ``mpjpe``.

    Example:
        >>> target = torch.randn(4, 17, 3, dtype=torch.float64)
        >>> float(n_mpjpe(0.5 * target, target)) < 1e-9
        True
    """
    predicted, target = _poses(predicted, target, 3)
    if align_root:
        predicted, target = _root_relative(predicted), _root_relative(target)
    known = _known(target)[..., None]
    p, t = torch.where(known, predicted, 0.0), torch.where(known, target, 0.0)
    squares = p.square().sum((1, 2), keepdim=True)
    scale = torch.where(squares == 0, 1.0, (p * t).sum((1, 2), keepdim=True) / squares)
    return _mean(_distances(scale * predicted, target), _known(target), per_joint)


def mpjve(predicted: Tensor, target: Tensor, consecutive: Tensor | None = None, *, per_joint: bool = False) -> Tensor:
    """Mean per-joint velocity error: MPJPE of the first differences over time (Pavllo et al. 2019).

    Args:
        predicted: ``[N, J, 3]`` mm, in order of time.
        target: ``[N, J, 3]`` mm, not finite where unknown.
        consecutive: ``[N - 1]`` bool, whether frame i + 1 follows frame i in the same recording. ``None``: always.
        per_joint: one value a joint.

    Returns:
        ``[]`` or ``[J]`` float64, mm a frame. NaN without any consecutive pair.

    Raises:
        TypeError, ValueError: as ``mpjpe``, or for ``consecutive`` of another shape.

    Example:
        >>> target = torch.zeros(3, 17, 3)
        >>> drifting = target + torch.arange(3)[:, None, None] * torch.tensor([2.0, 0.0, 0.0])
        >>> float(mpjve(drifting, target)), float(mpjve(drifting + 9, target))
        (2.0, 2.0)
    """
    predicted, target = _poses(predicted, target, 3)
    moved, truth = predicted.diff(dim=0), target.diff(dim=0)
    if consecutive is not None:
        if tuple(consecutive.shape) != (len(moved),):
            raise ValueError(f"consecutive must be [{len(moved)}] (frames - 1), got {list(consecutive.shape)}")
        chosen = consecutive.to(device=moved.device, dtype=torch.bool)
        moved, truth = moved[chosen], truth[chosen]
    return _mean(_distances(moved, truth), _known(truth), per_joint)


def pck3d(
    predicted: Tensor,
    target: Tensor,
    threshold_mm: float = 150.0,
    *,
    align_root: bool = False,
    per_joint: bool = False,
) -> Tensor:
    """Share of joints nearer to the truth than a threshold, 3D-PCK.

    Mehta et al. 2017 (MPI-INF-3DHP); the comparison is strict, as in mmpose's ``keypoint_3d_pck``, but the result is a
    share of 1, not a percentage.

    Args:
        predicted: ``[N, J, 3]`` mm.
        target: ``[N, J, 3]`` mm, not finite where unknown.
        threshold_mm: distance that counts as a miss.
        align_root: subtract the hip from both first.
        per_joint: one value a joint.

    Returns:
        ``[]`` or ``[J]`` float64 in 0..1.

    Raises:
        TypeError, ValueError: as ``mpjpe``, or for a threshold that is negative or NaN.

    Example:
        >>> target = torch.zeros(1, 4, 3)
        >>> offsets = torch.tensor([0.0, 149.0, 150.0, 500.0])
        >>> float(pck3d(target + torch.stack([offsets, 0 * offsets, 0 * offsets], dim=-1), target))
        0.5
    """
    if not threshold_mm >= 0:
        raise ValueError(f"threshold_mm must be a number of at least 0, got {threshold_mm!r}")
    predicted, target = _poses(predicted, target, 3)
    if align_root:
        predicted, target = _root_relative(predicted), _root_relative(target)
    return _mean(_distances(predicted, target) < threshold_mm, _known(target), per_joint)


def auc3d(predicted: Tensor, target: Tensor, *, align_root: bool = False, per_joint: bool = False) -> Tensor:
    """Area under the curve of 3D-PCK over thresholds from 0 to 150 mm.

    The mean of ``pck3d`` at 0, 5, ..., 150 mm (31 thresholds), as mmpose's ``keypoint_3d_auc``, as a share of 1. The
    threshold 0, which nothing meets, belongs to it: a perfect prediction has 30/31.

    Args:
        predicted: ``[N, J, 3]`` mm.
        target: ``[N, J, 3]`` mm, not finite where unknown.
        align_root: subtract the hip from both first.
        per_joint: one value a joint.

    Returns:
        ``[]`` or ``[J]`` float64 in 0..30/31.

    Raises:
        TypeError, ValueError: as ``mpjpe``.

    Example:
        >>> target = torch.zeros(1, 17, 3)
        >>> round(float(auc3d(target, target)) * 31)
        30
    """
    predicted, target = _poses(predicted, target, 3)
    if align_root:
        predicted, target = _root_relative(predicted), _root_relative(target)
    distances = _distances(predicted, target)
    hits = torch.zeros_like(distances)
    for threshold in AUC_THRESHOLDS_MM:
        hits += distances < threshold
    return _mean(hits / len(AUC_THRESHOLDS_MM), _known(target), per_joint)


def epe2d(predicted: Tensor, target: Tensor, visible: Tensor | None = None, *, per_joint: bool = False) -> Tensor:
    """End-point error: mean distance of the visible joints in the picture.

    Args:
        predicted: ``[N, J, 2]`` px.
        target: ``[N, J, 2]`` px, not finite where unknown.
        visible: ``[N, J]``, nonzero where a joint counts. ``None``: all.
        per_joint: one value a joint.

    Returns:
        ``[]`` or ``[J]`` float64, px.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: shapes differ or are not ``[N, J, 2]``, ``[N, J]``.

    Example:
        >>> target = torch.zeros(1, 2, 2)
        >>> predicted = torch.tensor([[[3.0, 4.0], [100.0, 0.0]]])
        >>> float(epe2d(predicted, target, torch.tensor([[True, False]])))
        5.0
    """
    predicted, target = _poses(predicted, target, 2)
    return _mean(_distances(predicted, target), _known(target) & _visible(visible, target), per_joint)


def pck2d(
    predicted: Tensor,
    target: Tensor,
    visible: Tensor | None = None,
    fraction: float = 0.2,
    *,
    per_joint: bool = False,
) -> Tensor:
    """Share of visible joints within a fraction of the torso's length, PCK@0.2.

    Yang and Ramanan 2013. The torso is the true distance from thorax to hip (``skeleton.TORSO``) of the same frame;
    the comparison is ``<=``. A frame counts only where both ends of its torso are known (they need not be visible)
    and apart.

    Args:
        predicted: ``[N, 17, 2]`` px.
        target: ``[N, 17, 2]`` px, not finite where unknown.
        visible: ``[N, 17]``, nonzero where a joint counts. ``None``: all.
        fraction: of the torso.
        per_joint: one value a joint.

    Returns:
        ``[]`` or ``[17]`` float64 in 0..1.

    Raises:
        TypeError, ValueError: as ``epe2d``, or for a fraction that is negative or NaN.

    Example:
        >>> target = torch.zeros(1, 17, 2)
        >>> target[0, 8, 1] = -100.0  # a torso of 100 px
        >>> predicted = target.clone()
        >>> predicted[0, 3, 0], predicted[0, 6, 0] = 20.0, 20.1
        >>> pck2d(predicted, target, per_joint=True)[[3, 6]].tolist()
        [1.0, 0.0]
    """
    if not fraction >= 0:
        raise ValueError(f"fraction must be a number of at least 0, got {fraction!r}")
    predicted, target = _poses(predicted, target, 2)
    if target.shape[1] <= max(TORSO):
        raise ValueError(f"target must have the 17 joints of hpe_fast.skeleton, got {list(target.shape)}")
    torso = (target[:, TORSO[0]] - target[:, TORSO[1]]).norm(dim=-1)[:, None]
    counted = _known(target) & _visible(visible, target) & torso.isfinite() & (torso > 0)
    return _mean(_distances(predicted, target) <= fraction * torso, counted, per_joint)


def frame_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean distance of each frame's known joints, to find the best and the worst frames.

    Args:
        predicted: ``[N, J, 2]`` px or ``[N, J, 3]`` mm, root-relative.
        target: the same shape, not finite where unknown.

    Returns:
        ``[N]`` float64 in the unit of the arguments; NaN where no joint of a frame is known.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: shapes differ or are neither ``[N, J, 2]`` nor ``[N, J, 3]``.

    Example:
        >>> target = torch.zeros(2, 17, 3)
        >>> frame_errors(target + torch.tensor([[[3.0, 4.0, 0.0]], [[0.0, 0.0, 1.0]]]), target).tolist()
        [5.0, 1.0]
    """
    predicted, target = _poses(predicted, target, 2 if getattr(target, "shape", (0,))[-1] == 2 else 3)
    known = _known(target)
    return torch.where(known, _distances(predicted, target), 0.0).sum(1) / known.sum(1)


def _poses(predicted: Tensor, target: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    for name, value in (("predicted", predicted), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if value.dim() != 3 or value.shape[2] != axes:
            raise ValueError(f"{name} must be [N, J, {axes}], got {list(value.shape)}")
    if predicted.shape != target.shape:
        raise ValueError(f"predicted {list(predicted.shape)} and target {list(target.shape)} must have the same shape")
    return predicted.detach().double(), target.detach().to(device=predicted.device, dtype=torch.float64)


def _visible(visible: Tensor | None, target: Tensor) -> Tensor:
    if visible is None:
        return torch.ones(target.shape[:2], dtype=torch.bool, device=target.device)
    if tuple(visible.shape) != tuple(target.shape[:2]):
        raise ValueError(f"visible must be {list(target.shape[:2])}, got {list(visible.shape)}")
    return visible.to(target.device) > 0


def _known(target: Tensor) -> Tensor:
    return target.isfinite().all(-1)


def _root_relative(pose: Tensor) -> Tensor:
    return pose - pose[:, ROOT : ROOT + 1]


def _distances(predicted: Tensor, target: Tensor) -> Tensor:
    return (predicted - target).norm(dim=-1)


def _mean(values: Tensor, counted: Tensor, per_joint: bool) -> Tensor:
    """Mean of ``values [N, J]`` where ``counted``; NaN where nothing is."""
    dims = (0,) if per_joint else (0, 1)
    total = torch.where(counted, values.double(), 0.0).sum(dims)
    return total / counted.sum(dims)


def _procrustes(predicted: Tensor, target: Tensor) -> Tensor:
    """``predicted`` moved onto ``target`` frame by frame; NaN where a frame's prediction is not finite."""
    known = _known(target)[..., None]
    count = known.sum(1, keepdim=True)
    finite = torch.where(known, predicted, 0.0).isfinite().all(-1).all(-1)[:, None, None]

    def centred(pose: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.where(known & finite, pose, 0.0).sum(1, keepdim=True) / count.clamp(min=1)
        return mean, torch.where(known & finite, pose - mean, 0.0)

    (_, p), (target_mean, t) = centred(predicted), centred(target)
    u, s, vh = torch.linalg.svd(p.mT @ t)  # rows are points: p @ (u @ vh) turns p onto t
    mirrored = torch.where(torch.linalg.det(u @ vh) < 0, -1.0, 1.0)
    signs = torch.stack([torch.ones_like(mirrored), torch.ones_like(mirrored), mirrored], dim=-1)
    rotation = (u * signs[:, None]) @ vh
    squares = p.square().sum((1, 2))
    scale = torch.where(squares == 0, 1.0, (s * signs).sum(-1) / squares)
    fitted = scale[:, None, None] * (p @ rotation) + target_mean
    return torch.where(finite, fitted, torch.nan)
