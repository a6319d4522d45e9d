"""The lifter's samples: every augmentation keeps 2D and 3D joints of one person together."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_fast.skeleton import FLIP_PERMUTATION
from hpe_fast.training.config import LifterConfig
from hpe_fast.training.lifting import LifterSamples, draw_samples, mirror, quarter_turns, virtual_view

INTRINSICS = torch.tensor([4.0, 4.0, 0.5, 0.5])


def people(count: int, seed: int = 0) -> LifterSamples:
    """Random people in front of a camera whose principal point is the crop's centre."""
    generator = torch.Generator().manual_seed(seed)
    pose3d = torch.randn(count, 17, 3, generator=generator) * 300 + torch.tensor([0.0, 0.0, 5000.0])
    intrinsics = INTRINSICS.expand(count, 4).clone()
    keypoints = project(pose3d, intrinsics)
    return LifterSamples(keypoints, pose3d, intrinsics, keypoints + 0.01)


def project(pose3d: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    return pose3d[..., :2] / pose3d[..., 2:] * intrinsics[:, None, :2] + intrinsics[:, None, 2:]


def test_mirror_is_what_a_mirrored_camera_sees():
    s = people(5)
    chosen = torch.tensor([True, True, False, True, False])
    keypoints, pose3d = mirror(s.keypoints, s.pose3d, chosen)
    torch.testing.assert_close(project(pose3d, s.intrinsics), keypoints)
    torch.testing.assert_close(keypoints[2], s.keypoints[2], rtol=0, atol=0)
    left, right = 13, 16
    assert FLIP_PERMUTATION[left] == right
    assert keypoints[0, left, 0] == pytest.approx(1 - s.keypoints[0, right, 0].item(), abs=1e-6)


def test_mirror_twice_is_nothing():
    s = people(3)
    chosen = torch.ones(3, dtype=torch.bool)
    keypoints, pose3d = mirror(*mirror(s.keypoints, s.pose3d, chosen), chosen)
    torch.testing.assert_close(keypoints, s.keypoints)
    torch.testing.assert_close(pose3d, s.pose3d)


def test_a_quarter_turn_is_clockwise_on_screen_and_keeps_the_projection():
    right_of_centre = torch.full((1, 17, 2), 0.5) + torch.tensor([0.25, 0.0])
    turned, _ = quarter_turns(right_of_centre, torch.zeros(1, 17, 3), torch.tensor([1]))
    torch.testing.assert_close(turned, torch.full((1, 17, 2), 0.5) + torch.tensor([0.0, 0.25]))
    s = people(4)
    keypoints, pose3d = quarter_turns(s.keypoints, s.pose3d, torch.tensor([0, 1, 2, 3]))
    torch.testing.assert_close(project(pose3d, s.intrinsics), keypoints)
    torch.testing.assert_close(keypoints[0], s.keypoints[0])


def test_a_virtual_view_of_no_turn_changes_nothing():
    s = people(4)
    keypoints, pose3d = virtual_view(s.keypoints, s.pose3d, s.intrinsics, torch.zeros(4))
    torch.testing.assert_close(keypoints, s.keypoints, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pose3d, s.pose3d, rtol=1e-5, atol=1e-2)


@settings(max_examples=20, deadline=None)
@given(yaw=st.floats(-math.pi, math.pi), seed=st.integers(0, 1000))
def test_a_virtual_view_is_a_rigid_turn_projected_and_cropped_again(yaw, seed):
    s = people(2, seed)
    keypoints, pose3d = virtual_view(s.keypoints, s.pose3d, s.intrinsics, torch.full((2,), yaw))
    old, new = s.pose3d.numpy().astype(np.float64), pose3d.numpy().astype(np.float64)
    np.testing.assert_allclose(new[:, 0], old[:, 0], rtol=1e-6)
    np.testing.assert_allclose(new[..., 1], old[..., 1], rtol=1e-5, atol=1e-2)  # about the vertical axis
    lengths = [np.linalg.norm(p[:, :, None] - p[:, None], axis=-1) for p in (old, new)]
    np.testing.assert_allclose(*lengths, rtol=1e-4, atol=0.05)
    # The crop is a translation and one scale of the projection: ratios of differences agree.
    seen = project(pose3d, s.intrinsics)
    scale = (keypoints - keypoints[:, :1]).norm(dim=(1, 2)) / (seen - seen[:, :1]).norm(dim=(1, 2))
    torch.testing.assert_close(
        keypoints - keypoints[:, :1], (seen - seen[:, :1]) * scale[:, None, None], rtol=1e-3, atol=1e-4
    )
    for corner in (torch.amin, torch.amax):
        side = [(k.amax(1) - k.amin(1)).amax(1) for k in (s.keypoints, keypoints)]
        torch.testing.assert_close(*side, rtol=1e-3, atol=1e-4)
        assert corner(keypoints, 1).isfinite().all()


def test_unknown_cameras_get_no_virtual_views():
    s = people(64)
    s.intrinsics[:] = float("nan")
    keypoints, joints3d = draw_samples(s, torch.arange(64), LifterConfig(virtual_views=1.0))
    torch.testing.assert_close(keypoints, s.keypoints, rtol=0, atol=0)
    torch.testing.assert_close(joints3d, s.pose3d - s.pose3d[:, :1], rtol=0, atol=0)


def test_detections_come_with_their_own_poses_only():
    s = people(400)
    config = LifterConfig(input="mixture", virtual_views=0.5)
    torch.manual_seed(0)
    keypoints, joints3d = draw_samples(s, torch.arange(400), config)
    detected = (keypoints == s.detections).all(2).all(1)
    assert 140 < detected.sum() < 260
    torch.testing.assert_close(joints3d[detected], (s.pose3d - s.pose3d[:, :1])[detected], rtol=0, atol=0)
    all_detected, _ = draw_samples(s, torch.arange(400), LifterConfig(input="detections"))
    torch.testing.assert_close(all_detected, s.detections, rtol=0, atol=0)
