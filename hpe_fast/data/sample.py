"""The sample inside the package: 2,800 + 300 rendered people of 128 x 128 pixels with exact 2D and 3D joints."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def bundled_sample() -> dict[str, Path]:
    """Paths of the bundled pose stores: ``{"train": ..., "valid": ...}``.

    The people of ``train`` (400) and of ``valid`` (50) differ, and so do the recordings of their movements and the
    panoramas around them. Sources and licences are in NOTICE. Made from the 256-pixel pictures by
    ``python -m hpe_fast.convert eth SOURCE hpe_fast/data/bundled --size 128 --quality 75 --limit 2800 300 --no-sheet``.

    Raises:
        FileNotFoundError: if the package was installed without its data.

    Example:
        >>> from hpe_fast.data.store import PoseStore
        >>> {split: len(PoseStore(path)) for split, path in bundled_sample().items()}
        {'train': 2800, 'valid': 300}
    """
    folder = Path(str(files("hpe_fast.data"))) / "bundled"
    paths = {split: folder / f"{split}.h5" for split in ("train", "valid")}
    for path in paths.values():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: the bundled sample is not installed; install the package again")
    return paths
