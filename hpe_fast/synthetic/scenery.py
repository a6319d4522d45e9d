"""What is around a person: panoramas that light and surround, rooms, furniture to sit on, things in the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpe_fast.synthetic import materials
from hpe_fast.synthetic.materials import PLAIN, material
from hpe_fast.synthetic.parts import Part
from hpe_fast.synthetic.splits import SPLITS, split_of

_PAINTED_PANORAMAS, _PAINTED_HEIGHT = 24, 256
#: Panoramas that show no ground to stand on.
_WITHOUT_GROUND = ("sky",)
#: Water, or machines, where somebody would stand: light for rooms only.
_ONLY_LIGHT = ("lab", "venice", "venice_sunset_1k")
_ROOM_SHARE = 0.38
_BRIGHTEST = 8.0
#: How far below the horizon of a panorama feet may be, radians: near the nadir its tripod was painted over.
_STEEPEST = 0.8
_THING_PLACE = np.array([0.5, 9.0, -9.0], np.float32)


@dataclass(frozen=True, eq=False)
class Panorama:
    """Radiance [h,2h,3], rows from the zenith down, azimuth 0 in the middle column and growing to the right."""

    name: str
    radiance: np.ndarray
    small: np.ndarray


@dataclass(frozen=True)
class Light:
    """Where light comes from: ``sh`` [9,3] from all around, and a sun (direction, colour, radius over distance)."""

    panorama: Panorama
    yaw: float
    sh: np.ndarray
    sun: np.ndarray
    sun_light: np.ndarray
    spread: float


@dataclass(frozen=True)
class Backdrop:
    """A panorama whose view is ``wide`` times the true one, or a room: walls [W,4] (a, b, c of a x + b y = c, and the
    seed of what hangs there) and the materials [1 + W, WIDTH] of floor and walls. ``sun_share``: how much of the
    floor's light shadows take."""

    floor: float
    wide: float
    sun_share: float
    walls: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    room: np.ndarray | None = None


class Panoramas:
    """The panoramas of one split.

    Args:
        folder: of equirectangular ``.hdr`` files at any depth; ``None``, or none of them there: painted ones.
        split: train, valid or test.

    Raises:
        ValueError: naming a file that cannot be decoded.
    """

    def __init__(self, folder: Path | None, split: str) -> None:
        files = {path.stem: path for path in sorted(folder.rglob("*.hdr"))} if folder is not None else {}
        files = {name: path for name, path in files.items() if name not in _WITHOUT_GROUND}
        if files:
            side = split_of(files)
            self.items = [_read(path) for name, path in files.items() if side[name] == split]
            if not self.items:
                raise ValueError(f"--assets {folder}: {len(files)} panoramas are too few for a split {split}")
        else:
            number = SPLITS.index(split)
            self.items = [_painted(np.random.default_rng([number, k]), f"painted-{split}-{k}") for k in _few(split)]

    def light(self, rng: np.random.Generator) -> Light:
        """A panorama in a random heading, and its sun or another."""
        panorama = self.items[rng.integers(len(self.items))]
        yaw = rng.random()
        width = panorama.small.shape[1]
        turned = np.roll(panorama.small, -round(yaw * width), axis=1)
        sh = spherical_harmonics(turned)
        sh = sh / (sh[0].mean() * 0.282095) * rng.uniform(0.55, 1.1)
        sh = sh / (sh[0] / sh[0].mean()) ** rng.uniform(0.2, 0.7)  # white balance
        sun, share = _brightest(turned)
        elevation, azimuth = np.radians(rng.uniform(18, 80)), rng.uniform(0, 2 * np.pi)
        if share < 0.12 or rng.random() < 0.3:
            sun = np.array(
                [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
            )
        strength = rng.uniform(0, 0.25) if rng.random() < 0.35 else rng.uniform(0.4, 2.2)
        colour = np.array([1.0, rng.uniform(0.85, 1.0), rng.uniform(0.65, 1.0)])
        return Light(panorama, yaw, sh.astype(np.float32), sun, colour * strength, float(rng.uniform(0.03, 0.25)))

    def backdrop(
        self, rng: np.random.Generator, light: Light, eye: np.ndarray, person: np.ndarray, floor: float
    ) -> Backdrop:
        """What a camera at ``eye`` sees behind a person whose middle is ``person``."""
        share = float(np.clip(light.sun_light[0] * 0.4, 0.05, 0.65))
        painted = light.panorama.name.startswith("painted")
        indoors = rng.random() < (0.6 if painted else _ROOM_SHARE) or light.panorama.name in _ONLY_LIGHT
        if not indoors:
            wide = rng.choice([rng.uniform(1.0, 2.2), rng.uniform(2.0, 3.2)], p=[0.75, 0.25])
            down = np.arctan2(eye[2] - floor, np.linalg.norm((person - eye)[:2]))
            return Backdrop(floor, float(np.clip(_STEEPEST / max(down, 0.1), 1.0, wide)), share)
        away = (person - eye)[:2] / np.linalg.norm((person - eye)[:2])
        walls, sides = [], 1 + int(rng.random() < 0.5)
        for side in range(sides):
            lean = rng.normal(0, 0.35) if side == 0 else rng.choice([-1, 1]) * rng.uniform(1.0, 1.5)
            normal = np.array([[np.cos(lean), -np.sin(lean)], [np.sin(lean), np.cos(lean)]]) @ away
            distance = normal @ person[:2] + rng.uniform(1.3, 4.0) + (0.5 if side else 0.0)
            if distance > normal @ eye[:2] + 0.5:
                walls.append([*normal, distance, rng.random() if rng.random() < 0.75 else 0.0])
        first = materials.surface_fields(rng, "wall")
        rows = [material(PLAIN, **materials.surface_fields(rng, "floor")), *(material(PLAIN, **first) for _ in walls)]
        table = np.array(walls, np.float32).reshape(-1, 4)
        return Backdrop(floor, 1.0, share, table, np.stack(rows))


def spherical_harmonics(radiance: np.ndarray) -> np.ndarray:
    """Irradiance / pi of a panorama [h,w,3] as nine coefficients [9,3] in the order of the kernel.

    Example:
        >>> (spherical_harmonics(np.ones((16, 32, 3)))[:, 0].round(2) + 0.0).tolist()
        [3.55, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    directions, area = _sphere(*radiance.shape[:2])
    x, y, z = np.moveaxis(directions, -1, 0)
    basis = np.stack(
        [
            0.282095 + 0 * z,
            0.488603 * y,
            0.488603 * z,
            0.488603 * x,
            1.092548 * x * y,
            1.092548 * y * z,
            0.315392 * (3 * z * z - 1),
            1.092548 * x * z,
            0.546274 * (x * x - y * y),
        ]
    )
    falloff = np.array([1] + [2 / 3] * 3 + [1 / 4] * 5)
    return np.tensordot(basis * area, radiance, axes=([1, 2], [0, 1])) * falloff[:, None]


def _sphere(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Directions [h,w,3] and solid angles [h,w] of a panorama's pixels."""
    polar = (np.arange(height)[:, None] + 0.5) / height * np.pi
    azimuth = ((np.arange(width) + 0.5) / width - 0.5) * 2 * np.pi
    sine = np.sin(polar)
    directions = np.stack([sine * np.cos(azimuth), sine * np.sin(azimuth), np.cos(polar) + 0 * azimuth], axis=-1)
    return directions, sine * (np.pi / height) * (2 * np.pi / width) * np.ones(width)


def _brightest(radiance: np.ndarray) -> tuple[np.ndarray, float]:
    """Direction of the brightest place above the horizon, and its share of the light from above."""
    directions, area = _sphere(*radiance.shape[:2])
    power = radiance.mean(axis=2) * area * (directions[..., 2] > 0.15)
    peak = power > 0.5 * power.max()
    towards = (directions * (power * peak)[..., None]).sum(axis=(0, 1))
    return towards / np.linalg.norm(towards), float((power * peak).sum() / power.sum())


def _read(path: Path) -> Panorama:
    import cv2

    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None or picture.ndim != 3 or picture.shape[1] != 2 * picture.shape[0]:
        raise ValueError(f"{path}: no equirectangular Radiance picture, twice as wide as high")
    # Columns run clockwise seen from above, azimuth the other way: without the turn, signs would read mirrored.
    radiance = picture[:, ::-1, ::-1].astype(np.float32)
    return _panorama(path.stem, radiance / (np.percentile(radiance.mean(axis=2), 60) * 1.4 + 1e-6))


def _panorama(name: str, radiance: np.ndarray) -> Panorama:
    import cv2

    small = cv2.resize(np.minimum(radiance, 12.0), (64, 32), interpolation=cv2.INTER_AREA)
    return Panorama(name, np.ascontiguousarray(np.minimum(radiance, _BRIGHTEST)), small)


def _few(split: str) -> range:
    return range(_PAINTED_PANORAMAS if split == "train" else _PAINTED_PANORAMAS // 4)


def _painted(rng: np.random.Generator, name: str) -> Panorama:
    """Sky, ground and a skyline of noise on several scales."""
    import cv2

    height, width = _PAINTED_HEIGHT, 2 * _PAINTED_HEIGHT
    noise = np.zeros((height, width, 1), np.float32)
    for scale in (4, 8, 16, 32, 64, 128):
        coarse = rng.normal(0, 1, (scale, 2 * scale)).astype(np.float32)
        coarse = np.concatenate([coarse, coarse[:, :1]], axis=1)
        noise += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[..., None] / scale**0.6
    polar = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    horizon = 0.5 - 0.12 * np.abs(noise[height // 2 : height // 2 + 1]) * rng.uniform(0.0, 1.0)
    colours = [materials.cloth_colour(rng) * 0.5 + rng.uniform(0.1, 0.5) for _ in range(3)]
    sky = (colours[0] + np.array([0.3, 0.4, 0.6])) * (0.8 + 0.7 * polar) * (1 + 0.15 * noise)
    skyline = colours[1] * (0.7 + 0.5 * noise)
    ground = colours[2] * (0.8 + 0.25 * noise)
    radiance = np.where(polar < horizon, sky, np.where(polar < 0.5, skyline, ground))
    return _panorama(name, np.clip(radiance, 0.02, 6.0).astype(np.float32))


_CORNERS = np.array([[a, b, c] for a in (-0.5, 0.5) for b in (-0.5, 0.5) for c in (-0.5, 0.5)])
_SIDES = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))


@dataclass(frozen=True)
class Box:
    """Middle [3] and size [3] in metres, turned by ``heading`` about z."""

    middle: np.ndarray
    size: np.ndarray
    heading: float = 0.0

    def contains(self, points: np.ndarray, margin: float = 0.0) -> np.ndarray:
        """Which points [N,3] are inside, or nearer to it than ``margin``."""
        return (np.abs((points - self.middle) @ _turn(self.heading)) < self.size / 2 + margin).all(axis=1)


def _turn(heading: float) -> np.ndarray:
    cosine, sine = np.cos(heading), np.sin(heading)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])


def boxes_part(boxes: list[Box], row: np.ndarray, bone: int) -> Part:
    """Boxes of one material, carried by ``bone`` (one that does not move)."""
    at, normal, faces = [], [], []
    for box in boxes:
        turn = _turn(box.heading)
        corners = _CORNERS * box.size @ turn.T + box.middle
        for side in _SIDES:
            quad = corners[list(side)]
            out = np.cross(quad[1] - quad[0], quad[2] - quad[0])
            first = len(at) * 4
            at.append(quad)
            normal.append(np.tile(out / np.linalg.norm(out), (4, 1)))
            faces += [[first, first + 1, first + 2], [first, first + 2, first + 3]]
    return _thing(np.concatenate(at), np.concatenate(normal), np.array(faces, np.int32), row, bone)


def round_part(middle: np.ndarray, radii: np.ndarray, height: float, row: np.ndarray, bone: int) -> Part:
    """An upright cylinder of ``height`` with a hemisphere on both ends, squeezed to ``radii`` [2]; 0: an ellipsoid."""
    rings, around = 10, 20
    polar = np.linspace(0.02, np.pi - 0.02, rings)[:, None]
    azimuth = np.linspace(0, 2 * np.pi, around, endpoint=False)
    sphere = np.stack(
        [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar) + 0 * azimuth], -1
    )
    at = sphere * [radii[0], radii[0], radii[1]] + np.sign(sphere[..., 2:]) * np.array([0, 0, height / 2])
    index = np.arange(rings * around).reshape(rings, around)
    a, b = index[:-1], index[1:]
    c, d = np.roll(b, -1, axis=1), np.roll(a, -1, axis=1)
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    return _thing(at.reshape(-1, 3) + middle, sphere.reshape(-1, 3), faces.astype(np.int32), row, bone)


def _thing(at: np.ndarray, normal: np.ndarray, faces: np.ndarray, row: np.ndarray, bone: int) -> Part:
    count = len(at)
    return Part(
        rest=at.astype(np.float32),
        normal=normal.astype(np.float32),
        swell=np.zeros(count, np.float32),
        place=np.tile(_THING_PLACE, (count, 1)),
        bone=np.full((count, 4), bone, np.int32),
        weight=np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1)),
        faces=faces,
        uv=np.zeros((len(faces), 3, 2), np.float32),
        kind=np.zeros(len(faces), np.int32),
        materials=row[None],
    )
