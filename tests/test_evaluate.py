"""Evaluation: the errors are those of the rows they belong to, on a store whose answers are known."""

import numpy as np
import pytest
import torch
from torch import nn

from hpe_fast.data.store import PoseStore
from hpe_fast.evaluate import Detections, detection_errors, evaluate, main, root_relative, table
from hpe_fast.models import unit_crop


class Remembers(nn.Module):
    """A lifter that knows the answer to each 2D pose, plus 30 mm along x for all joints but the hip."""

    def __init__(self, store: PoseStore) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.keys = unit_crop(torch.tensor(store.pose2d), store.image_size)
        self.answers = root_relative(torch.tensor(store.pose3d)).clone()
        self.answers[:, 1:, 0] += 30

    def forward(self, keypoints):
        nearest = torch.cdist(keypoints.flatten(1), self.keys.flatten(1)).argmin(1)
        return self.answers[nearest]


@pytest.fixture
def store(store_path):
    return PoseStore(store_path)


def perfect(store, rows, shift=0.0):
    keypoints = unit_crop(torch.tensor(store.pose2d[rows]) + torch.tensor([shift, 0.0]), store.image_size)
    return Detections(keypoints, torch.ones(len(rows), 17), torch.tensor(rows))


def test_errors_of_known_answers(store):
    rows = [7, 3, 11]  # not in the store's order, and not all of them
    found = perfect(store, rows, shift=0.5)
    errors = evaluate(found, Remembers(store), store, torch.zeros(17, 3)).errors
    expected = 30 * 16 / 17
    assert errors["mpjpe_mm"]["pipeline"] == pytest.approx(expected, rel=1e-4)
    assert errors["mpjpe_mm"]["lifter_true_2d"] == pytest.approx(expected, rel=1e-4)
    target = store.pose3d[rows].astype(np.float64)
    mean_pose = np.linalg.norm(target - target[:, :1], axis=-1).mean()
    assert errors["mpjpe_mm"]["mean_pose"] == pytest.approx(mean_pose, rel=1e-5)
    assert errors["epe2d_px"] == pytest.approx(0.5, rel=1e-3)
    assert errors["pa_mpjpe_mm"]["pipeline"] < expected


def test_rows_without_3d_do_not_count(store):
    store.pose3d = store.pose3d.copy()
    store.pose3d[3] = np.nan
    found = perfect(store, [7, 3, 11])
    errors = evaluate(found, Remembers(PoseStore(store.path)), store, torch.zeros(17, 3)).errors
    assert errors["mpjpe_mm"]["pipeline"] == pytest.approx(30 * 16 / 17, rel=1e-4)


def test_a_detector_that_misses_everything_scores_nothing(store):
    errors = detection_errors(perfect(store, [0, 1], shift=40.0), store)
    assert errors["pck2d_02_torso"] == 0
    assert errors["epe2d_px"] == pytest.approx(40, rel=1e-4)


def test_the_table_holds_every_number(store):
    errors = evaluate(perfect(store, [0]), Remembers(store), store, torch.zeros(17, 3)).errors
    text = table(errors)
    for name in ("mean pose", "lifter on true 2D", "whole pipeline", "PCK@0.2 torso"):
        assert name in text
    assert f"{errors['mpjpe_mm']['mean_pose']:.1f}" in text


def test_bad_arguments_are_one_line(tmp_path, store_path, capsys):
    assert main(["--data", str(store_path), "--weights", str(tmp_path)]) == 2
    assert "hrnet.safetensors" in capsys.readouterr().err
    assert main(["--data", str(tmp_path / "none.h5"), "--weights", "no-such-run"]) == 2
    assert "no-such-run" in capsys.readouterr().err
