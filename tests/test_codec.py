"""HeatmapCodec and Normalization: what they derive, and what they refuse."""

import dataclasses
import math
import pickle

import pytest

from hpe_fast.ops import IMAGENET, OFFICIAL, PAPER, PAPER_NORMALIZATION, UNBIASED, HeatmapCodec, Normalization


def test_official_is_hrnets():
    assert (OFFICIAL.sigma, OFFICIAL.amplitude, OFFICIAL.radius, OFFICIAL.rounding) == (2.0, 1.0, 6, "nearest")
    assert (OFFICIAL.image_size, OFFICIAL.heatmap_size, OFFICIAL.stride) == ((256, 256), (64, 64), (4.0, 4.0))


def test_paper_is_the_papers_code():
    """300 * N(mu, 1.5 I): peak 300 / (2 pi 1.5) = 31.83, on the whole map."""
    assert PAPER.amplitude == pytest.approx(31.8309886)
    assert PAPER.sigma == pytest.approx(1.2247449)
    assert PAPER.radius == -1
    assert PAPER.rounding == "floor"


def test_stride_is_x_before_y_and_sizes_are_height_before_width():
    codec = OFFICIAL.resized((384, 288), (96, 36))
    assert codec.stride == (8.0, 4.0)
    assert OFFICIAL.resized(255, 64).stride == (255 / 64, 255 / 64)


def test_params_are_what_the_operators_take():
    codec = HeatmapCodec(3, 2, 2.5, "floor", (32, 64), (8, 8))
    assert codec.params == [3.0, 2.0, 7.0, 1.0, 8.0, 4.0]
    assert all(type(p) is float for p in codec.params)
    assert UNBIASED.params[2:4] == [-1.0, 0.0]


def test_the_radius_truncates():
    assert HeatmapCodec(sigma=1.9, truncate=3.0).radius == 5
    assert HeatmapCodec(sigma=0.3, truncate=3.0).radius == 0


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5, 0.5), (1.0, 1.0, 1.0), "mean must be three finite numbers"),
        ((0.5, 0.5, float("nan")), (1.0, 1.0, 1.0), "mean must be three finite numbers"),
        ((0.5, 0.5, 0.5), (1.0, 0.0, 1.0), "std must be three positive numbers"),
    ],
)
def test_normalisations_without_sense_are_refused(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Normalization(mean, std)


@pytest.mark.parametrize("changes", [{"sigma": 1e9}, {"sigma": 10.0, "truncate": 1e8}])
def test_codecs_beyond_any_heatmap_are_refused(changes):
    with pytest.raises(ValueError, match=r"must be at most 1048576 pixels"):
        HeatmapCodec(**changes)


def test_codecs_are_values():
    assert HeatmapCodec() == OFFICIAL
    assert hash(HeatmapCodec()) == hash(OFFICIAL)
    assert HeatmapCodec(image_size=256) == HeatmapCodec(image_size=[256, 256])
    assert pickle.loads(pickle.dumps(PAPER)).params == PAPER.params
    assert HeatmapCodec(**dataclasses.asdict(PAPER)) == PAPER
    with pytest.raises(dataclasses.FrozenInstanceError):
        OFFICIAL.sigma = 3


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("sigma", 0.0, "sigma must be a positive number, got 0.0"),
        ("sigma", math.nan, "sigma must be a positive number, got nan"),
        ("amplitude", -1.0, "amplitude must be a positive number"),
        ("amplitude", math.inf, "amplitude must be a positive number"),
        ("truncate", 0.0, "truncate must be a positive number or None"),
        ("rounding", "round", "rounding must be one of"),
        ("image_size", 0, "image_size must be a positive int"),
        ("image_size", (256, 256, 3), "image_size must be a positive int"),
        ("heatmap_size", (64.0, 64), "heatmap_size must be a positive int"),
        ("heatmap_size", (-1, 64), "heatmap_size must be a positive int"),
    ],
)
def test_bad_values_are_named(argument, value, message):
    with pytest.raises(ValueError, match=message):
        HeatmapCodec(**{argument: value})


def test_normalizations():
    assert [(128 / 255 - m) / s for m, s in zip(PAPER_NORMALIZATION.mean, PAPER_NORMALIZATION.std, strict=True)] == [
        0
    ] * 3
    assert (255 / 255 - PAPER_NORMALIZATION.mean[0]) / PAPER_NORMALIZATION.std[0] == pytest.approx(255 / 128 - 1)
    assert IMAGENET.mean == (0.485, 0.456, 0.406)
    assert IMAGENET.std == (0.229, 0.224, 0.225)
