"""Draws a picture from its number: who, in which pose, clothes, place and light, seen by which camera."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpe_fast.synthetic import things
from hpe_fast.synthetic.body import Body, identity_bone
from hpe_fast.synthetic.camera import Camera, random_shot
from hpe_fast.synthetic.motion import AIRBORNE, Draw, MotionLibrary, bone_turns
from hpe_fast.synthetic.parts import Part, joined
from hpe_fast.synthetic.photograph import photograph
from hpe_fast.synthetic.renderer import SAMPLES, Renderer
from hpe_fast.synthetic.scenery import Backdrop, Panoramas
from hpe_fast.synthetic.splits import SPLITS
from hpe_fast.synthetic.wardrobe import Person, Wardrobe

_ATTEMPTS = 50
_NEAREST = 0.6
_STRANGER_SHARE = 0.1
#: Who stands has both knees this far below the hip; nobody is nearer to a wall than this (metres).
_KNEES, _STANDING, _ARMS_LENGTH = [2, 5], 0.25, 0.7
_UNDER_HIPS, _SUNK = 0.13, 0.12
_MIN_VISIBLE, _MIN_CLEAR = 9, 7
#: How deep (metres, for a person of 1.7 m) a joint may lie behind the first surface and still count as seen.
_DEPTHS = np.array(
    [0.20, 0.17, 0.11, 0.10, 0.17, 0.11, 0.10, 0.20, 0.17, 0.05, 0.13, 0.13, 0.09, 0.08, 0.13, 0.09, 0.08]
)
#: Spheres that stand for the body: between which joints, how far along, radius for a person of 1.7 m.
_BALLS = (
    [(0, 0, 0, 0.14), (0, 7, 0.6, 0.13), (7, 8, 0.5, 0.13), (7, 8, 0.85, 0.11), (9, 10, 0.5, 0.10)]
    + [(a, b, t, r) for a, b in ((1, 2), (4, 5)) for t, r in ((0.2, 0.08), (0.5, 0.075), (0.8, 0.06))]
    + [(a, b, t, r) for a, b in ((2, 3), (5, 6)) for t, r in ((0.0, 0.055), (0.3, 0.05), (0.6, 0.045), (1.0, 0.05))]
    + [(a, b, t, r) for a, b in ((11, 12), (14, 15)) for t, r in ((0.3, 0.05), (0.8, 0.045))]
    + [(a, b, t, r) for a, b in ((12, 13), (15, 16)) for t, r in ((0.4, 0.04), (1.0, 0.04), (1.3, 0.04))]
)


@dataclass(frozen=True)
class Settings:
    """What a corpus is made from.

    Example:
        >>> Settings(0, "train", None, None, 128, 10, "cpu").size
        128
    """

    seed: int
    split: str
    """train, valid or test: they share no recording, outfit or panorama."""
    assets: Path | None
    """Folder with MakeHuman's clothes and panoramas."""
    mocap: Path | None
    """Folder with motion capture."""
    size: int
    """Side of the pictures, px."""
    people: int
    device: str


@dataclass(frozen=True)
class Row:
    """A picture with its labels, as the pose store has them."""

    jpeg: bytes
    pose2d: np.ndarray
    visible: np.ndarray
    occluded: np.ndarray
    pose3d: np.ndarray
    intrinsics: np.ndarray
    subject: str
    action: str
    camera: str
    frame: int
    name: str
    recipe: dict = field(default_factory=dict)


class Studio:
    """Everything that is loaded once in a process; :meth:`picture` depends on settings and number only."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._split = SPLITS.index(settings.split)
        self.body = Body()
        self.wardrobe = Wardrobe(settings.assets, self.body, settings.split)
        self.motion = MotionLibrary(settings.mocap, settings.split)
        self.panoramas = Panoramas(settings.assets, settings.split)
        self._renderer = Renderer(self.wardrobe.textures, settings.size, settings.device)
        self._person: tuple[int, Person] | None = None

    def picture(self, number: int) -> Row:
        """Picture ``number`` of the corpus; drawn again as long as the person cannot be seen well enough.

        Raises:
            RuntimeError: if no draw was usable.
        """
        for attempt in range(_ATTEMPTS):
            row = self._try(number, attempt)
            if row is not None:
                return row
        raise RuntimeError(f"picture {number}: none of {_ATTEMPTS} draws was usable")

    def _who(self, subject: int) -> Person:
        if self._person is None or self._person[0] != subject:
            rng = np.random.default_rng([self._settings.seed, self._split, subject, 0, 1])
            self._person = subject, self.wardrobe.person(rng)
        return self._person[1]

    def _try(self, number: int, attempt: int) -> Row | None:
        settings = self._settings
        rng = np.random.default_rng([settings.seed, self._split, number, attempt])
        subject = number // settings.people
        person = self._who(subject)
        pose = self.motion.pose(rng)
        turns = bone_turns(self.body, person.shape, pose.clip, pose.local)
        shifts, joints = self.body.pose(person.shape, turns)
        skin, position, normal, worn = self._clothed(rng, person, turns, shifts)
        low = _lowest(position, joints)
        flies = rng.random() < (0.15 if pose.tilted else 0.4 if pose.action in AIRBORNE else 0.0)
        floor = low - (rng.uniform(0.0, 0.8 if pose.tilted else 0.25) if flies else 0.0)
        shot = random_shot(rng, position, floor, settings.size)
        camera = shot.camera
        in_camera = camera.to_camera(joints)
        if camera.to_camera(position)[:, 2].min() < _NEAREST or camera.eye[2] < floor + 0.1:
            return None
        bone = len(self.body.bones)
        stool = things.seat(rng, position, joints, floor, bone) if not (flies or pose.tilted) else None
        others, names = things.obstacles(rng, camera, position, floor, bone)
        pieces = [(part, part.rest, part.normal) for part in (stool, *others) if part is not None]
        balls = _balls(joints, person.shape.height, [at for _, at, _ in pieces])
        light, middle = self.panoramas.light(rng), joints.mean(axis=0)
        backdrop = self.panoramas.backdrop(rng, light, camera.eye, middle, floor)
        stranger = self._stranger(rng, camera, joints, backdrop) if rng.random() < _STRANGER_SHARE else None
        if stranger is not None:
            pieces.append(stranger)
            names.append("stranger")
        scene = joined([skin, *(part for part, _, _ in pieces)])
        position = np.concatenate([position, *(at for _, at, _ in pieces)])
        normal = np.concatenate([normal, *(out for _, _, out in pieces)])
        noise = int(rng.integers(1 << 31))
        layers = self._renderer.render(scene, position, normal, balls, camera, light, backdrop, middle, noise)
        pose2d = camera.project(in_camera)
        visible = ((pose2d > -0.5) & (pose2d < settings.size - 0.5)).all(axis=1)
        occluded = visible & _behind(layers.nearness, pose2d, in_camera, person.shape.height)
        if visible.sum() < _MIN_VISIBLE or (visible & ~occluded).sum() < _MIN_CLEAR:
            return None
        jpeg, finish = photograph(rng, layers)
        recipe = {"seed": settings.seed, "split": settings.split, "index": number, "attempt": attempt}
        recipe |= {"people": settings.people, "size": settings.size}
        recipe |= {"clip": pose.clip.name, "frame": pose.frame, "panorama": light.panorama.name, **worn}
        recipe |= {
            "tilted": pose.tilted,
            "seat": stool is not None,
            "things": names,
            "room": backdrop.room is not None,
            "cut": shot.cut,
            **finish,
        }
        return _row(jpeg, pose2d, visible, occluded, in_camera, camera, shot.quarter, pose, subject, number, recipe)

    def _clothed(
        self, rng: np.random.Generator, person: Person, turns: np.ndarray, shifts: np.ndarray
    ) -> tuple[Part, np.ndarray, np.ndarray, dict[str, str]]:
        """The dressed person in one part, its posed vertices and normals, and what is worn."""
        clothed, worn = self.wardrobe.dress(rng, person)
        skin = joined(clothed)
        return skin, *self._renderer.pose(skin, *identity_bone(turns, shifts)), worn

    def _stranger(
        self, rng: np.random.Generator, camera: Camera, joints: np.ndarray, backdrop: Backdrop
    ) -> tuple[Part, np.ndarray, np.ndarray] | None:
        """Somebody else who stands farther away and to one side: a thing, as far as labels go; vertices and normals.

        ``None`` if there would be no chair, or a wall before them.
        """
        pose, other = self.motion.pose(rng), self.wardrobe.person(rng)
        turns = bone_turns(self.body, other.shape, pose.clip, pose.local)
        shifts, own = self.body.pose(other.shape, turns)
        if (own[0, 2] - own[_KNEES, 2]).min() < _STANDING:
            return None
        skin, position, normal, _ = self._clothed(rng, other, turns, shifts)
        away = (joints.mean(axis=0) - camera.eye)[:2]
        away = away / np.linalg.norm(away)
        beside = np.array([-away[1], away[0]]) * rng.choice([-1, 1])
        reach = np.abs((joints[:, :2] - joints[:, :2].mean(axis=0)) @ beside).max()
        place = joints[:, :2].mean(axis=0) + away * rng.uniform(1.5, 5.0) + beside * (reach + rng.uniform(0.3, 1.2))
        if (backdrop.walls[:, :2] @ place > backdrop.walls[:, 2] - _ARMS_LENGTH).any():
            return None
        shift = np.array([*(place - position[:, :2].mean(axis=0)), backdrop.floor - position[:, 2].min()], np.float32)
        return skin, position + shift, normal


def _row(
    jpeg: bytes,
    pose2d: np.ndarray,
    visible: np.ndarray,
    occluded: np.ndarray,
    in_camera: np.ndarray,
    camera: Camera,
    quarter: int,
    pose: Draw,
    subject: int,
    number: int,
    recipe: dict,
) -> Row:
    action = "".join(word.capitalize() for word in pose.action.split("_"))
    return Row(
        jpeg=jpeg,
        pose2d=pose2d.astype(np.float32),
        visible=visible.astype(np.uint8),
        occluded=occluded.astype(np.uint8),
        pose3d=(in_camera * 1000).astype(np.float32),
        intrinsics=camera.lens.astype(np.float32),
        subject=f"S{subject + 1}",
        action=action,
        camera=f"cam{quarter}",
        frame=pose.frame,
        name=f"S{subject + 1}_{action}.cam{quarter}_{number + 1:06d}.jpg",
        recipe=recipe,
    )


def _lowest(position: np.ndarray, joints: np.ndarray) -> float:
    """Where a person [N,3] touches the ground, metres: who sits or lies on it does so with the hips.

    A captured pose on another body, and varied, may have a foot some centimetres lower: it sinks in, and the hips do
    not hover.
    """
    low = float(position[:, 2].min())
    under = position[np.hypot(*(position[:, :2] - joints[0, :2]).T) < _UNDER_HIPS, 2]
    return float(under.min()) if len(under) and under.min() - low < _SUNK else low


def _balls(joints: np.ndarray, height: float, things: list[np.ndarray]) -> np.ndarray:
    """Spheres for the person, and one for each low thing (vertices [N,3]) that darkens the floor beside it."""
    scale = height / 1.7
    rows = [[*(joints[a] + (joints[b] - joints[a]) * t), r * scale] for a, b, t, r in _BALLS]
    for at in things:
        low, high = at.min(axis=0), at.max(axis=0)
        if (high - low).max() < 1.3:
            rows.append([*((low + high) / 2), float((high - low).min()) / 2])
    return np.array(rows, np.float32)


def _behind(nearness: np.ndarray, pose2d: np.ndarray, in_camera: np.ndarray, height: float) -> np.ndarray:
    """Which joints lie deeper behind the first surface on their ray than flesh and clothes explain: bool [17]."""
    last = len(nearness) - 1
    place = np.clip(np.round((pose2d + 0.5) * SAMPLES - 0.5), 0, last).astype(int)
    first = nearness[place[:, 1], place[:, 0]]
    depth = np.where(first > 0, 1 / np.maximum(first, 1e-6), np.inf)
    return in_camera[:, 2] - depth > _DEPTHS * height / 1.7
