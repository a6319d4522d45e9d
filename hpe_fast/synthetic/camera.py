"""Cameras: x right, y down, z forward; pixels in index coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Camera:
    """``eye`` [3] metres and ``axes`` [3,3] (columns right, down, forward) in the world; ``lens``: fx, fy, cx, cy of
    the square picture, pixels."""

    eye: np.ndarray
    axes: np.ndarray
    lens: np.ndarray

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """World [...,3] to the camera's frame."""
        return (points - self.eye) @ self.axes

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points of the camera's frame [...,3] to pixels [...,2].

        Example:
            >>> camera = Camera(np.zeros(3), np.eye(3), np.array([100.0, 100, 50, 40]))
            >>> camera.project(np.array([1.0, 2.0, 4.0])).tolist()
            [75.0, 90.0]
        """
        return points[..., :2] / points[..., 2:] * self.lens[:2] + self.lens[2:]


@dataclass(frozen=True)
class Shot:
    """A camera, from which quarter it looks (0 to 3), and whether its crop cuts the person on purpose."""

    camera: Camera
    quarter: int
    cut: bool


def random_shot(rng: np.random.Generator, person: np.ndarray, floor: float, size: int) -> Shot:
    """A camera like Human3.6M's (four in ten are freer), and the square crop of its frame round a person [N,3].

    Human3.6M: focal length about 1145 px of a frame of 1000, 3 to 6 m away, at eye height. A crop changes fx, fy, cx,
    cy only, so that labels stay what the camera sees.
    """
    free = rng.random() < 0.4
    low, high = person.min(axis=0), person.max(axis=0)
    centre = (low + high) / 2
    azimuth = rng.uniform(0, 2 * np.pi)
    distance = rng.uniform(1.6, 8.0) if free else rng.uniform(3.0, 6.0)
    eye = centre + distance * np.array([np.cos(azimuth), np.sin(azimuth), 0])
    eye[2] = floor + _height(rng, free, distance)
    aim = centre + rng.normal(0, 1, 3) * [0.35, 0.35, 0.15] * min(1.0, distance / 4)
    held = free and rng.random() < 0.3  # in a hand, askew
    axes = _look(eye, aim, np.radians(rng.normal(0, 18.0 if held else 5.0 if free else 1.5)))
    focal = 1145.0 * (rng.uniform(0.5, 1.6) if free else rng.uniform(0.97, 1.03))
    middle = 500.0 + rng.normal(0, 8, 2)
    frame = Camera(eye, axes, np.array([focal, focal, *middle]))
    seen = frame.project(frame.to_camera(person))
    return _crop(rng, frame, seen, size, int(azimuth / (np.pi / 2)) % 4)


def _crop(rng: np.random.Generator, frame: Camera, seen: np.ndarray, size: int, quarter: int) -> Shot:
    first, last = seen.min(axis=0), seen.max(axis=0)
    extent = last - first
    side = max(extent[1] / rng.uniform(0.55, 0.92), extent[0] / 0.94)
    slack = (side - extent) / 2
    shift = rng.uniform(-1, 1, 2) * np.minimum(slack * 0.95, 0.16 * side)
    cut = bool(rng.random() < 0.13)
    if cut:
        axis = int(rng.random() < 0.65)
        if axis == 1 and rng.random() < 0.5:  # closer, without the legs
            side *= rng.uniform(0.5, 0.8)
            shift = np.array([rng.normal(0, 0.05) * side, -(extent[1] - side) / 2 - rng.uniform(0.02, 0.1) * side])
        else:
            shift[axis] = rng.choice([-1, 1]) * (slack[axis] + rng.uniform(0.04, 0.25) * extent[axis])
    corner = (first + last) / 2 + shift - side / 2
    scale = size / side
    focal, middle = frame.lens[0] * scale, (frame.lens[2:] - corner) * scale - 0.5
    return Shot(Camera(frame.eye, frame.axes, np.array([focal, focal, *middle])), quarter, cut)


def _height(rng: np.random.Generator, free: bool, distance: float) -> float:
    if not free or rng.random() < 0.6:
        return rng.uniform(1.2, 2.0)
    return rng.uniform(0.2, 1.2) if rng.random() < 0.5 else rng.uniform(2.0, 1.8 + 0.4 * distance)


def _look(eye: np.ndarray, aim: np.ndarray, roll: float) -> np.ndarray:
    forward = (aim - eye) / np.linalg.norm(aim - eye)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    cosine, sine = np.cos(roll), np.sin(roll)
    return np.stack([cosine * right + sine * down, cosine * down - sine * right, forward], axis=1)
