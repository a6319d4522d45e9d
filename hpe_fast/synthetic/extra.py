"""The optional parts: what to say, and what to stand in for them, where they are not installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

_NEEDED = {"anny": "anny", "warp": "warp-lang"}


def require() -> None:
    """Checks that what renders people is installed.

    Raises:
        ValueError: naming what is missing and how to install it.
    """
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} not installed: pip install 'hpe-fast[synthetic]'")


class Absent:
    """Stands in for a module that is not installed, so that code decorated with it can be imported, but not run."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and not kwargs else self
