"""The sample inside the package is what its docstring and the issue say."""

import numpy as np
import pytest

from hpe_fast.data.converters import find_problems
from hpe_fast.data.sample import bundled_sample
from hpe_fast.data.store import PoseStore


@pytest.fixture(scope="module")
def stores():
    return {split: PoseStore(path) for split, path in bundled_sample().items()}


def test_size_and_counts(stores):
    assert sum(path.stat().st_size for path in bundled_sample().values()) <= 10 * 2**20
    assert (len(stores["train"]), len(stores["valid"])) == (2800, 300)
    assert all(store.image_size == (128, 128) and store.has_images for store in stores.values())


def test_everything_is_whole(stores):
    for store in stores.values():
        assert find_problems(store) == []  # reads every picture against its checksum


def test_labels_agree(stores):
    for store in stores.values():
        pose3d, camera = store.pose3d.astype(float), store.intrinsics.astype(float)[:, None]
        projected = pose3d[..., :2] / pose3d[..., 2:] * camera[..., :2] + camera[..., 2:]
        assert np.abs(projected - store.pose2d).max() < 0.05
        inside = ((store.pose2d >= -0.5) & (store.pose2d <= 127.5)).all(-1)
        assert np.mean(inside == store.visible) > 0.999


def test_splits_are_disjoint_and_even(stores):
    train, valid = stores["train"], stores["valid"]
    assert not set(train.subject) & set(valid.subject)
    for store, subjects in ((train, 400), (valid, 50)):
        counts = np.unique(store.subject, return_counts=True)[1]
        assert len(counts) == subjects
        assert counts.max() - counts.min() <= 1  # evenly spaced rows
        assert len(set(store.name)) == len(store)


def test_people_stand_out_from_what_is_around_them(stores):
    """Labels sit on people: colours at the joints differ from those a third of the picture aside."""
    store, gain = stores["valid"], []
    for row in range(0, 300, 3):
        image = store.image(row).astype(float)
        x, y = np.clip(store.pose2d[row].round().astype(int), 0, 127).T
        trunk = image[y[[0, 7, 8]], x[[0, 7, 8]]].mean(0)
        aside = image[y[[0, 7, 8]], (x[[0, 7, 8]] + 64) % 128].mean(0)
        gain.append(np.abs(trunk - aside).sum())
    assert np.median(gain) > 100
