"""Poses for where no motion capture is at hand: standing, walking, reaching, sitting, kneeling, bending and lying."""

from __future__ import annotations

import numpy as np

from hpe_fast.synthetic.clip import Clip
from hpe_fast.synthetic.rotations import axis_angle

#: joint -> (parent, offset in units of 5.6 cm): as in CMU's files.
_SKELETON: dict[str, tuple[str, tuple[float, float, float]]] = {
    "Hips": ("", (0, 0, 0)),
    "LHipJoint": ("Hips", (0, 0, 0)),
    "LeftHip": ("LHipJoint", (1.6, -1.8, 0.6)),
    "LeftKnee": ("LeftHip", (2.6, -7.1, 0)),
    "LeftAnkle": ("LeftKnee", (2.5, -6.8, 0)),
    "LeftToe": ("LeftAnkle", (0.2, -0.6, 2.1)),
    "RHipJoint": ("Hips", (0, 0, 0)),
    "RightHip": ("RHipJoint", (-1.6, -1.8, 0.6)),
    "RightKnee": ("RightHip", (-2.6, -7.1, 0)),
    "RightAnkle": ("RightKnee", (-2.5, -6.8, 0)),
    "RightToe": ("RightAnkle", (-0.2, -0.6, 2.1)),
    "lowerback": ("Hips", (0, 0, 0)),
    "Chest": ("lowerback", (0, 2.1, -0.1)),
    "Chest2": ("Chest", (0, 2.1, -0.1)),
    "lowerneck": ("Chest2", (0, 0, 0)),
    "Neck": ("lowerneck", (0, 1.6, 0.1)),
    "Head": ("Neck", (0, 1.6, -0.1)),
    "LeftCollar": ("Chest2", (0, 0, 0)),
    "LeftShoulder": ("LeftCollar", (3.5, 0.9, -0.2)),
    "LeftElbow": ("LeftShoulder", (0, -4.9, 0)),
    "LeftWrist": ("LeftElbow", (0, -3.4, 0)),
    "RightCollar": ("Chest2", (0, 0, 0)),
    "RightShoulder": ("RightCollar", (-3.5, 0.9, -0.2)),
    "RightElbow": ("RightShoulder", (0, -4.9, 0)),
    "RightWrist": ("RightElbow", (0, -3.4, 0)),
}
_NAMES = list(_SKELETON)
_CLIPS_A_STYLE, _FRAMES = 8, 24
#: Means in degrees, the same for both sides where there is one number: hip and knee bend, leg spread, arm raised
#: forwards and sideways, elbow bend, back bend, the whole body tilted forwards.
_STYLES: dict[str, dict[str, float | tuple[float, float]]] = {
    "stand": {},
    "walk": {"hip": (28.0, -18.0), "knee": (12.0, 25.0), "forward": (-22.0, 24.0), "elbow": 22.0},
    "reach": {"forward": (120.0, 20.0), "elbow": 25.0},
    "hands_up": {"sideways": 130.0, "elbow": 30.0},
    "phone": {"forward": (50.0, 5.0), "elbow": (125.0, 15.0)},
    "point": {"forward": (80.0, 0.0), "sideways": (25.0, 5.0), "elbow": (8.0, 15.0)},
    "sit_chair": {"hip": 85.0, "knee": 85.0, "spread": 8.0, "forward": 25.0, "elbow": 45.0},
    "sit_floor": {"hip": 105.0, "knee": 60.0, "spread": 12.0, "forward": 30.0, "elbow": 35.0},
    "kneel": {"hip": (5.0, 85.0), "knee": (85.0, 85.0), "forward": 20.0, "elbow": 45.0},
    "squat": {"hip": 100.0, "knee": 115.0, "spread": 15.0, "forward": 60.0, "elbow": 20.0, "back": 15.0},
    "bend": {"hip": 65.0, "knee": 12.0, "back": 35.0, "forward": 70.0},
    "lie": {"hip": 15.0, "knee": 25.0, "tilt": -90.0, "sideways": 25.0, "elbow": 30.0},
}


def builtin_clips() -> dict[str, list[Clip]]:
    """Action -> clips; always the same.

    Example:
        >>> clips = builtin_clips()
        >>> len(clips), clips["stand"][0].local.shape
        (12, (24, 25, 3, 3))
    """
    parents = [_NAMES.index(parent) if parent else -1 for parent, _ in _SKELETON.values()]
    offsets = np.array([offset for _, offset in _SKELETON.values()], float)
    clips: dict[str, list[Clip]] = {}
    for number, (style, means) in enumerate(_STYLES.items()):
        for part in range(_CLIPS_A_STYLE):
            local = _frames(np.random.default_rng([number, part]), means)
            clips.setdefault(style, []).append(Clip(f"{style}-{part}", _NAMES, parents, offsets, local))
    return clips


def _frames(rng: np.random.Generator, means: dict[str, float | tuple[float, float]]) -> np.ndarray:
    local = np.tile(np.eye(3), (_FRAMES, len(_NAMES), 1, 1))

    def turn(joint: str, axis: tuple[float, float, float], degrees: np.ndarray) -> None:
        i = _NAMES.index(joint)
        local[:, i] = local[:, i] @ axis_angle(np.tile(axis, (_FRAMES, 1)), np.radians(degrees))

    def around(name: str, side: int, default: float, spread: float) -> np.ndarray:
        mean = means.get(name, default)
        mean = mean[side] if isinstance(mean, tuple) else mean
        return rng.normal(mean, spread) + rng.normal(0, spread / 4, _FRAMES)

    turn("Hips", (1, 0, 0), around("tilt", 0, 0.0, 4.0))
    for joint in ("lowerback", "Chest", "Chest2"):
        turn(joint, (1, 0, 0), around("back", 0, 2.0, 8.0) / 3)
        turn(joint, (0, 1, 0), around("twist", 0, 0.0, 12.0) / 3)
    turn("Neck", (1, 0, 0), around("nod", 0, 0.0, 10.0))
    turn("Neck", (0, 1, 0), around("look", 0, 0.0, 22.0))
    for side, name, sign in ((0, "Left", 1), (1, "Right", -1)):
        turn(f"{name}Hip", (-1, 0, 0), around("hip", side, 2.0, 6.0))
        turn(f"{name}Hip", (0, 0, sign), around("spread", side, 4.0, 4.0) - 20)
        turn(f"{name}Knee", (0.94, 0.342 * sign, 0), np.maximum(around("knee", side, 5.0, 7.0), 0))
        turn(f"{name}Shoulder", (-1, 0, 0), around("forward", side, 2.0, 14.0))
        turn(f"{name}Shoulder", (0, 0, sign), around("sideways", side, 10.0, 9.0))
        turn(f"{name}Shoulder", (0, sign, 0), -around("inwards", side, 30.0, 15.0))
        turn(f"{name}Elbow", (-0.866, 0, 0.5 * sign), np.maximum(around("elbow", side, 14.0, 12.0), 2))
    return local
