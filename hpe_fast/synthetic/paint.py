"""Clothes painted on a body: where they end (see ``Body.place``) and how far they stand out from the skin."""

from __future__ import annotations

import numpy as np


def no_clothes() -> dict[str, float]:
    return {"sleeve": -1.0, "waist": 9.0, "neck": -9.0, "trousers": 9.0, "shoe": -9.0, "hairline": 9.0, "hem": -9.0}


def cuts(rng: np.random.Generator, female: bool) -> dict[str, float]:
    """Where painted clothes end: sleeves along the arm, hem, neckline, trouser legs, shoes (see ``Body.place``)."""
    sleeve = rng.choice(
        [rng.uniform(0.08, 0.16), rng.uniform(0.18, 0.42), rng.uniform(0.5, 0.7), rng.uniform(0.9, 0.97)]
    )
    trousers = rng.choice(
        [rng.uniform(-0.45, -0.2), rng.uniform(-0.65, -0.5), rng.uniform(-0.97, -0.85)], p=[0.25, 0.1, 0.65]
    )
    return {
        "sleeve": float(sleeve),
        "waist": float(rng.choice([rng.uniform(-0.12, 0.05), rng.uniform(0.05, 0.2)], p=[0.8, 0.2])),
        "neck": float(rng.uniform(0.9 if female else 0.97, 1.06)),
        "trousers": float(trousers),
        "shoe": float(rng.uniform(-0.97, -0.88)),
    }


def sportswear(rng: np.random.Generator, female: bool) -> dict[str, float]:
    """Where clothes for sports and bathing end: shorts or leggings; nothing above for most men, a short top for women.

    One in four wears a cap, painted where hair grows.
    """
    bare = not female and rng.random() < 0.7
    waist = float(rng.uniform(0.12, 0.25))
    legs = [rng.uniform(-0.25, -0.14), rng.uniform(-0.5, -0.25), rng.uniform(-0.95, -0.6)]
    trousers = rng.choice(legs, p=[0.3, 0.5, 0.2])
    return {
        "sleeve": float(rng.choice([0.04, rng.uniform(0.05, 0.14)])),
        "waist": waist,
        "neck": -9.0 if bare else float(rng.uniform(0.82, 0.92) if female else rng.uniform(0.92, 1.02)),
        "hem": float(rng.uniform(0.45, 0.6)) if female and rng.random() < 0.6 else -9.0,
        "trousers": float(trousers),
        "shoe": float(rng.uniform(-0.97, -0.9)) if rng.random() < 0.5 else -9.0,
        "hairline": float(rng.uniform(-0.05, 0.02)) if rng.random() < 0.25 else 9.0,
    }


def swell(place: np.ndarray, limits: dict[str, float], tight: bool, rng: np.random.Generator) -> np.ndarray:
    """How far out painted cloth hangs from the skin, metres [N]: loose at hems, none where skin is bare."""
    trunk, arm, scalp = place.T
    baggy = not tight and rng.random() < 0.35
    loose, wide = rng.uniform(0.006, 0.03 if baggy else 0.016), rng.uniform(0.005, 0.04 if baggy else 0.02)
    top = (trunk >= max(limits["waist"], limits["hem"])) & (trunk < limits["neck"]) & (arm < limits["sleeve"])
    trousers = (trunk < limits["waist"]) & (trunk > limits["trousers"]) & (arm < 0.05)
    if tight:
        loose, wide = loose / 5, wide / rng.choice([1, 5])
    near_hem = np.clip(1 - (trunk - limits["waist"]) / 0.3, 0, 1) * (arm < 0.05)
    near_cuff = np.clip(1 - (limits["sleeve"] - arm) / 0.15, 0, 1) * (arm > 0.05)
    out = np.where(top, loose * (0.7 + 0.7 * near_hem + 0.5 * near_cuff), 0.0)
    down = np.clip(-trunk, 0, 1)
    out = np.where(trousers, 0.005 + wide * down, out)
    out = np.where(trunk < limits["shoe"], 0.007, out)
    return np.where(scalp > limits["hairline"], 0.012 + 0.01 * np.clip(scalp, 0, 1), out).astype(np.float32)
