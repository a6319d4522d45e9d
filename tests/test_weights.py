"""The weights inside the package do what their card says."""

import numpy as np
import pytest

import hpe_fast
from hpe_fast.data.sample import bundled_sample
from hpe_fast.data.store import PoseStore
from hpe_fast.models.weight_files import weight_paths


def test_they_are_small():
    assert sum(path.stat().st_size for path in weight_paths()) <= 14 * 2**20


def test_infer_without_weights_says_once_what_they_saw_and_finds_people():
    store = PoseStore(bundled_sample()["valid"])
    rows = range(0, 300, 6)
    with pytest.warns(UserWarning, match="rendered pictures"):
        poses = hpe_fast.infer(np.stack([store.image(row) for row in rows]), device="cpu")
    target = store.pose3d[rows] - store.pose3d[rows, :1]
    mpjpe = np.linalg.norm(poses.joints3d.numpy() - target, axis=-1).mean()
    mean_pose = np.linalg.norm(target - target.mean(0), axis=-1).mean()
    assert mpjpe < 0.75 * mean_pose
    error = np.linalg.norm(poses.keypoints.numpy() - store.pose2d[rows], axis=-1)
    assert np.median(error) < 5
