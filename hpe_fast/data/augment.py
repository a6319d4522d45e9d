"""Augmentation: every parameter of every sample, drawn from (seed, epoch, sample id) before a picture is touched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hpe_fast.data.counter import uniforms
from hpe_fast.data.geometry import Size, about_centres, map_points, transform_intrinsics
from hpe_fast.skeleton import FLIP_PAIRS, FLIP_PERMUTATION, NUM_JOINTS

_PROBABILITIES = (
    "quarter_turn_probability",
    "rotation_probability",
    "translation_probability",
    "flip_probability",
    "color_probability",
    "occluder_probability",
)
_AMOUNTS = ("rotation", "scale", "margin", "brightness", "hue", "noise", "occluders")
_RANGES = ("contrast", "saturation", "occluder_size")


@dataclass(frozen=True)
class Augmentation:
    """Ranges and probabilities of the augmentation.

    =============================  =====================================  ==================================
    preset                         ``paper``                              ``official``
    =============================  =====================================  ==================================
    turn by +90 or -90 degrees     p = .5                                 no
    rotation                       no                                     30 degrees x N(0,1), 2 sd, p = .6
    scale                          no                                     1 / (1 + .25 x N(0,1)), +-.25
    translation                    every joint 5 px inside                no
    mirroring                      no                                     p = .5
    brightness, hue                +-12.8 of 255, +-.2 turns              no
    contrast, saturation           .6 to 1.4, .5 to 2                     no
    each of these four with        p = .599                               -
    noise, standard deviation      12.8 of 255 x abs N(0,1) per sample    no
    outside of the picture         grey (128)                             black
    =============================  =====================================  ==================================

    ``paper`` is what its code does (ossamaAhmed/Deep_3D_Human_Pose_Estimation): its brightness and noise of .1 are
    on the scale of ``pixel / 128 - 1``, hence 12.8 grey levels; .599 is the chance that its gate N(0,1) < .25 opens;
    and the zeros that move in from outside are grey there. Its contrast keeps each channel's mean, ours mid-grey.
    ``official`` is leoxiaobin/deep-high-resolution-net.pytorch with the factors of its MPII configurations (square
    crops of one person), without half-body crops; a stored crop has nothing outside of it, so what scaling uncovers
    is black. ``none`` changes nothing. ``mild`` is for schedules of minutes; ``robust``, for long ones, also turns and
    scales more and hides joints under rectangles, so that rendered pictures teach what photographs need.

    Args:
        quarter_turn_probability: of a turn by 90 degrees, clockwise or not with equal chances.
        rotation: standard deviation in degrees; cut at twice that.
        rotation_probability: of a rotation.
        scale: the picture shrinks by ``1 + scale * N(0,1)``, cut to ``1 +- scale``.
        translation_probability: of a shift by whole pixels, uniform among those that leave every visible joint at least
            ``margin`` pixels from the outermost pixels' centres; none along an axis where there is no such shift.
        margin: of the translation, in output pixels.
        flip_probability: of mirroring, with left and right joints exchanged.
        color_probability: of each of brightness, hue, contrast and saturation.
        brightness: largest change, 0..1 scale.
        hue: largest rotation of the colour plane (YIQ) in turns.
        contrast: range of the factor about mid-grey (127.5).
        saturation: range of the factor.
        noise: each sample's noise has standard deviation ``noise * abs(N(0,1))``, 0..1 scale.
        occluders: how many rectangles at most, each over a joint; limbs are twice as likely as the trunk.
        occluder_probability: of each of them.
        occluder_size: range of their width and height, as a part of the picture's.
        fill: grey level (0..255) outside of the picture.

    Raises:
        ValueError: for a value out of range.

    Example:
        >>> from dataclasses import replace
        >>> replace(PAPER_AUGMENTATION, occluders=2, occluder_probability=0.5).margin
        5.0
    """

    quarter_turn_probability: float = 0.0
    rotation: float = 0.0
    rotation_probability: float = 1.0
    scale: float = 0.0
    translation_probability: float = 0.0
    margin: float = 5.0
    flip_probability: float = 0.0
    color_probability: float = 0.0
    brightness: float = 0.0
    hue: float = 0.0
    contrast: tuple[float, float] = (1.0, 1.0)
    saturation: tuple[float, float] = (1.0, 1.0)
    noise: float = 0.0
    occluders: int = 0
    occluder_probability: float = 0.5
    occluder_size: tuple[float, float] = (0.05, 0.25)
    fill: float = 0.0

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)!r}")
        for name in _AMOUNTS:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be a finite number >= 0, got {getattr(self, name)!r}")
        for name in _RANGES:
            value = tuple(getattr(self, name))
            if len(value) != 2 or not 0 <= value[0] <= value[1] < math.inf:
                raise ValueError(f"{name} must be (low, high) with 0 <= low <= high, got {getattr(self, name)!r}")
        if self.scale >= 1:
            raise ValueError(f"scale must be below 1, got {self.scale!r}")
        if not 0 <= self.fill <= 255:
            raise ValueError(f"fill must be a grey level in [0, 255], got {self.fill!r}")

    @property
    def moves(self) -> bool:
        """Whether pixels change places."""
        exact = self.quarter_turn_probability or self.translation_probability or self.flip_probability
        return bool(exact or self._resamples)

    @property
    def recolors(self) -> bool:
        """Whether colours change."""
        ranges = self.brightness or self.hue or self.contrast != (1, 1) or self.saturation != (1, 1)
        return bool(self.color_probability and ranges)

    @property
    def occludes(self) -> bool:
        """Whether rectangles are drawn."""
        return bool(self.occluders and self.occluder_probability)

    @property
    def _resamples(self) -> bool:
        return bool((self.rotation and self.rotation_probability) or self.scale)

    def is_exact(self, in_size: Size, out_size: Size) -> bool:
        """Whether every output pixel is an input pixel: turns by 90 degrees, mirroring and shifts by whole pixels only.

        Then nearest-neighbour sampling gives the same bits as linear at a fifth of the price.
        """
        odd_turn = self.quarter_turn_probability and (in_size[0] - in_size[1]) % 2
        return in_size == out_size and not self._resamples and not odd_turn


PAPER_AUGMENTATION = Augmentation(
    quarter_turn_probability=0.5,
    translation_probability=1.0,
    color_probability=0.599,
    brightness=12.8 / 255,
    hue=0.2,
    contrast=(0.6, 1.4),
    saturation=(0.5, 2.0),
    noise=12.8 / 255,
    fill=128.0,
)
OFFICIAL_AUGMENTATION = Augmentation(rotation=30.0, rotation_probability=0.6, scale=0.25, flip_probability=0.5)
MILD_AUGMENTATION = Augmentation(
    rotation=10.0,
    rotation_probability=0.6,
    scale=0.1,
    flip_probability=0.5,
    color_probability=0.5,
    brightness=0.1,
    hue=0.03,
    contrast=(0.75, 1.3),
    saturation=(0.7, 1.4),
)
ROBUST_AUGMENTATION = Augmentation(
    rotation=30.0,
    rotation_probability=0.6,
    scale=0.25,
    flip_probability=0.5,
    color_probability=0.6,
    brightness=0.15,
    hue=0.05,
    contrast=(0.6, 1.5),
    saturation=(0.4, 1.6),
    noise=0.03,
    occluders=3,
    occluder_probability=0.25,
)
NO_AUGMENTATION = Augmentation()

#: The presets by name.
AUGMENTATIONS: dict[str, Augmentation] = {
    "paper": PAPER_AUGMENTATION,
    "official": OFFICIAL_AUGMENTATION,
    "mild": MILD_AUGMENTATION,
    "robust": ROBUST_AUGMENTATION,
    "none": NO_AUGMENTATION,
}


@dataclass(frozen=True)
class Draw:
    """What happens to each sample of a batch.

    Attributes:
        matrix: f4 [B,2,3], input to output pixels, index coordinates.
        turn: f4 [B,2,2], the orthogonal part of ``matrix``: rotation and mirroring.
        flip: bool [B], mirrored: left and right joints change places.
        color: f4 [B,3,4], takes (r, g, b, 1) on the 0..255 scale.
        noise_std: f4 [B], 0..1 scale.
        occluder_center: f4 [B,K,2], x, y in output pixels, index coordinates.
        occluder_shape: f4 [B,K,2], width and height in whole pixels; 0: none.
        occluder_color: f4 [B,3], 0..255.
    """

    matrix: np.ndarray
    turn: np.ndarray
    flip: np.ndarray
    color: np.ndarray
    noise_std: np.ndarray
    occluder_center: np.ndarray
    occluder_shape: np.ndarray
    occluder_color: np.ndarray


class Labels(NamedTuple):
    """Labels of the augmented pictures.

    Attributes:
        keypoints: f4 [B,17,2], output pixels.
        weights: f4 [B,17], 1 where visible and inside the picture.
        pose3d: f4 [B,17,3], mm.
        intrinsics: f4 [B,4], of the output picture.
    """

    keypoints: np.ndarray
    weights: np.ndarray
    pose3d: np.ndarray
    intrinsics: np.ndarray


# Every number drawn has its own place, so that one more of them leaves the others as they were.
_PLACES = (
    *("turn", "turn_sign", "rotate", "angle_1", "angle_2", "scale_1", "scale_2", "shift", "shift_x", "shift_y", "flip"),
    *("brightness_gate", "hue_gate", "contrast_gate", "saturation_gate"),
    *("brightness", "hue", "contrast", "saturation", "noise_1", "noise_2", "red", "green", "blue"),
)
_OCCLUDER_PLACES = 4
_OCCLUDED_JOINTS = np.array([*range(NUM_JOINTS), *(joint for pair in FLIP_PAIRS for joint in pair)])

# Y is NTSC luma; I and Q vanish on greys, so hue and saturation leave those alone.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB_OF_IQ = np.linalg.inv(_YIQ)[:, 1:]
_MID_GREY = 127.5


def draw(
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    sample_ids: np.ndarray,
    keypoints: np.ndarray,
    visible: np.ndarray,
    in_size: Size,
    out_size: Size,
) -> Draw:
    """Draw what happens to each sample; a function of seed, epoch and the sample alone.

    The picture is resized to ``out_size``, then mirrored, scaled, rotated and turned about its centre, then shifted.

    Args:
        augmentation: ranges and probabilities.
        seed: of the run.
        epoch: of the pass over the data.
        sample_ids: int64 [B].
        keypoints: [B,17,2], input pixels, index coordinates.
        visible: [B,17]; only visible joints bound the translation, only they are occluded.
        in_size: ``(height, width)`` of the input.
        out_size: ``(height, width)`` of the output.

    Returns:
        The parameters.

    Example:
        >>> import numpy as np
        >>> keypoints, visible = np.full((1, 17, 2), 30.0), np.ones((1, 17))
        >>> draw(NO_AUGMENTATION, 0, 0, np.array([7]), keypoints, visible, (64, 64), (64, 64)).matrix[0].tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    count = len(_PLACES) + _OCCLUDER_PLACES * augmentation.occluders
    numbers = uniforms(seed, epoch, sample_ids, count)
    u = dict(zip(_PLACES, numbers.T, strict=False))
    flip = u["flip"] < augmentation.flip_probability
    turn = _turn(augmentation, u, flip)
    matrix = about_centres(turn * _zoom(augmentation, u)[:, None, None], in_size, out_size)
    moved = map_points(matrix, np.asarray(keypoints, np.float64))
    shift = _shift(augmentation, u, moved, np.asarray(visible) > 0, out_size)
    matrix[:, :, 2] += shift
    seen = np.asarray(visible) > 0
    center, shape = _occluders(augmentation, numbers[:, len(_PLACES) :], moved + shift[:, None], seen, out_size)
    noise_std = augmentation.noise * np.abs(_normal(u, "noise"))
    rgb = np.floor(np.stack([u["red"], u["green"], u["blue"]], axis=1) * 256)
    arrays = (matrix, turn, flip, _color(augmentation, u), noise_std, center, shape, rgb)
    return Draw(*(a if a.dtype == bool else a.astype(np.float32) for a in arrays))


def _normal(u: dict[str, np.ndarray], name: str) -> np.ndarray:
    return np.sqrt(-2 * np.log(u[f"{name}_1"])) * np.cos(2 * np.pi * u[f"{name}_2"])


def _turn(augmentation: Augmentation, u: dict[str, np.ndarray], flip: np.ndarray) -> np.ndarray:
    """Mirror, then rotate, then turn: float64 [B,2,2]; exact integers where there is no free rotation."""
    degrees = augmentation.rotation * np.clip(_normal(u, "angle"), -2, 2)
    angle = np.deg2rad(np.where(u["rotate"] < augmentation.rotation_probability, degrees, 0))
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.stack([cos, -sin, sin, cos], axis=1).reshape(-1, 2, 2)
    turned = u["turn"] < augmentation.quarter_turn_probability
    sign = np.where(turned, np.where(u["turn_sign"] < 0.5, -1.0, 1.0), 0.0)
    still = np.where(turned, 0.0, 1.0)
    quarter = np.stack([still, -sign, sign, still], axis=1).reshape(-1, 2, 2)
    rotation = quarter @ rotation
    rotation[:, :, 0] *= np.where(flip, -1.0, 1.0)[:, None]
    return rotation


def _zoom(augmentation: Augmentation, u: dict[str, np.ndarray]) -> np.ndarray:
    return 1 / (1 + augmentation.scale * np.clip(_normal(u, "scale"), -1, 1))


def _shift(
    augmentation: Augmentation, u: dict[str, np.ndarray], points: np.ndarray, visible: np.ndarray, size: Size
) -> np.ndarray:
    """Whole pixels, [B,2]."""
    seen = visible[:, :, None]
    lowest = np.where(seen, points, np.inf).min(axis=1)
    highest = np.where(seen, points, -np.inf).max(axis=1)
    last = np.array([size[1] - 1, size[0] - 1])
    first_step = np.ceil(augmentation.margin - lowest)
    steps = np.floor(last - augmentation.margin - highest) - first_step + 1
    wanted = u["shift"][:, None] < augmentation.translation_probability
    possible = wanted & (steps > 0) & np.isfinite(steps)
    number = np.stack([u["shift_x"], u["shift_y"]], axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(possible, first_step + np.floor(number * steps), 0.0)


def _color(augmentation: Augmentation, u: dict[str, np.ndarray]) -> np.ndarray:
    """Brightness, hue, contrast, saturation as one affine map of (r, g, b): float64 [B,3,4]."""

    def gated(name: str, low: float, high: float, neutral: float) -> np.ndarray:
        opened = u[f"{name}_gate"] < augmentation.color_probability
        return np.where(opened, low + (high - low) * u[name], neutral)

    brightness = 255 * gated("brightness", -augmentation.brightness, augmentation.brightness, 0.0)
    angle = 2 * np.pi * gated("hue", -augmentation.hue, augmentation.hue, 0.0)
    contrast = gated("contrast", *augmentation.contrast, 1.0)
    saturation = gated("saturation", *augmentation.saturation, 1.0)
    cos, sin = saturation * np.cos(angle), saturation * np.sin(angle)
    chroma = np.stack([cos, -sin, sin, cos], axis=1).reshape(-1, 2, 2)
    # Written as a change of the identity, which is then exact where nothing changes.
    linear = np.eye(3) + _RGB_OF_IQ @ (chroma - np.eye(2)) @ _YIQ[1:]
    grey = contrast * brightness + (1 - contrast) * _MID_GREY
    offset = np.broadcast_to(grey[:, None, None], (len(grey), 3, 1))
    return np.concatenate([contrast[:, None, None] * linear, offset], axis=2)


def _occluders(
    augmentation: Augmentation, numbers: np.ndarray, points: np.ndarray, visible: np.ndarray, size: Size
) -> tuple[np.ndarray, np.ndarray]:
    """Centres and shapes, [B,K,2] each."""
    gate, which, width, height = numbers.reshape(len(points), -1, _OCCLUDER_PLACES).transpose(2, 0, 1)
    joint = _OCCLUDED_JOINTS[(which * len(_OCCLUDED_JOINTS)).astype(np.int64)]
    rows = np.arange(len(points))[:, None]
    present = (gate < augmentation.occluder_probability) & visible[rows, joint]
    low, high = augmentation.occluder_size
    part = low + (high - low) * np.stack([width, height], axis=2)
    return points[rows, joint], present[:, :, None] * np.maximum(np.round(part * np.array([size[1], size[0]])), 1)


def transform_labels(
    drawn: Draw, keypoints: np.ndarray, visible: np.ndarray, pose3d: np.ndarray, intrinsics: np.ndarray, out_size: Size
) -> Labels:
    """The labels of the augmented pictures.

    Joints in space turn about the camera's axis, and are mirrored, with the picture; resizing, scaling and shifting
    change the intrinsics. So ``pose2d = pose3d[:2] / pose3d[2] * (fx, fy) + (cx, cy)`` stays true, exactly for turns by
    90 degrees and mirroring. A free rotation with fx != fy has no such camera (the axes would not be perpendicular):
    there the focal lengths are the nearest in the least-squares sense.

    Args:
        drawn: from :func:`draw`.
        keypoints: [B,17,2], input pixels.
        visible: [B,17].
        pose3d: [B,17,3], mm, camera frame.
        intrinsics: [B,4], fx, fy, cx, cy of the input picture.
        out_size: ``(height, width)`` of the output.

    Returns:
        The labels, float32.

    Example:
        >>> import numpy as np
        >>> keypoints, visible = np.full((1, 17, 2), 30.0), np.ones((1, 17))
        >>> pose3d, intrinsics = np.ones((1, 17, 3)), np.ones((1, 4))
        >>> drawn = draw(NO_AUGMENTATION, 0, 0, np.array([7]), keypoints, visible, (64, 64), (32, 32))
        >>> labels = transform_labels(drawn, keypoints, visible, pose3d, intrinsics, (32, 32))
        >>> labels.keypoints[0, 0].tolist()
        [14.75, 14.75]
    """
    matrix, turn = drawn.matrix.astype(np.float64), drawn.turn.astype(np.float64)
    points = map_points(matrix, np.asarray(keypoints, np.float64))
    space = np.array(pose3d, np.float64)
    space[:, :, :2] = space[:, :, :2] @ turn.transpose(0, 2, 1)
    limits = np.array([out_size[1], out_size[0]]) - 0.5
    inside = ((points >= -0.5) & (points < limits)).all(axis=2)
    weights = (np.asarray(visible) > 0) & inside
    order = np.where(drawn.flip[:, None], np.array(FLIP_PERMUTATION), np.arange(NUM_JOINTS))
    joints = (np.arange(len(order))[:, None], order)
    camera = transform_intrinsics(matrix, turn, np.asarray(intrinsics, np.float64))
    return Labels(*(a.astype(np.float32) for a in (points[joints], weights[joints], space[joints], camera)))
