"""Labelled pictures of people who do not exist: ``python -m hpe_fast.synthesize``, with the extra ``synthetic``.

The names are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

_HOME = {"Corpus": "corpus", "Settings": "studio", "remake": "corpus", "render_corpus": "corpus"}
__all__ = ["Corpus", "Settings", "remake", "render_corpus"]

if TYPE_CHECKING:
    from hpe_fast.synthetic.corpus import Corpus, remake, render_corpus
    from hpe_fast.synthetic.studio import Settings


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'hpe_fast.synthetic' has no attribute {name!r}")
    return getattr(import_module(f"hpe_fast.synthetic.{_HOME[name]}"), name)
