"""Which of train, valid and test a thing belongs to: by the hash of its name, so that all machines agree."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

SPLITS = ("train", "valid", "test")
_SHARES = (0.75, 0.125, 0.125)


def split_of(names: Iterable[str]) -> dict[str, str]:
    """The split of each name: ordered by hash and cut at 75 and 87.5 %, but with three names each split has one.

    Example:
        >>> sorted(split_of("abcdefgh").values())
        ['test', 'train', 'train', 'train', 'train', 'train', 'train', 'valid']
    """
    ordered = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    count = len(ordered)
    held = [0, 0] if count < len(SPLITS) else [max(1, round(count * share)) for share in _SHARES[1:]]
    kinds = ["valid"] * held[0] + ["test"] * held[1] + ["train"] * (count - sum(held))
    return dict(zip(ordered, kinds, strict=True))
