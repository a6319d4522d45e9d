"""Errors against restatements that loop frame by frame in numpy, and what must not change them."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_fast import metrics
from hpe_fast.skeleton import JOINTS

ALL_3D = (metrics.mpjpe, metrics.pa_mpjpe, metrics.n_mpjpe, metrics.mpjve, metrics.pck3d, metrics.auc3d)


def poses(seed, frames=7, joints=17, axes=3, spread=300.0):
    rng = np.random.default_rng(seed)
    target = rng.normal(0, spread, (frames, joints, axes))
    return target + rng.normal(0, spread / 4, target.shape), target


def rotation(rng):
    """A random proper rotation as a product of three plane rotations."""
    matrix = np.eye(3)
    for i, j in itertools.combinations(range(3), 2):
        angle = rng.uniform(0, 2 * math.pi)
        plane = np.eye(3)
        plane[i, i] = plane[j, j] = math.cos(angle)
        plane[i, j], plane[j, i] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ plane
    return matrix


def horn(source, target):
    """Best rotation, scale and shift by Horn's quaternion method: another route than the one under test."""
    p, t = source - source.mean(0), target - target.mean(0)
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = p.T @ t
    n = np.array(
        [
            [xx + yy + zz, yz - zy, zx - xz, xy - yx],
            [yz - zy, xx - yy - zz, xy + yx, zx + xz],
            [zx - xz, xy + yx, -xx + yy - zz, yz + zy],
            [xy - yx, zx + xz, yz + zy, -xx - yy + zz],
        ]
    )
    values, vectors = np.linalg.eigh(n)
    w, x, y, z = vectors[:, np.argmax(values)]
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    turned = np.array([turn @ point for point in p])
    scale = (turned * t).sum() / (p * p).sum()
    return scale * turned + target.mean(0)


def restated_distance(predicted, target):
    return [math.dist(a, b) for p, t in zip(predicted, target, strict=True) for a, b in zip(p, t, strict=True)]


def close(value, expected):
    return float(value) == pytest.approx(float(expected), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mpjpe_is_the_mean_distance_in_float64(dtype):
    predicted, target = (torch.from_numpy(a).to(dtype) for a in poses(0))
    value = metrics.mpjpe(predicted, target)
    assert value.dtype == torch.float64
    assert close(value, np.mean(restated_distance(predicted.double().tolist(), target.double().tolist())))


def test_mpjpe_after_root_alignment():
    predicted, target = poses(1)
    expected = np.mean(
        [math.dist(p[j] - p[0], t[j] - t[0]) for p, t in zip(predicted, target, strict=True) for j in range(17)]
    )
    assert close(metrics.mpjpe(torch.from_numpy(predicted), torch.from_numpy(target), align_root=True), expected)


def test_pa_mpjpe_against_horns_quaternions():
    predicted, target = poses(2, frames=40)
    predicted[20:] *= [-1, 1, 1]  # mirror images, which no rotation may undo
    fitted = [horn(p, t) for p, t in zip(predicted, target, strict=True)]
    value = metrics.pa_mpjpe(torch.from_numpy(predicted), torch.from_numpy(target))
    assert close(value, np.mean(restated_distance(fitted, target)))


def test_pa_mpjpe_keeps_a_mirror_image_wrong():
    _, target = poses(3)
    assert float(metrics.pa_mpjpe(torch.from_numpy(target * [-1, 1, 1]), torch.from_numpy(target))) > 50


def test_n_mpjpe_against_a_scan_of_scales():
    """The scale of least squares, restated as the minimum of a fine scan."""
    predicted, target = poses(4, frames=3)
    total = []
    for p, t in zip(predicted, target, strict=True):
        scales = np.linspace(0, 2, 200_001)
        costs = scales**2 * (p * p).sum() - 2 * scales * (p * t).sum()
        total += restated_distance([scales[np.argmin(costs)] * p], [t])
    value = metrics.n_mpjpe(torch.from_numpy(predicted), torch.from_numpy(target))
    assert float(value) == pytest.approx(np.mean(total), abs=1e-2)


def test_mpjve_and_breaks_between_recordings():
    predicted, target = poses(5, frames=6)
    consecutive = torch.tensor([True, True, False, True, True])
    expected = np.mean(
        [
            math.dist(predicted[i + 1, j] - predicted[i, j], target[i + 1, j] - target[i, j])
            for i in (0, 1, 3, 4)
            for j in range(17)
        ]
    )
    assert close(metrics.mpjve(torch.from_numpy(predicted), torch.from_numpy(target), consecutive), expected)
    assert math.isnan(metrics.mpjve(*(torch.from_numpy(a[:1]) for a in (predicted, target))))
    with pytest.raises(ValueError, match=r"consecutive must be \[5\]"):
        metrics.mpjve(torch.from_numpy(predicted), torch.from_numpy(target), torch.ones(6))


def test_pck3d_and_auc_count_joints():
    predicted, target = poses(6)
    distances = restated_distance(predicted, target)
    p, t = torch.from_numpy(predicted), torch.from_numpy(target)
    assert close(metrics.pck3d(p, t), sum(d < 150 for d in distances) / len(distances))
    assert close(metrics.pck3d(p, t, 80.0), sum(d < 80 for d in distances) / len(distances))
    shares = [sum(d < 5 * i for d in distances) / len(distances) for i in range(31)]
    assert close(metrics.auc3d(p, t), sum(shares) / 31)


def test_two_dimensional_errors_count_visible_joints_only():
    predicted, target = poses(7, axes=2, spread=30.0)
    visible = np.random.default_rng(8).integers(0, 2, (7, 17))
    distances, hits = [], []
    for frame in range(7):
        hip, thorax = target[frame, JOINTS.index("Hip")], target[frame, JOINTS.index("Thorax")]
        for joint in range(17):
            if visible[frame, joint]:
                distances.append(math.dist(predicted[frame, joint], target[frame, joint]))
                hits.append(distances[-1] <= 0.2 * math.dist(hip, thorax))
    arguments = [torch.from_numpy(a) for a in (predicted, target, visible)]
    assert 0 < np.mean(hits) < 1
    assert close(metrics.epe2d(*arguments), np.mean(distances))
    assert close(metrics.pck2d(*arguments), np.mean(hits))


def test_pck2d_leaves_out_frames_without_a_torso():
    target = torch.zeros(3, 17, 2)
    target[:, 8, 1] = 10.0
    target[1, 0] = torch.nan  # unknown hip
    target[2, 8] = 0.0  # torso of no length
    predicted = torch.zeros(3, 17, 2)
    assert float(metrics.pck2d(predicted, target)) == pytest.approx(16 / 17)
    assert math.isnan(metrics.pck2d(predicted[1:], target[1:]))


@pytest.mark.parametrize("metric", ALL_3D)
def test_per_joint_values_average_to_the_whole(metric):
    predicted, target = (torch.from_numpy(a) for a in poses(9))
    each = metric(predicted, target, per_joint=True)
    assert each.shape == (17,)
    assert close(each.mean(), metric(predicted, target))


@pytest.mark.parametrize("metric", ALL_3D)
def test_unknown_targets_count_nowhere(metric):
    predicted, target = poses(10)
    holes = target.copy()
    holes[:, [5, 9]] = np.nan
    kept = [j for j in range(17) if j not in (5, 9)]
    value = metric(torch.from_numpy(predicted), torch.from_numpy(holes))
    assert close(value, metric(torch.from_numpy(predicted[:, kept]), torch.from_numpy(target[:, kept])))
    each = metric(torch.from_numpy(predicted), torch.from_numpy(holes), per_joint=True)
    assert each.isnan().nonzero().flatten().tolist() == [5, 9]


def test_a_prediction_that_is_not_finite_is_never_hidden():
    predicted, target = (torch.from_numpy(a) for a in poses(11))
    predicted[2, 3, 1] = torch.nan
    for metric in (metrics.mpjpe, metrics.pa_mpjpe, metrics.n_mpjpe, metrics.mpjve):
        assert math.isnan(metric(predicted, target)), metric
    assert float(metrics.pck3d(predicted, target, 1e9)) == pytest.approx(1 - 1 / (7 * 17))


@pytest.mark.parametrize("metric", ALL_3D)
def test_no_frames_is_nan_and_bad_shapes_are_named(metric):
    assert math.isnan(metric(torch.zeros(0, 17, 3), torch.zeros(0, 17, 3)))
    with pytest.raises(ValueError, match=r"predicted must be \[N, J, 3\], got \[17, 3\]"):
        metric(torch.zeros(17, 3), torch.zeros(1, 17, 3))
    with pytest.raises(ValueError, match="same shape"):
        metric(torch.zeros(2, 17, 3), torch.zeros(1, 17, 3))
    with pytest.raises(TypeError, match=r"target must be a torch\.Tensor, got ndarray"):
        metric(torch.zeros(1, 17, 3), np.zeros((1, 17, 3)))


def test_bad_thresholds_and_masks_are_named():
    flat = torch.zeros(2, 17, 2)
    with pytest.raises(ValueError, match=r"visible must be \[2, 17\]"):
        metrics.epe2d(flat, flat, torch.ones(2, 16))
    with pytest.raises(ValueError, match="fraction"):
        metrics.pck2d(flat, flat, fraction=float("nan"))
    with pytest.raises(ValueError, match="threshold_mm"):
        metrics.pck3d(torch.zeros(1, 17, 3), torch.zeros(1, 17, 3), -1.0)
    with pytest.raises(ValueError, match="17 joints"):
        metrics.pck2d(flat[:, :5], flat[:, :5])


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 100), shift=st.floats(-5000, 5000))
@settings(max_examples=40, deadline=None)
def test_pa_mpjpe_does_not_see_similarity_transforms(seed, scale, shift):
    predicted, target = poses(seed, frames=3)
    turn = rotation(np.random.default_rng(seed))
    moved = scale * predicted @ turn.T + shift
    before, after = (metrics.pa_mpjpe(torch.from_numpy(a), torch.from_numpy(target)) for a in (predicted, moved))
    assert float(after) == pytest.approx(float(before), rel=1e-6)


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 100))
@settings(max_examples=40, deadline=None)
def test_n_mpjpe_does_not_see_scale(seed, scale):
    predicted, target = (torch.from_numpy(a) for a in poses(seed, frames=3))
    assert float(metrics.n_mpjpe(scale * predicted, target)) == pytest.approx(float(metrics.n_mpjpe(predicted, target)))


@given(seed=st.integers(0, 2**32 - 1), shift=st.floats(-5000, 5000))
@settings(max_examples=20, deadline=None)
def test_root_alignment_and_velocity_do_not_see_translation(seed, shift):
    predicted, target = (torch.from_numpy(a) for a in poses(seed, frames=3))
    for metric in (metrics.mpjve, lambda p, t: metrics.mpjpe(p, t, align_root=True)):
        assert float(metric(predicted + shift, target)) == pytest.approx(float(metric(predicted, target)))


def test_degenerate_poses_have_an_error():
    """All joints in one point, or on a line: no scale or no single rotation fits, yet the value is finite."""
    _, target = (torch.from_numpy(a) for a in poses(12))
    line = torch.zeros_like(target)
    line[:, :, 0] = torch.arange(17.0)
    for flat in (torch.zeros_like(target), line):
        assert metrics.pa_mpjpe(flat, target).isfinite()
        assert metrics.pa_mpjpe(target, flat).isfinite()
        assert metrics.n_mpjpe(flat, target).isfinite()
