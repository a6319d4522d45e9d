"""What a camera makes of radiance: defocus, motion blur, exposure, white balance, tone curve, noise, JPEG."""

from __future__ import annotations

import numpy as np

from hpe_fast.synthetic.renderer import Layers

_GAMMA_STEPS = 4096
_QUALITIES = (50, 96)


def photograph(rng: np.random.Generator, layers: Layers) -> tuple[bytes, dict[str, float]]:
    """A picture as JPEG bytes, and what was done to it."""
    import cv2

    size = layers.cover.shape[0]
    defocus = float(rng.choice([0.0, rng.uniform(0.4, 1.2), rng.uniform(1.2, 3.0)], p=[0.5, 0.3, 0.2]) * size / 256)
    front, cover, back = layers.front, layers.cover[..., None], layers.back
    tint = 1 + rng.normal(0, 0.1, 3).astype(np.float32)  # few panoramas, more moods
    back = back * (_soft_shadow(layers)[..., None] * tint)
    if defocus > 0.2:
        back = cv2.GaussianBlur(back, (0, 0), defocus)
    moved = rng.random() < 0.1
    if moved:
        kernel = _streak(rng, rng.uniform(2, 6) * size / 256)
        front, cover = cv2.filter2D(front, -1, kernel), cv2.filter2D(layers.cover, -1, kernel)[..., None]
    picture = front + back * (1 - cover)
    if rng.random() < 0.06:
        picture = cv2.filter2D(picture, -1, _streak(rng, rng.uniform(2, 5) * size / 256))
    picture = _exposed(rng, picture, layers.cover)
    picture = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.25, 0.8)))
    scale = float(rng.uniform(0.3, 0.8)) if rng.random() < 0.15 else 1.0
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    coarse = rng.uniform(0.0, 0.02), rng.uniform(0.0, 0.004)
    noise = rng.standard_normal(picture.shape, np.float32)
    picture = picture + noise * (coarse[0] * np.sqrt(np.maximum(picture, 0)) + coarse[1])
    codes = _developed(rng, picture)
    if scale < 1:
        codes = cv2.resize(codes, (size, size), interpolation=cv2.INTER_LINEAR)
    quality = int(rng.integers(*_QUALITIES))
    ok, jpeg = cv2.imencode(".jpg", codes[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok
    facts = {"defocus": round(defocus, 2), "moved": float(moved), "scale": round(scale, 2), "quality": quality}
    return jpeg.tobytes(), facts


def _soft_shadow(layers: Layers) -> np.ndarray:
    """What shadows leave, smoothed: with few rays a pixel it is noisy. Pixels with nothing behind do not count."""
    import cv2

    free = (layers.cover < 1).astype(np.float32)
    count = cv2.GaussianBlur(free, (0, 0), 1.2)
    return cv2.GaussianBlur(layers.keep * free, (0, 0), 1.2) / (count + 1e-3)


def _streak(rng: np.random.Generator, length: float) -> np.ndarray:
    """Blur kernel of a straight movement over ``length`` pixels."""
    side = 2 * int(length / 2 + 1) + 1
    angle, middle = rng.uniform(0, np.pi), side // 2
    kernel = np.zeros((side, side), np.float32)
    for t in np.linspace(-length / 2, length / 2, 4 * side):
        kernel[round(middle + t * np.sin(angle)), round(middle + t * np.cos(angle))] += 1
    return kernel / kernel.sum()


def _exposed(rng: np.random.Generator, picture: np.ndarray, cover: np.ndarray) -> np.ndarray:
    light = picture.mean(axis=2)
    person = float((light * cover).sum() / (cover.sum() + 1e-6))
    aim = 0.26 * 2 ** rng.normal(0, 0.4) / (0.55 * person + 0.45 * float(np.median(light)) + 1e-4)
    balance = 1 + rng.normal(0, 1, 3) * [0.06, 0.015, 0.06]
    picture = picture * (aim * balance).astype(np.float32)
    if rng.random() < 0.3:  # vignette
        line = np.linspace(-1, 1, len(light), dtype=np.float32) ** 2
        picture *= (1 - np.float32(rng.uniform(0, 0.25)) * (line[:, None] + line))[..., None]
    return picture


def _developed(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Shoulder, saturation, contrast and gamma: uint8."""
    picture = np.maximum(picture, 0)
    picture = picture * (1 + picture / 16) / (1 + picture * 0.55)
    grey = picture.mean(axis=2, keepdims=True)
    saturation = np.float32(0.0 if rng.random() < 0.02 else rng.uniform(0.7, 1.2))
    picture = grey + (picture - grey) * saturation
    steps = np.linspace(0, 1, _GAMMA_STEPS) ** (1 / 2.2)
    curve = np.clip((steps - 0.5) * rng.uniform(0.88, 1.2) + 0.5, 0, 1) * 255 + 0.5
    places = np.clip(picture * (_GAMMA_STEPS - 1), 0, _GAMMA_STEPS - 1).astype(np.int32)
    return curve.astype(np.uint8)[places]
