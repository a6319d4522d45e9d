"""Augmentation: the same numbers whatever the batch, labels that follow the picture, colours that do what they say."""

from __future__ import annotations

from dataclasses import replace
from itertools import repeat

import numpy as np
import pytest
import torch
from conftest import labels
from hypothesis import given, settings
from hypothesis import strategies as st

from hpe_fast.data import counter
from hpe_fast.data.augment import (
    AUGMENTATIONS,
    NO_AUGMENTATION,
    OFFICIAL_AUGMENTATION,
    PAPER_AUGMENTATION,
    Augmentation,
    draw,
    transform_labels,
)
from hpe_fast.skeleton import FLIP_PAIRS, FLIP_PERMUTATION

EVERYTHING = replace(
    PAPER_AUGMENTATION,
    rotation=40.0,
    rotation_probability=0.7,
    scale=0.3,
    flip_probability=0.5,
    occluders=3,
)
SIZES = st.sampled_from([(64, 64), (65, 65), (48, 80), (255, 255), (256, 256)])


def batch(count: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    rows = [labels(i, size) for i in range(count)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def drawn_and_labels(augmentation, size, out_size=None, *, ids=None, seed=1, epoch=0):
    ids = np.arange(16) if ids is None else ids
    people, out_size = batch(len(ids), size), out_size or size
    drawn = draw(augmentation, seed, epoch, ids, people["pose2d"], people["visible"], size, out_size)
    return people, drawn, transform_labels(drawn, **rename(people), out_size=out_size)


def rename(people):
    return {"keypoints" if name == "pose2d" else name: value for name, value in people.items()}


def project(pose3d, intrinsics):
    pose3d, intrinsics = pose3d.astype(np.float64), intrinsics.astype(np.float64)[:, None]
    return pose3d[..., :2] / pose3d[..., 2:] * intrinsics[..., :2] + intrinsics[..., 2:]


# ---- numbers


def test_counter_is_splitmix64():
    with np.errstate(over="ignore"):
        states = np.arange(1, 4, dtype=np.uint64) * counter._STEP
    assert [hex(word) for word in counter._mix(states)] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_uniforms_are_uniform_and_independent():
    numbers = counter.uniforms(5, 3, np.arange(20000), 6)
    assert 0 < numbers.min() < numbers.max() < 1
    np.testing.assert_allclose(numbers.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(numbers.var(axis=0), 1 / 12, atol=0.003)
    others = [counter.uniforms(*key, np.arange(20000), 2) for key in ((5, 4), (6, 3), (3, 5))]
    correlation = np.corrcoef(np.concatenate([numbers, *others], axis=1).T)
    assert np.abs(correlation - np.eye(12)).max() < 0.03


@given(st.integers(-(2**70), 2**70), st.integers(0, 2**40), st.integers(1, 50))
def test_permutation(seed, epoch, count):
    order = counter.permutation(seed, epoch, count)
    assert sorted(order) == list(range(count))
    np.testing.assert_array_equal(order, counter.permutation(seed, epoch, count))


def test_permutation_differs_between_epochs_and_seeds():
    orders = {tuple(counter.permutation(seed, epoch, 100)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize("augmentation", [EVERYTHING, *AUGMENTATIONS.values()])
def test_a_draw_does_not_depend_on_the_batch(augmentation):
    people = batch(32, (64, 64))
    ids = np.arange(100, 132)

    def parameters(part):
        size = (64, 64)
        return draw(augmentation, 7, 2, ids[part], people["pose2d"][part], people["visible"][part], size, size)

    whole = parameters(slice(None))
    for part in (slice(3, 4), slice(5, 30, 7), [31, 0, 8]):
        for name, value in vars(parameters(part)).items():
            np.testing.assert_array_equal(value, getattr(whole, name)[part], err_msg=name)


def test_a_draw_depends_on_seed_epoch_and_sample():
    keys = [(1, 0, 5), (2, 0, 5), (1, 1, 5), (1, 0, 6), (0, 1, 5)]
    people = batch(1, (64, 64))
    draws = [
        draw(EVERYTHING, s, e, np.array([i]), people["pose2d"], people["visible"], (64, 64), (64, 64))
        for s, e, i in keys
    ]
    assert len({d.matrix.tobytes() + d.color.tobytes() for d in draws}) == len(keys)


def test_one_more_occluder_leaves_the_rest_as_it_was():
    _, few, _ = drawn_and_labels(EVERYTHING, (64, 64))
    _, many, _ = drawn_and_labels(replace(EVERYTHING, occluders=5), (64, 64))
    np.testing.assert_array_equal(few.matrix, many.matrix)
    np.testing.assert_array_equal(few.occluder_shape, many.occluder_shape[:, :3])


def test_frequencies_and_sizes_of_the_paper():
    ids = np.arange(20000)
    middle, seen = np.full((len(ids), 17, 2), 127.5), np.ones((len(ids), 17))
    drawn = draw(PAPER_AUGMENTATION, 0, 0, ids, middle, seen, (256, 256), (256, 256))
    clockwise, not_turned = (drawn.turn[:, 1, 0] == 1).mean(), (drawn.turn[:, 0, 0] == 1).mean()
    assert clockwise == pytest.approx(0.25, abs=0.01)
    assert not_turned == pytest.approx(0.5, abs=0.01)
    assert not drawn.flip.any()
    assert drawn.noise_std.std() == pytest.approx(0.0502 * np.sqrt(1 - 2 / np.pi), rel=0.03)
    assert np.sqrt((drawn.noise_std**2).mean()) == pytest.approx(12.8 / 255, rel=0.02)
    unchanged = (drawn.color == np.eye(3, 4)).all(axis=(1, 2)).mean()
    assert unchanged == pytest.approx((1 - 0.599) ** 4, abs=0.005)
    shift = drawn.matrix[:, :, 2] - (127.5 - drawn.matrix[:, :, :2].sum(axis=2) * 127.5)
    assert (shift.min(), shift.max()) == (
        -122,
        122,
    )  # 127.5 +- 122 is 5 px from the pixels at the edge, rounded inwards


def test_frequencies_and_sizes_of_the_official_code():
    ids = np.arange(20000)
    middle, seen = np.full((len(ids), 17, 2), 127.5), np.ones((len(ids), 17))
    drawn = draw(OFFICIAL_AUGMENTATION, 0, 0, ids, middle, seen, (256, 256), (256, 256))
    assert drawn.flip.mean() == pytest.approx(0.5, abs=0.01)
    zoom = np.sqrt(np.abs(np.linalg.det(drawn.matrix[:, :, :2])))
    assert (zoom.min(), zoom.max()) == pytest.approx((1 / 1.25, 1 / 0.75), rel=1e-5)
    angle = np.rad2deg(np.arctan2(drawn.turn[:, 1, 0] * np.where(drawn.flip, -1, 1), drawn.turn[:, 1, 1]))
    assert np.abs(angle).max() == pytest.approx(60, abs=1e-3)
    assert (angle == 0).mean() == pytest.approx(0.4, abs=0.01)
    assert np.median(np.abs(angle[angle != 0])) == pytest.approx(30 * 0.6745, rel=0.03)


# ---- geometry


@settings(deadline=None, max_examples=40)
@given(SIZES, SIZES, st.integers(0, 2**31))
def test_the_projection_of_the_turned_person_is_the_turned_projection(size, out_size, seed):
    square = (out_size[0] / size[0]) == (out_size[1] / size[1]) and size[0] == size[1]
    augmentation = EVERYTHING if square else replace(EVERYTHING, rotation=0.0)
    people, _, moved = drawn_and_labels(augmentation, size, out_size, seed=seed)
    if not square:
        people["intrinsics"][:, 1] *= 1.1  # turns by 90 degrees stay exact with fx != fy
        people["pose2d"] = project(people["pose3d"], people["intrinsics"])
        drawn = draw(augmentation, seed, 0, np.arange(16), people["pose2d"], people["visible"], size, out_size)
        moved = transform_labels(drawn, **rename(people), out_size=out_size)
    np.testing.assert_allclose(project(moved.pose3d, moved.intrinsics), moved.keypoints, atol=2e-3)
    np.testing.assert_array_equal(np.sort(moved.pose3d[..., 2]), np.sort(people["pose3d"][..., 2]).astype(np.float32))


def test_nearest_focal_lengths_for_a_free_rotation():
    people = batch(64, (64, 64))
    people["intrinsics"][:, 1] *= 1.02
    people["pose2d"] = project(people["pose3d"], people["intrinsics"])
    augmentation = replace(NO_AUGMENTATION, rotation=30.0)
    drawn = draw(augmentation, 0, 0, np.arange(64), people["pose2d"], people["visible"], (64, 64), (64, 64))
    moved = transform_labels(drawn, **rename(people), out_size=(64, 64))
    error = np.abs(project(moved.pose3d, moved.intrinsics) - moved.keypoints)
    assert 0.01 < error.max() < 0.02 * 32


@settings(deadline=None, max_examples=40)
@given(SIZES.filter(lambda size: size[0] == size[1]), st.integers(0, 2**31), st.floats(0, 9))
def test_shifts_keep_visible_joints_inside(size, seed, margin):
    augmentation = replace(PAPER_AUGMENTATION, margin=margin, flip_probability=0.5)
    people = batch(16, size)
    people["visible"][:, 5] = 0
    people["pose2d"][:, 5] = (-30, 900)
    drawn = draw(augmentation, seed, 0, np.arange(16), people["pose2d"], people["visible"], size, size)
    moved = transform_labels(drawn, **rename(people), out_size=size)
    seen = np.delete(moved.keypoints, [5, FLIP_PERMUTATION[5]], axis=1)
    assert seen.min() >= margin - 1e-4
    assert seen.max() <= size[0] - 1 - margin + 1e-4
    for row, flip in enumerate(drawn.flip):
        hidden = FLIP_PERMUTATION[5] if flip else 5
        assert np.flatnonzero(moved.weights[row] == 0).tolist() == [hidden]


def test_shift_where_there_is_no_room_or_nobody():
    people = batch(2, (64, 64))
    people["pose2d"][0, 0] = (2.0, 61.5)
    people["pose2d"][0, 1] = (62.0, 30.0)
    people["visible"][1] = 0
    augmentation = replace(NO_AUGMENTATION, translation_probability=1.0)
    drawn = draw(augmentation, 0, 0, np.arange(2), people["pose2d"], people["visible"], (64, 64), (64, 64))
    assert drawn.matrix[0, 0, 2] == 0  # 60 pixels of person do not fit between the margins
    assert drawn.matrix[0, 1, 2] < 0  # moved in from the lower edge
    assert drawn.matrix[1, :, 2].tolist() == [0, 0]


@pytest.mark.parametrize("size", [(64, 64), (65, 65)])
def test_turns_and_mirroring_are_those_of_numpy(size):
    picture = np.zeros(size)
    people, drawn, moved = drawn_and_labels(
        replace(PAPER_AUGMENTATION, translation_probability=0.0, flip_probability=0.5), size, ids=np.arange(64)
    )
    kinds = set()
    for row in range(64):
        turn = int(drawn.turn[row, 1, 0] * (-1 if drawn.flip[row] else 1))
        kinds.add((bool(drawn.flip[row]), turn))
        for joint in (0, 3, 12):
            x, y = np.round(people["pose2d"][row, joint]).astype(int)
            picture[:] = 0
            picture[y, x] = 1
            want = np.rot90(picture[:, ::-1] if drawn.flip[row] else picture, -turn)
            y, x = np.argwhere(want)[0]
            now = FLIP_PERMUTATION[joint] if drawn.flip[row] else joint
            assert np.abs(moved.keypoints[row, now] - (x, y)).max() <= 0.5 + 1e-4
    assert len(kinds) == 6


def test_mirroring_exchanges_left_and_right():
    people, drawn, moved = drawn_and_labels(replace(NO_AUGMENTATION, flip_probability=1.0), (64, 64))
    assert drawn.flip.all()
    for a, b in FLIP_PAIRS:
        np.testing.assert_allclose(moved.keypoints[:, a, 0], 63 - people["pose2d"][:, b, 0], atol=1e-4)
        np.testing.assert_allclose(moved.pose3d[:, a] * (-1, 1, 1), people["pose3d"][:, b], rtol=1e-6)


def test_unknown_labels_stay_unknown():
    people = batch(4, (64, 64))
    people["pose3d"][1:3, 4] = np.nan
    people["intrinsics"][2] = np.nan
    drawn = draw(EVERYTHING, 0, 0, np.arange(4), people["pose2d"], people["visible"], (64, 64), (64, 64))
    moved = transform_labels(drawn, **rename(people), out_size=(64, 64))
    assert np.isnan(moved.pose3d).any(axis=(1, 2)).tolist() == [False, True, True, False]
    assert np.isnan(moved.pose3d[:, :, 0]).sum(axis=1).tolist() == [0, 1, 1, 0]
    assert np.isnan(moved.intrinsics).all(axis=1).tolist() == [False, False, True, False]


def test_weights_end_at_the_outermost_pixels_edges():
    people = batch(1, (64, 64))
    people["pose2d"][0, :6] = [(-0.5, 10), (-0.51, 10), (63.49, 10), (63.5, 10), (10, 63.5), (10, -0.5)]
    drawn = draw(NO_AUGMENTATION, 0, 0, np.arange(1), people["pose2d"], people["visible"], (64, 64), (64, 64))
    moved = transform_labels(drawn, **rename(people), out_size=(64, 64))
    assert moved.weights[0, :6].tolist() == [1, 0, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("augmentation", "size", "out_size", "exact"),
    [
        (PAPER_AUGMENTATION, (64, 64), (64, 64), True),
        (PAPER_AUGMENTATION, (64, 66), (64, 66), True),
        (PAPER_AUGMENTATION, (64, 65), (64, 65), False),
        (PAPER_AUGMENTATION, (64, 64), (32, 32), False),
        (OFFICIAL_AUGMENTATION, (64, 64), (64, 64), False),
        (replace(NO_AUGMENTATION, flip_probability=1.0), (64, 65), (64, 65), True),
    ],
)
def test_exact_means_whole_pixels(augmentation, size, out_size, exact):
    assert augmentation.is_exact(size, out_size) == exact
    _, drawn, _ = drawn_and_labels(augmentation, size, out_size, ids=np.arange(64))
    whole = (drawn.matrix == np.round(drawn.matrix)).all() and np.isin(drawn.matrix[:, :, :2], (-1, 0, 1)).all()
    assert whole == exact


def changed_pixels(images: np.ndarray, drawn, steps, device: str) -> np.ndarray:
    """What the loader's pipeline makes of pictures of any number type."""
    dali = pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn

    from hpe_fast.data.dali import change_pixels, pipeline_inputs

    inputs = [np.asarray(array) for array in pipeline_inputs(steps, [b""], drawn)[1:]]
    pipeline = dali.Pipeline(len(images), 2, None if device == "cpu" else 0, exec_dynamic=True, prefetch_queue_depth=1)
    with pipeline:
        pictures = fn.external_source(source=repeat(images), layout="HWC")
        pictures = pictures if device == "cpu" else pictures.gpu()
        nodes = [fn.external_source(source=repeat(array)) for array in inputs]
        pipeline.set_outputs(change_pixels(pictures, nodes, steps))
    return np.asarray(pipeline.run()[0].as_cpu().as_array())


def bilinear(picture: np.ndarray, x: float, y: float) -> np.ndarray | None:
    """What a picture has at a place; nothing where that is not two pixels inside."""
    left, top = int(np.floor(x)), int(np.floor(y))
    if not (1 <= left < picture.shape[1] - 2 and 1 <= top < picture.shape[0] - 2):
        return None
    fx, fy = x - left, y - top
    four = picture[top : top + 2, left : left + 2].astype(np.float64)
    return (four * np.outer([1 - fy, fy], [1 - fx, fx])[:, :, None]).sum(axis=(0, 1))


def occluded(drawn, row: int, x: float, y: float) -> bool:
    """Whether a pixel that is used at a place may lie under an occluder."""
    distance = np.abs(drawn.occluder_center[row] - (x, y))
    shape = drawn.occluder_shape[row]
    return bool(((shape > 0) & (distance < shape / 2 + 1.6)).all(axis=1).any())


ALONE = {
    "turn": replace(NO_AUGMENTATION, quarter_turn_probability=0.7),
    "rotation": replace(NO_AUGMENTATION, rotation=40.0),
    "scale": replace(NO_AUGMENTATION, scale=0.3),
    "translation": replace(NO_AUGMENTATION, translation_probability=1.0),
    "flip": replace(NO_AUGMENTATION, flip_probability=0.5),
    "occluders": replace(NO_AUGMENTATION, occluders=3, occluder_size=(0.02, 0.1)),
    "turn, flip and translation": replace(PAPER_AUGMENTATION, flip_probability=0.5),
    "everything": replace(EVERYTHING, occluder_size=(0.02, 0.1)),
    "official": OFFICIAL_AUGMENTATION,
    "paper": PAPER_AUGMENTATION,
}
GPU = pytest.param("gpu", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("resize", [0.5, 1, 1.25])
@pytest.mark.parametrize("kind", ALONE)
def test_pixels_go_where_keypoints_go(kind: str, resize: float, device: str):
    """A picture whose colour is its coordinate, changed, tells at the new keypoint where the old one was."""
    from hpe_fast.data.dali import Steps

    augmentation, size = ALONE[kind], 128 if resize != 1 else 127
    out = (int(size * resize),) * 2
    people, drawn, moved = drawn_and_labels(augmentation, (size, size), out, ids=np.arange(16))
    exact = augmentation.is_exact((size, size), out)
    steps = Steps(out, augmentation.moves or resize != 1, exact, augmentation.occludes, augmentation.fill)
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    ramp = np.stack([x, y, np.full_like(x, -1)], axis=-1).astype(np.float32)
    changed = changed_pixels(np.stack([ramp] * 16), drawn, steps, device)
    checked = covered = 0
    for row in range(16):
        order = FLIP_PERMUTATION if drawn.flip[row] else range(17)
        for joint, old in enumerate(order):
            found = bilinear(changed[row], *moved.keypoints[row, joint].astype(np.float64))
            if found is None:
                continue
            if occluded(drawn, row, *moved.keypoints[row, joint]):
                covered += 1
                continue
            np.testing.assert_allclose(found, [*people["pose2d"][row, old], -1], atol=0.01)
            checked += 1
    assert checked > 100
    assert (covered > 10) == augmentation.occludes


# ---- colours, noise, occluders


def _colored(augmentation, rgb, seed=0):
    people = batch(200, (64, 64))
    ids = np.arange(200)
    drawn = draw(augmentation, seed, 0, ids, people["pose2d"], people["visible"], (64, 64), (64, 64))
    return drawn.color.astype(np.float64) @ np.array([*rgb, 1.0])


def test_no_color_is_exactly_the_identity():
    np.testing.assert_array_equal(_colored(NO_AUGMENTATION, (1, 2, 3)), np.tile([1.0, 2, 3], (200, 1)))


def test_hue_and_saturation_leave_greys_alone():
    augmentation = replace(NO_AUGMENTATION, color_probability=1.0, hue=0.5, saturation=(0.0, 2.0))
    np.testing.assert_allclose(_colored(augmentation, (90, 90, 90)), 90, atol=1e-3)
    assert np.ptp(_colored(augmentation, (90, 20, 200)), axis=0).min() > 50


def test_saturation_zero_is_the_luma():
    augmentation = replace(NO_AUGMENTATION, color_probability=1.0, saturation=(0.0, 0.0))
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    np.testing.assert_allclose(_colored(augmentation, (200, 100, 50)), luma, atol=1e-2)


def test_hue_keeps_luma_and_chroma_length():
    yiq = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    rgb = np.array([200.0, 100, 50])
    found = _colored(replace(NO_AUGMENTATION, color_probability=1.0, hue=0.5), rgb) @ yiq.T
    np.testing.assert_allclose(found[:, 0], yiq[0] @ rgb, atol=1e-2)
    np.testing.assert_allclose(np.hypot(found[:, 1], found[:, 2]), np.hypot(*(yiq[1:] @ rgb)), atol=1e-2)


def test_contrast_turns_about_mid_grey_and_brightness_adds():
    contrast = replace(NO_AUGMENTATION, color_probability=1.0, contrast=(0.5, 0.5))
    np.testing.assert_allclose(_colored(contrast, (127.5, 227.5, 27.5)), [[127.5, 177.5, 77.5]] * 200, atol=1e-4)
    found = _colored(replace(NO_AUGMENTATION, color_probability=1.0, brightness=0.1), (100, 100, 100))
    assert np.abs(found - 100).max() <= 25.5
    assert np.abs(found - 100).max() > 24
    np.testing.assert_allclose(found, found[:, :1].repeat(3, axis=1), atol=1e-4)


def test_occluders_lie_over_visible_joints_and_prefer_limbs():
    augmentation = replace(EVERYTHING, occluders=4, occluder_probability=0.75, occluder_size=(0.1, 0.3))
    people = batch(500, (64, 96))
    people["visible"][:, 3] = 0
    ids = np.arange(500)
    drawn = draw(augmentation, 0, 0, ids, people["pose2d"], people["visible"], (64, 96), (64, 96))
    moved = transform_labels(drawn, **rename(people), out_size=(64, 96))
    present = drawn.occluder_shape[:, :, 0] > 0
    assert present.mean() == pytest.approx(0.75 * (1 - 2 / 29), abs=0.03)
    width, height = drawn.occluder_shape[present].T
    assert (width.min(), width.max(), height.min(), height.max()) == (10, 29, 6, 19)
    distance = np.linalg.norm(drawn.occluder_center[:, :, None] - moved.keypoints[:, None], axis=-1)
    assert distance.min(axis=2)[present].max() < 1e-3
    limbs = np.isin(distance.argmin(axis=2)[present], np.array(FLIP_PAIRS).ravel()).mean()
    assert limbs == pytest.approx(22 / 27, abs=0.05)
    assert drawn.occluder_color.min() >= 0
    assert drawn.occluder_color.max() <= 255


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip_probability": 1.5}, r"flip_probability must be in \[0, 1\], got 1.5"),
        ({"color_probability": float("nan")}, "color_probability must be in"),
        ({"rotation": -1.0}, "rotation must be a finite number >= 0, got -1.0"),
        ({"noise": float("inf")}, "noise must be a finite number"),
        ({"contrast": (1.4, 0.6)}, r"contrast must be \(low, high\)"),
        ({"occluder_size": (0.1,)}, r"occluder_size must be \(low, high\)"),
        ({"scale": 1.0}, "scale must be below 1"),
        ({"fill": 256.0}, "fill must be a grey level"),
    ],
)
def test_augmentation_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**changes)
