"""Random numbers that are a function of what they are for, not of what was drawn before (splitmix64).

So a sample's augmentation does not depend on batch, rank, thread or where a run was resumed, and no state needs saving.
"""

from __future__ import annotations

import numpy as np

_MASK = (1 << 64) - 1
_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mix(words: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection of 64-bit words."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _key(seed: int, epoch: int, ids: np.ndarray) -> np.ndarray:
    key = np.zeros(1, np.uint64)
    for part in (seed, epoch):
        key = _mix(key + _STEP + np.uint64(int(part) & _MASK))
    return _mix(key + _STEP + np.asarray(ids, np.int64).astype(np.uint64))


def uniforms(seed: int, epoch: int, ids: np.ndarray, count: int) -> np.ndarray:
    """Uniform numbers in (0, 1) for each id.

    Args:
        seed: of the run.
        epoch: of the pass over the data.
        ids: int64 [B].
        count: how many for each id. The first n do not depend on it.

    Returns:
        float64 [B, count], never 0 or 1.

    Example:
        >>> several, one = uniforms(1, 0, np.array([5, 9]), 3), uniforms(1, 0, np.array([9]), 2)
        >>> bool((several[1, :2] == one[0]).all())
        True
    """
    words = _mix(_key(seed, epoch, ids)[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _STEP)
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """An order of ``range(count)`` that depends on seed and epoch only: int64 [count].

    Example:
        >>> sorted(permutation(seed=3, epoch=1, count=5).tolist())
        [0, 1, 2, 3, 4]
    """
    return np.argsort(_key(seed, ~epoch, np.arange(count)), kind="stable")
