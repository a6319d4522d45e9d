"""What surfaces look like: rows of the renderer's table of materials, drawn at random."""

from __future__ import annotations

import colorsys

import numpy as np

#: Column (or first of three) of each field; the kernels have the same numbers.
COLUMNS = {
    "slot": 0,
    "mode": 1,
    "colour": 2,
    "second": 5,
    "pattern": 8,
    "period": 9,
    "duty": 10,
    "phase": 11,
    "axis": 12,
    "gloss": 15,
    "detail": 16,
    "median": 17,
    "keep": 18,
    "cutout": 19,
    "folds": 20,
    "sleeve": 21,
    "waist": 22,
    "neck": 23,
    "trousers": 24,
    "shoe": 25,
    "hairline": 26,
    "hem": 27,
}
WIDTH = 28
PICTURE, CLOTH, PLAIN, DRESSED = range(4)
_PLAIN_CLOTH, _STRIPES, _CHECKS, _DOTS, _BLOTCHES, _BAND, _GRAIN, _TILES = range(8)
_CLOTH_CHANCES = {_PLAIN_CLOTH: 0.55, _STRIPES: 0.12, _CHECKS: 0.09, _DOTS: 0.05, _BLOTCHES: 0.09, _BAND: 0.10}
_NEUTRALS = (0.02, 0.035, 0.06, 0.15, 0.35, 0.65, 0.8)
#: Natural hair, linear RGB.
_HAIR = np.array(
    [
        [0.012, 0.010, 0.009],
        [0.03, 0.018, 0.012],
        [0.07, 0.035, 0.018],
        [0.14, 0.07, 0.03],
        [0.30, 0.18, 0.07],
        [0.45, 0.33, 0.18],
        [0.20, 0.06, 0.025],
        [0.35, 0.34, 0.33],
    ]
)
#: Skin without a texture, linear RGB.
_SKIN = np.array([[0.62, 0.38, 0.27], [0.52, 0.29, 0.19], [0.36, 0.19, 0.11], [0.20, 0.10, 0.06], [0.09, 0.045, 0.028]])


def material(mode: int, **fields: float | np.ndarray) -> np.ndarray:
    """A row of the table, float32 [WIDTH]; what is not named is 0, and there is no texture.

    Example:
        >>> row = material(PLAIN, colour=np.array([0.5, 0.2, 0.1]), gloss=0.1)
        >>> row[:5].round(2).tolist()
        [-1.0, 2.0, 0.5, 0.20000000298023224, 0.10000000149011612]
    """
    row = np.zeros(WIDTH, np.float32)
    row[COLUMNS["slot"]], row[COLUMNS["mode"]], row[COLUMNS["period"]] = -1, mode, 1
    for name, value in fields.items():
        value = np.atleast_1d(value)
        row[COLUMNS[name] : COLUMNS[name] + len(value)] = value
    return row


def cloth_colour(rng: np.random.Generator) -> np.ndarray:
    """Linear RGB [3]; greys, denim and navy as frequent as in a street."""
    kind = rng.random()
    if kind < 0.42:
        return np.clip(rng.choice(_NEUTRALS) * rng.uniform(0.7, 1.15) * (1 + rng.normal(0, 0.06, 3)), 0.01, 0.9)
    if kind < 0.57:
        return (
            np.array(colorsys.hsv_to_rgb(rng.uniform(0.57, 0.67), rng.uniform(0.3, 0.8), rng.uniform(0.1, 0.6))) ** 1.6
        )
    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.15, 0.85), rng.uniform(0.15, 0.9))) ** 2.0


def cloth_fields(rng: np.random.Generator) -> dict[str, float | np.ndarray]:
    """Colours and pattern of a piece of cloth."""
    kind = int(rng.choice(list(_CLOTH_CHANCES), p=list(_CLOTH_CHANCES.values())))
    axis = (
        [(0, 0, 1), (0, 0, 1), (1, 0.5, 0), (0.7, 0.3, 0.7)][rng.integers(4)]
        if kind == _STRIPES
        else rng.normal(size=3)
    )
    return {
        "colour": cloth_colour(rng),
        "second": cloth_colour(rng),
        "pattern": kind,
        "period": rng.uniform(0.025, 0.12),
        "duty": rng.uniform(0.2, 0.6),
        "phase": rng.random(),
        "axis": np.array(axis, float),
        "gloss": rng.uniform(0.0, 0.03),
    }


def surface_fields(rng: np.random.Generator, kind: str) -> dict[str, float | np.ndarray]:
    """Colours and pattern of a ``floor``, a ``wall`` or a ``thing``."""
    patterns = {
        "floor": (_GRAIN, _TILES, _BLOTCHES, _TILES, _BLOTCHES, _CHECKS),
        "wall": (_PLAIN_CLOTH, _PLAIN_CLOTH, _BLOTCHES, _TILES, _STRIPES),
        "thing": (_PLAIN_CLOTH, _GRAIN, _GRAIN, _BLOTCHES, _STRIPES, _TILES),
    }[kind]
    pattern = int(rng.choice(patterns))
    first = cloth_colour(rng) if rng.random() < (0.5 if kind == "thing" else 0.2) else _muted(rng, kind)
    periods = {_GRAIN: (0.06, 0.2), _TILES: (0.2, 0.8), _BLOTCHES: (0.015, 0.4), _STRIPES: (0.05, 0.4)}
    lean = rng.uniform(-np.pi, np.pi)
    axis = {
        "floor": (np.cos(lean), np.sin(lean), 0.0),
        "wall": (0.0, 0.0, 1.0) if pattern != _STRIPES or rng.random() < 0.3 else (1.0, 0.8, 0.0),
        "thing": (0.0, 0.0, 1.0),
    }[kind]
    if pattern == _BLOTCHES:
        axis = rng.normal(size=3)
    return {
        "colour": first,
        "second": np.clip(first * rng.uniform(0.45, 1.5) * (1 + rng.normal(0, 0.05, 3)), 0.01, 0.9),
        "pattern": pattern,
        "period": rng.uniform(*periods.get(pattern, (0.1, 0.5))),
        "duty": rng.uniform(0.2, 0.6),
        "phase": rng.random(),
        "axis": np.array(axis),
        "gloss": rng.uniform(0.0, 0.1),
    }


def _muted(rng: np.random.Generator, kind: str) -> np.ndarray:
    value = rng.uniform(0.08, 0.5) if kind == "floor" else rng.uniform(0.15, 0.8)
    hue = rng.uniform(0.03, 0.14) if rng.random() < 0.6 else rng.random()
    return value * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.0, 0.35), 1.0))


def hair_colour(rng: np.random.Generator) -> np.ndarray:
    """Linear RGB [3]."""
    return _HAIR[rng.integers(len(_HAIR))] * rng.uniform(0.7, 1.3)


def skin_colour(rng: np.random.Generator) -> np.ndarray:
    """Linear RGB [3] of skin that has no texture."""
    return _SKIN[rng.integers(len(_SKIN))] * rng.uniform(0.85, 1.15) * (1 + rng.normal(0, 0.03, 3))
