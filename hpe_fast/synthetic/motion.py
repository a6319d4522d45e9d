"""Poses: motion capture in BVH files of the CMU skeleton, and how it moves the bones of :mod:`hpe_fast.synthetic.body`.

Frame of a BVH file: y up, the rest figure faces +z, its left is +x; arms hang and legs are apart; angles in degrees.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from hpe_fast.synthetic.body import Body, Shape
from hpe_fast.synthetic.builtin_poses import builtin_clips
from hpe_fast.synthetic.clip import Clip
from hpe_fast.synthetic.rotations import axis_angle, frame, shortest_turn
from hpe_fast.synthetic.splits import split_of

#: Bone of the rig `cmu_mb` -> joint of the files: one skeleton under two sets of names.
_FILE_JOINT = {
    "Hips": "Hips",
    "LowerBack": "lowerback",
    "Spine": "Chest",
    "Spine1": "Chest2",
    "Neck": "lowerneck",
    "Neck1": "Neck",
    "Head": "Head",
}
for _side in ("Left", "Right"):
    _FILE_JOINT |= {f"{_side[0]}HipJoint": f"{_side[0]}HipJoint"}
    _FILE_JOINT |= {f"{_side}UpLeg": f"{_side}Hip", f"{_side}Leg": f"{_side}Knee", f"{_side}Foot": f"{_side}Ankle"}
    _FILE_JOINT |= {f"{_side}ToeBase": f"{_side}Toe", f"{_side}Shoulder": f"{_side}Collar"}
    _FILE_JOINT |= {
        f"{_side}Arm": f"{_side}Shoulder",
        f"{_side}ForeArm": f"{_side}Elbow",
        f"{_side}Hand": f"{_side}Wrist",
    }
_LIMBS = (("UpLeg", "Leg"), ("Leg", "Foot"), ("Arm", "ForeArm"), ("ForeArm", "Hand"))
_ARM = ("Collar", "Shoulder", "Elbow", "Wrist")
ARMS = tuple(side + joint for side in ("Left", "Right") for joint in _ARM)
LEGS = tuple(side + joint for side in ("Left", "Right") for joint in ("Hip", "Knee", "Ankle", "Toe"))
UPPER_BODY = ("lowerback", "Chest", "Chest2", "lowerneck", "Neck", "Head", *ARMS)
_TO_FILE = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float)  # z up to y up
_AXES = "XYZ"
#: How often an action is drawn, where it is not once: Human3.6M is mostly walking, sitting and standing about.
_OFTEN: Mapping[str, float] = {"static": 5.5, "walk": 2.0}
_CLIPS_IN_MEMORY = 256
#: Poses no capture has: joints turned at random, the whole person turned over.
_WILD_SHARE, _TILTED_SHARE, _LEANING_SHARE = 0.15, 0.06, 0.12
#: How often a pose has arms, the whole upper body, or one leg of another frame.
_MIXED_SHARES = {ARMS: 0.13, UPPER_BODY: 0.1, LEGS[:4]: 0.06, LEGS[4:]: 0.06}
#: Actions whose captures leave the floor, which a person put on its lowest point would not show.
AIRBORNE = ("jump", "run", "playground")


@dataclass(frozen=True)
class Draw:
    """A pose and where it comes from: local rotations [K,3,3] of a clip's joints; ``held``: one made by hand;
    ``tilted``: turned as a whole, as gymnasts and people who fall are."""

    action: str
    clip: Clip
    frame: int
    local: np.ndarray
    held: bool
    tilted: bool = False


class MotionLibrary:
    """The captures of one split.

    All parts and mirror twins of a recording are in one split, whatever folder they lie in: recordings of an action are
    ordered by a hash of their name and cut.

    Args:
        folder: of ``ACTION/CLIP.bvh`` or ``.bvh.gz``; ``None``: a few built-in poses.
        split: train, valid or test.

    Raises:
        ValueError: if the folder has no clip of that split, or a file of it is no such BVH file.
    """

    def __init__(self, folder: Path | None, split: str) -> None:
        if folder is None:
            found = builtin_clips()
        else:
            paths = sorted(path for path in folder.rglob("*.bvh*") if path.name.endswith((".bvh", ".bvh.gz")))
            found = {}
            for path in paths:
                found.setdefault(path.parent.name, []).append(path)
        self._clips = self._of_split(found, split)
        if not self._clips:
            raise ValueError(f"--mocap {folder}: no ACTION/CLIP.bvh or .bvh.gz of split {split} below it")
        self.actions = sorted(self._clips)
        weights = [_OFTEN.get(name, 1.0) * min(1.0, 0.35 + 0.1 * len(self._clips[name])) for name in self.actions]
        self._chances = np.array(weights) / sum(weights)

    @property
    def recordings(self) -> set[str]:
        """Names of what this split's clips were cut from."""
        return {recording_name(clip) for clips in self._clips.values() for clip in clips}

    def draw(self, rng: np.random.Generator) -> Draw:
        """A frame of a clip of an action, all at random."""
        action = self.actions[rng.choice(len(self.actions), p=self._chances)]
        clip = _loaded(self._clips[action][rng.integers(len(self._clips[action]))])
        number = int(rng.integers(len(clip.local)))
        held = action == "static"
        name = "_".join(clip.name.split("_")[:2]) if held else action
        return Draw(name, clip, number, clip.local[number], held)

    def pose(self, rng: np.random.Generator) -> Draw:
        """A draw that was varied: limbs of other frames, mirrored as a pose, joints turned a little, leaning."""
        drawn = self.draw(rng)
        local = drawn.local
        for joints, share in _MIXED_SHARES.items():
            if rng.random() < share:
                local = _mixed(drawn.clip, local, self.draw(rng), joints)
        if rng.random() < 0.5:
            local = mirrored(drawn.clip, local)
        spread = rng.uniform(2, 9) if drawn.held else rng.uniform(1, 6)
        if rng.random() < _WILD_SHARE:
            spread = rng.uniform(10, 22)
        local = _varied(rng, drawn.clip, local, spread)
        tilted = rng.random() < _TILTED_SHARE
        if tilted or rng.random() < _LEANING_SHARE:
            axis = np.array([[rng.normal(), 0.3 * rng.normal(), rng.normal()]])
            local[0] = axis_angle(axis, np.radians(rng.normal(0, 75 if tilted else 18, 1)))[0] @ local[0]
        return Draw(drawn.action, drawn.clip, drawn.frame, local, drawn.held, tilted)

    def _of_split(self, found: dict[str, list], split: str) -> dict[str, list]:
        side: dict[str, str] = {}
        clips = {}
        for action, entries in sorted(found.items()):
            new = sorted({recording_name(entry) for entry in entries} - set(side))
            side |= split_of(new)
            mine = [entry for entry in entries if side[recording_name(entry)] == split]
            if mine:
                clips[action] = mine
        return clips


def recording_name(clip: Path | Clip) -> str:
    """What must not be in two splits: a capture without its part (``05_06_b``) or side (``_left``).

    Example:
        >>> recording_name(Path("dance/05_06_b.bvh.gz")), recording_name(Path("static/stand_phone_left.bvh"))
        ('05_06', 'stand_phone')
    """
    name = clip.name.split(".")[0]
    shorter = re.sub(r"_(left|right|[a-z])(?=_|$)", "", name)
    return shorter


def read_bvh(path: Path) -> Clip:
    """A BVH file; the root's translation is left out, since everybody stands on the floor of the picture.

    Raises:
        ValueError: naming the file, if it is no BVH file of the CMU skeleton.
    """
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt") as file:
            head, motion = file.read().split("MOTION", 1)
        names, parents, offsets, channels = _hierarchy(head)
        numbers = np.array(motion.split("Frame Time:", 1)[1].split()[1:], float)
        rows = numbers.reshape(-1, sum(len(names) for names in channels))
    except (OSError, EOFError, UnicodeDecodeError, ValueError, IndexError, zlib.error) as error:
        raise ValueError(f"{path}: no BVH file ({error})") from error
    absent = sorted(set(_FILE_JOINT.values()) - set(names))
    if absent or not len(rows) or not np.isfinite(rows).all():
        what = f"joints {', '.join(absent)} are missing" if absent else "no frames, or numbers that are not finite"
        raise ValueError(f"{path}: {what}; want the CMU skeleton of 31 joints")
    local = np.tile(np.eye(3), (len(rows), len(names), 1, 1))
    column = 0
    for joint, entries in enumerate(channels):
        for channel in entries:
            if channel.endswith("rotation"):
                axis = np.tile(np.eye(3)[_AXES.index(channel[0])], (len(rows), 1))
                local[:, joint] = local[:, joint] @ axis_angle(axis, np.radians(rows[:, column]))
            column += 1
    return Clip(path.name.split(".")[0], names, parents, np.array(offsets), local)


def _hierarchy(head: str) -> tuple[list[str], list[int], list[list[float]], list[list[str]]]:
    names, parents, offsets, channels, open_joints, end = [], [], [], [], [], False
    for words in filter(None, map(str.split, head.splitlines())):
        if words[0] in ("ROOT", "JOINT"):
            names.append(words[1])
            parents.append(open_joints[-1] if open_joints else -1)
            offsets.append([0.0, 0.0, 0.0])
            channels.append([])
        elif words[0] == "End":
            end = True
        elif words[0] == "{":
            open_joints.append(open_joints[-1] if end else len(names) - 1)
        elif words[0] == "}":
            open_joints.pop()
            end = False
        elif words[0] == "OFFSET" and not end:
            offsets[-1] = [float(word) for word in words[1:4]]
        elif words[0] == "CHANNELS":
            channels[-1] = words[2:]
    return names, parents, offsets, channels


@lru_cache(_CLIPS_IN_MEMORY)
def _read(path: Path) -> Clip:
    return read_bvh(path)


def _loaded(entry: Path | Clip) -> Clip:
    return entry if isinstance(entry, Clip) else _read(entry)


def _varied(rng: np.random.Generator, clip: Clip, local: np.ndarray, degrees: float) -> np.ndarray:
    """Joints turned about random axes; spine and legs less than arms and head, the root not at all."""
    scale = [
        0.0 if name not in _FILE_JOINT.values() or name in ("Hips", "LHipJoint", "RHipJoint") else
        1.0 if name in ARMS or name in ("Neck", "Head") else 0.4
        for name in clip.names
    ]  # fmt: skip
    angles = np.radians(rng.normal(0, degrees, len(scale))) * scale
    return local @ axis_angle(rng.normal(size=(len(scale), 3)), angles)


def mirrored(clip: Clip, local: np.ndarray) -> np.ndarray:
    """The pose with left and right exchanged: what the person would look like in a mirror, made before it is drawn."""
    return _MIRROR @ local[_twins(clip.names)] @ _MIRROR


_MIRROR = np.diag([-1.0, 1.0, 1.0])


def _twins(names: tuple[str, ...]) -> list[int]:
    pairs = (("Left", "Right"), ("LHip", "RHip"), ("lhand", "rhand"), ("LF", "RF"), ("LT", "RT"))
    twin = {a + tail: b + tail for p in pairs for a, b in (p, p[::-1]) for tail in _tails(names, a)}
    return [names.index(twin[name]) if twin.get(name) in names else names.index(name) for name in names]


def _tails(names: tuple[str, ...], head: str) -> list[str]:
    return [name[len(head) :] for name in names if name.startswith(head)]


def _mixed(clip: Clip, local: np.ndarray, other: Draw, joints: tuple[str, ...]) -> np.ndarray:
    out = local.copy()
    for joint in joints:
        out[clip.names.index(joint)] = other.local[other.clip.names.index(joint)]
    return out


def bone_turns(body: Body, shape: Shape, clip: Clip, local: np.ndarray) -> np.ndarray:
    """World rotations [J,3,3] of the body's bones for one frame [K,3,3] of a clip.

    The two skeletons rest differently (hanging arms against a wide A), so a limb's bone is first turned to the file's
    rest direction, with elbow and knee hinges on each other. Hands follow the forearm.
    """
    world = np.empty_like(local)
    for joint, parent in enumerate(clip.parents):
        world[joint] = local[joint] if parent < 0 else world[parent] @ local[joint]
    turns = np.zeros((len(body.bones), 3, 3))
    corrections = _corrections(body, shape, clip)
    for i, bone in enumerate(body.bones):
        joint = _FILE_JOINT.get(bone)
        if joint is None:
            turns[i] = turns[body.parents[i]]
        else:
            turns[i] = world[clip.names.index(joint)] @ corrections.get(bone, np.eye(3))
    return _TO_FILE.T @ turns @ _TO_FILE


def _corrections(body: Body, shape: Shape, clip: Clip) -> dict[str, np.ndarray]:
    heads = {bone: _TO_FILE @ head for bone, head in zip(body.bones, shape.heads, strict=True)}
    out = {}
    for side, sign in (("Left", 1.0), ("Right", -1.0)):
        arm = heads[f"{side}ForeArm"] - heads[f"{side}Arm"]
        elbow = np.cross(arm, heads[f"{side}Hand"] - heads[f"{side}ForeArm"])
        hinges = {"Arm": (elbow, (-0.866, 0.0, 0.5 * sign)), "Leg": ((1.0, 0.0, 0.0), (0.940, 0.342 * sign, 0.0))}
        for upper, lower in _LIMBS:
            along = heads[side + lower] - heads[side + upper]
            rest = clip.offsets[clip.names.index(_FILE_JOINT[side + lower])]
            mine, theirs = hinges["Arm" if "Arm" in upper else "Leg"]
            out[side + upper] = frame(rest, np.array(theirs)) @ frame(along, np.array(mine)).T
        out[f"{side}Hand"] = out[f"{side}ForeArm"]
    return out


__all__ = ["AIRBORNE", "Draw", "MotionLibrary", "bone_turns", "mirrored", "read_bvh", "recording_name", "shortest_turn"]
