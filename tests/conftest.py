"""Fixtures shared by the tests: small pose stores with consistent labels."""

from __future__ import annotations

import os

# Before torch is imported, and for the processes that tests start: the suite is made for two cores, and the threads of
# several runs take the cores from each other when they spin while they wait.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpe_fast.skeleton import NUM_JOINTS


def picture(seed: int, size: tuple[int, int]) -> bytes:
    """JPEG bytes of smooth colours with some noise, different for every seed."""
    import cv2

    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
    noisy = np.clip(smooth.astype(int) + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", noisy)[1].tobytes()


def labels(seed: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """A random person in front of a camera: labels that project onto each other, all joints in the picture."""
    rng = np.random.default_rng(seed)
    height, width = size
    intrinsics = np.array([1.3 * width, 1.3 * height, width / 2 + 1.5, height / 2 - 0.7])
    pose2d = rng.uniform(0.2, 0.8, (NUM_JOINTS, 2)) * (width, height)
    depth = rng.uniform(3000, 4000, (NUM_JOINTS, 1))
    pose3d = np.concatenate([(pose2d - intrinsics[2:]) / intrinsics[:2] * depth, depth], axis=1)
    return {"pose2d": pose2d, "visible": np.ones(NUM_JOINTS), "pose3d": pose3d, "intrinsics": intrinsics}


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make_store(count=20, size=(64, 64), jpegs=None)`` writes a store to a new folder and returns its path.

    ``jpegs`` replaces the pictures' bytes; ``False`` writes a store without pictures.
    """
    from hpe_fast.data.store import PoseStoreWriter

    def make(count: int = 20, size: tuple[int, int] = (64, 64), jpegs: list[bytes] | bool | None = None) -> Path:
        path = tmp_path_factory.mktemp("store") / "poses.h5"
        with PoseStoreWriter(path, size) as writer:
            for i in range(count):
                jpeg = None if jpegs is False else jpegs[i] if jpegs else picture(i, size)
                who = {"subject": f"S{i % 3}", "action": f"Walk {i % 2}", "camera": "cam0", "name": f"Bär_{i}.jpg"}
                writer.append(jpeg, **labels(i, size), **who, frame=5 * i)
        return path

    return make


@pytest.fixture(scope="session")
def store_path(make_store: Callable[..., Path]) -> Path:
    """A store of 20 pictures of 64x64 pixels; not to be changed."""
    return make_store()
