"""Where files of weights are: a run directory, or the package itself."""

from __future__ import annotations

import os
from pathlib import Path

#: What ``hpe_fast.load()`` takes when it is given nothing.
DEFAULT_WEIGHTS = "default"
BUNDLED = Path(__file__).parent.parent / "weights"
STAGES = ("hrnet", "lifter")


def bundled_weights() -> list[str]:
    """Names of the weights inside the package: pairs ``weights/NAME.hrnet.safetensors``, ``NAME.lifter.safetensors``.

    Example:
        >>> isinstance(bundled_weights(), list)
        True
    """
    found = [path.name.removesuffix(".hrnet.safetensors") for path in BUNDLED.glob("*.hrnet.safetensors")]
    return sorted(name for name in found if (BUNDLED / f"{name}.lifter.safetensors").is_file())


def weight_paths(path_or_name: str | os.PathLike | None = None) -> tuple[Path, Path]:
    """Files of the detector and of the lifter.

    Args:
        path_or_name: a run directory of ``python -m hpe_fast.train``, or a name from ``bundled_weights()``.
            ``None``: the default of those.

    Raises:
        FileNotFoundError: there is no such directory or name, or a file is missing in it.

    Example:
        >>> weight_paths("no/such/run")
        Traceback (most recent call last):
        FileNotFoundError: weights 'no/such/run': neither a run directory nor ...
    """
    name = DEFAULT_WEIGHTS if path_or_name is None else os.fspath(path_or_name)
    if path_or_name is not None and Path(name).is_dir():
        paths = [Path(name) / f"{stage}.safetensors" for stage in STAGES]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"run directory {name}: {' and '.join(missing)} missing; was it trained to the end?"
            )
        return paths[0], paths[1]
    if name not in bundled_weights():
        known = (
            f"bundled weights ({', '.join(bundled_weights())})" if bundled_weights() else "bundled weights (none here)"
        )
        raise FileNotFoundError(
            f"weights {name!r}: neither a run directory nor {known}. Train some with `python -m hpe_fast.train` and "
            "pass the run directory, e.g. hpe_fast.load('runs/my-run')"
        )
    return BUNDLED / f"{name}.hrnet.safetensors", BUNDLED / f"{name}.lifter.safetensors"


def weight_file(path_or_name: str | os.PathLike, stage: str) -> Path:
    """The file of one stage's network: a file as it is, or what :func:`weight_paths` takes.

    Args:
        path_or_name: a file, a run directory, or a name from ``bundled_weights()``.
        stage: ``hrnet`` or ``lifter``. The other stage's file need not be there.

    Raises:
        FileNotFoundError: there is none.

    Example:
        >>> weight_file("default", "lifter").name
        'default.lifter.safetensors'
    """
    path = Path(path_or_name)
    for candidate in (path, path / f"{stage}.safetensors"):
        if candidate.is_file():
            return candidate
    return weight_paths(path_or_name)[STAGES.index(stage)]
