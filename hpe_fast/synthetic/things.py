"""Furniture and obstacles: where they stand so that they touch, hide or miss the person as they should."""

from __future__ import annotations

import numpy as np

from hpe_fast.synthetic import materials
from hpe_fast.synthetic.camera import Camera
from hpe_fast.synthetic.materials import PLAIN, material
from hpe_fast.synthetic.parts import Part
from hpe_fast.synthetic.scenery import Box, boxes_part, round_part

_OBSTACLE_SHARE, _CLUTTER_SHARE = 0.22, 0.22
_KNEES, _HIPS, _NECK = [2, 5], [1, 4], 8
#: A seat may press this deep into who sits on it, metres.
_RAISED = np.array([0.0, 0.0, 0.06])


def seat(rng: np.random.Generator, person: np.ndarray, joints: np.ndarray, floor: float, bone: int) -> Part | None:
    """A box, stool or chair under a person [N,3] who sits, else ``None``.

    Who sits has a thigh level, the trunk upright and the hips well above the floor.
    """
    hip, knees = joints[0], joints[_KNEES]
    level = np.abs(knees[:, 2] - joints[_HIPS, 2]).min() < 0.22 and joints[_NECK, 2] - hip[2] > 0.2
    under = person[np.hypot(*(person[:, :2] - hip[:2]).T) < 0.13]
    top = under[:, 2].min() + 0.015 if len(under) else floor
    if not level or not 0.25 < top - floor < 0.8 or rng.random() < 0.05:
        return None
    ahead = (knees.mean(axis=0) - hip)[:2]
    heading = float(np.arctan2(ahead[1], ahead[0]))
    size = rng.uniform([0.34, 0.36], [0.44, 0.55])
    middle = hip[:2] - ahead / (np.linalg.norm(ahead) + 1e-6) * 0.03
    thick = rng.uniform(0.03, 0.08)
    slab = Box(np.array([*middle, top - thick / 2]), np.array([*size, thick]), heading)
    if slab.contains(person + _RAISED).mean() > 0.01:
        return None
    boxes = [slab, *_legs(slab, floor)] if rng.random() < 0.6 else [_down_to(slab, floor)]
    if any(box.contains(person + _RAISED).mean() > 0.006 for box in boxes[1:] or boxes):
        boxes = [slab, *_legs(slab, floor)]
    back = _turned(slab, np.array([-size[0] / 2 - 0.03, 0, 0.25]), np.array([0.03, size[1] * 0.95, 0.32]))
    if rng.random() < 0.5 and not back.contains(person, 0.01).any():
        boxes += [back, *(_turned(slab, np.array([-size[0] / 2 - 0.03, s * size[1] * 0.42, 0.1]),
                                  np.array([0.025, 0.03, 0.4])) for s in (-1, 1))]  # fmt: skip
    return boxes_part(boxes, material(PLAIN, **materials.surface_fields(rng, "thing")), bone)


def obstacles(
    rng: np.random.Generator, camera: Camera, person: np.ndarray, floor: float, bone: int
) -> tuple[list[Part], list[str]]:
    """Things between the camera and the person, and beside and behind; never inside the person [N,3]."""
    parts, names = [], []
    if rng.random() < _OBSTACLE_SHARE:
        kind = str(rng.choice(["table", "crate", "pole", "rail", "ball"], p=[0.3, 0.25, 0.2, 0.15, 0.1]))
        made = _in_front(rng, kind, camera, person, floor, bone)
        parts, names = [*parts, *made], [*names, *([kind] if made else [])]
    if rng.random() < _CLUTTER_SHARE:
        for _ in range(int(rng.integers(1, 4))):
            made = _around(rng, camera, person, floor, bone)
            parts, names = [*parts, *made], [*names, *(["clutter"] if made else [])]
    return parts, names


def _in_front(
    rng: np.random.Generator, kind: str, camera: Camera, person: np.ndarray, floor: float, bone: int
) -> list[Part]:
    low, high = person.min(axis=0), person.max(axis=0)
    middle = (low + high) / 2
    towards = (camera.eye - middle)[:2]
    distance = np.linalg.norm(towards)
    towards = towards / distance
    beside = np.array([-towards[1], towards[0]])
    reach = np.abs((person[:, :2] - middle[:2]) @ towards).max()
    width = np.abs((person[:, :2] - middle[:2]) @ beside).max()
    away = reach + rng.uniform(0.12, 0.7)
    if away > distance - 0.8:
        return []
    at = middle[:2] + towards * away + beside * rng.uniform(-1, 1) * (width + 0.1)
    heading = float(np.arctan2(beside[1], beside[0]) + rng.normal(0, 0.25))
    tall = high[2] - floor
    row = material(PLAIN, **materials.surface_fields(rng, "thing"))
    if kind == "pole":
        radius = rng.uniform(0.02, 0.11)
        if np.hypot(*(person[:, :2] - at).T).min() < radius + 0.02:
            return []
        return [round_part(np.array([*at, floor + 1.4]), np.array([radius, 0.02]), 2.8, row, bone)]
    if kind == "ball":
        radius = rng.uniform(0.12, 0.35)
        centre = np.array([*at, floor + radius])
        if np.linalg.norm(person - centre, axis=1).min() < radius + 0.02:
            return []
        return [round_part(centre, np.array([radius, radius]), 0.0, row, bone)]
    if kind == "crate":
        size = rng.uniform([0.25, 0.25, 0.2], [0.8, 0.6, np.clip(0.7 * tall, 0.2, 1.1)])  # who lies is not tall
        boxes = [Box(np.array([*at, floor + size[2] / 2]), size, heading)]
    else:
        top = rng.uniform(0.35, 0.62) * tall
        thick = rng.uniform(0.02, 0.07) if kind == "table" else rng.uniform(0.04, 0.12)
        size = np.array([rng.uniform(0.8, 2.2), rng.uniform(0.35, 0.8) if kind == "table" else 0.05, thick])
        slab = Box(np.array([*at, floor + top]), size, heading)
        boxes = [slab, *_legs(slab, floor)]
    if any(box.contains(person, 0.02).any() for box in boxes):
        return []
    return [boxes_part(boxes, row, bone)]


def _around(rng: np.random.Generator, camera: Camera, person: np.ndarray, floor: float, bone: int) -> list[Part]:
    middle = (person.min(axis=0) + person.max(axis=0)) / 2
    away = (middle - camera.eye)[:2]
    away = away / np.linalg.norm(away)
    beside = np.array([-away[1], away[0]])
    at = middle[:2] + away * rng.uniform(-0.2, 2.2) + beside * rng.choice([-1, 1]) * rng.uniform(0.2, 1.6)
    size = rng.uniform([0.15, 0.15, 0.15], [0.9, 0.6, 1.9])
    box = Box(np.array([*at, floor + size[2] / 2]), size, float(rng.uniform(0, np.pi)))
    if box.contains(person, 0.03).any():
        return []
    return [boxes_part([box], material(PLAIN, **materials.surface_fields(rng, "thing")), bone)]


def _legs(slab: Box, floor: float) -> list[Box]:
    height = slab.middle[2] - slab.size[2] / 2 - floor
    place = slab.size[:2] / 2 - 0.02
    down = -slab.size[2] / 2 - height / 2
    return [
        _turned(slab, np.array([a * place[0], b * place[1], down]), np.array([0.035, 0.035, height]))
        for a in (-1, 1)
        for b in (-1, 1)
    ]


def _turned(slab: Box, offset: np.ndarray, size: np.ndarray) -> Box:
    cosine, sine = np.cos(slab.heading), np.sin(slab.heading)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    return Box(slab.middle + turn @ offset, size, slab.heading)


def _down_to(slab: Box, floor: float) -> Box:
    top = slab.middle[2] + slab.size[2] / 2
    return Box(np.array([*slab.middle[:2], (top + floor) / 2]), np.array([*slab.size[:2], top - floor]), slab.heading)
