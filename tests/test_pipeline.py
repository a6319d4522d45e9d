"""From pixels to coordinates: a detector that sees coloured dots shows where every crop, flip and scale puts them."""

import sys
import threading
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hpe_fast import models
from hpe_fast.models import weight_files
from hpe_fast.models.weight_files import weight_paths
from hpe_fast.ops import IMAGENET, OFFICIAL, UNBIASED
from hpe_fast.pipeline import PosePipeline, Poses, fold_batchnorm, infer, load, weights
from hpe_fast.pipeline.crops import box_crops, closer_crops, resample, to_picture, whole_crop
from hpe_fast.pipeline.inputs import as_pictures, to_rgb
from hpe_fast.pipeline.speed import Graphs
from hpe_fast.skeleton import FLIP_PERMUTATION

CODEC = UNBIASED.resized(128, 32)
#: The colour each joint's dot has: the same for left and right, so that mirroring changes nothing.
CHANNEL = [0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2]


class DotDetector(nn.Module):
    """Heatmap (u, v) of a joint is its colour at crop pixel (4 u, 4 v): dots of a picture become Gaussian targets."""

    def __init__(self):
        super().__init__()
        self.metadata = {"codec": asdict(CODEC), "normalization": asdict(IMAGENET)}
        self.calls = []

    def forward(self, images):
        self.calls.append(len(images))
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
        return (images[:, :, ::4, ::4].float() * std + mean)[:, CHANNEL].contiguous()


class PassingLifter(nn.Module):
    """x and y in crop units as they came, z 0."""

    def forward(self, keypoints):
        return torch.nn.functional.pad(keypoints, (0, 1))


def make_pipeline(**options):
    return PosePipeline(DotDetector(), PassingLifter(), "cpu", dtype=torch.float32, **options)


def dots(height, width, points, spread):
    """A picture with a red, a green and a blue Gaussian dot at sub-pixel places (x, y)."""
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    planes = [
        255 * np.exp(-((y - py) ** 2) / (2 * spread**2)) * np.exp(-((x - px) ** 2) / (2 * spread**2))
        for px, py in points
    ]
    return np.uint8(np.rint(np.stack(planes, 2)))


def error(poses, points, row=0):
    expected = torch.tensor([points[channel] for channel in CHANNEL])
    return float((poses.keypoints[row] - expected).norm(dim=-1).max())


SQUARE = [(40.3, 50.8), (90.6, 33.2), (64.0, 100.5)]


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


@pytest.mark.parametrize(
    "convert",
    [
        lambda image: image,
        lambda image: image[None],
        lambda image: image.transpose(2, 0, 1)[None],
        lambda image: image.transpose(2, 0, 1),
        lambda image: torch.from_numpy(image),
        lambda image: torch.from_numpy(image)[None].permute(0, 3, 1, 2),
        lambda image: [image],
        lambda image: (torch.from_numpy(image),),
        lambda image: np.ascontiguousarray(image[..., ::-1])[..., ::-1],
        lambda image: np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]),
        lambda image: np.asfortranarray(image),
    ],
    ids=["hwc", "bhwc", "bchw", "chw", "tensor", "tensor-bchw", "list", "tuple", "negative-stride", "rgba", "fortran"],
)
def test_every_form_of_a_picture_gives_its_pixels(pipeline, convert):
    poses = pipeline(convert(dots(128, 128, SQUARE, 7)))
    assert isinstance(poses, Poses)
    assert len(poses) == 1
    assert error(poses, SQUARE) < 0.2
    unit = (poses.keypoints[0] + 0.5) / 128
    torch.testing.assert_close(poses.joints3d[0, :, :2], unit)


@pytest.mark.parametrize(("height", "width"), [(60, 40), (128, 300), (1000, 700), (255, 255), (77, 31), (3000, 4000)])
def test_pictures_of_any_size_give_their_own_pixels(pipeline, height, width):
    points = [(0.3 * width, 0.4 * height), (0.7 * width, 0.3 * height), (0.5 * width, 0.75 * height)]
    scale = max(height, width) / 128
    poses = pipeline(dots(height, width, points, 7 * scale))
    assert error(poses, points) < 0.5 * max(scale, 0.5)
    if scale > 1:
        assert error(poses, points) < 0.25 * scale, "a quarter of a pixel of the network's input"


def test_arrays_that_torch_cannot_wrap(pipeline):
    image = dots(128, 128, SQUARE, 7)
    expected = pipeline(image).keypoints
    frozen = image.copy()
    frozen.flags.writeable = False
    mirrored = np.ascontiguousarray(image[::-1, ::-1])
    spaced = np.zeros((256, 384, 3), np.uint8)
    spaced[::2, ::3] = image
    for same in (frozen, mirrored[::-1, ::-1], spaced[::2, ::3], torch.from_numpy(spaced)[::2, ::3]):
        assert torch.equal(pipeline(same).keypoints, expected)


def test_two_people_in_a_photograph(pipeline):
    first = [(510.2, 640.7), (700.9, 420.3), (620.0, 900.4)]
    second = [(2500.5, 1500.2), (2800.1, 1300.8), (2650.0, 1900.6)]
    photo = np.maximum(dots(3000, 4000, first, 40), dots(3000, 4000, second, 50))
    boxes = np.array([[400, 350, 420, 640], [2350, 1200, 600, 800]], float)
    poses = pipeline(photo, boxes)
    assert poses.image_index.tolist() == [0, 0]
    assert error(poses, first, 0) < 0.5
    assert error(poses, second, 1) < 0.5
    for form in (boxes.tolist(), torch.from_numpy(boxes), [boxes], list(boxes)):
        torch.testing.assert_close(pipeline(photo, form).keypoints, poses.keypoints)


def test_boxes_over_the_edge_and_small_boxes(pipeline):
    points = [(12.4, 20.3), (30.7, 15.2), (22.0, 44.8)]
    picture = dots(60, 50, points, 3)
    assert error(pipeline(picture, [[-10, -20, 70, 100]]), points) < 0.2
    assert error(pipeline(picture, [[5.5, 8.5, 31, 42]]), points) < 0.2


def test_boxes_of_every_picture(pipeline):
    images = [dots(200, 300, SQUARE, 8), dots(150, 150, SQUARE, 8), dots(200, 300, SQUARE, 8)]
    everywhere = [[20, 15, 95, 110]]
    poses = pipeline(images, [everywhere * 2, [], everywhere])
    assert poses.image_index.tolist() == [0, 0, 2]
    assert all(error(poses, SQUARE, row) < 0.3 for row in range(3))
    same = pipeline(np.stack([images[0], images[2]]), everywhere * 2)
    assert same.image_index.tolist() == [0, 1]
    assert error(same, SQUARE, 1) < 0.3
    assert len(pipeline(images, [[], [], []])) == 0


def test_grey_has_one_dot_for_all_joints_and_alpha_lies_over_black(pipeline):
    grey = dots(128, 128, [SQUARE[0]] * 3, 7)[..., 0]
    for form in (grey, grey[..., None], grey[None, ..., None], [grey]):
        assert error(pipeline(form), [SQUARE[0]] * 3) < 0.2
    white = np.full((128, 128, 4), 255, np.uint8)
    white[..., 3] = grey
    assert error(pipeline(white), [SQUARE[0]] * 3) < 0.2


@pytest.mark.parametrize("size", [(128, 128), (200, 90)])
def test_flip_test_keeps_the_places(pipeline, size):
    height, width = size
    points = [(0.3 * width, 0.4 * height), (0.7 * width, 0.3 * height), (0.5 * width, 0.75 * height)]
    picture = dots(height, width, points, 7)
    once, twice = pipeline(picture), pipeline(picture, flip_test=True)
    assert error(twice, points) < 0.15 * max(size) / 128
    torch.testing.assert_close(once.keypoints, twice.keypoints, atol=0.2, rtol=0)


def test_somebody_small_is_looked_at_again():
    places = [(300.0, 200.0), (360.0, 260.0), (330.0, 290.0)]
    picture = dots(512, 640, places, spread=9.0)
    small, large = make_pipeline(), make_pipeline()
    once, thrice = small(picture), large(picture, looks=3)
    assert small._detector.calls == [1]
    assert 1 < len(large._detector.calls) <= 3
    errors = [(poses.keypoints[0] - torch.tensor(places)[CHANNEL]).norm(dim=-1).max() for poses in (once, thrice)]
    assert errors[1] < 0.5
    assert errors[1] <= errors[0] + 0.1
    crop = (thrice.joints3d[0, :, :2].amax(0) - thrice.joints3d[0, :, :2].amin(0)).max()  # in crop units
    assert 0.6 < crop < 0.9


def test_looks_end_where_the_person_fills_the_crop_and_others_keep_their_poses():
    large, small = dots(128, 128, [(20, 20), (100, 90), (60, 110)], 6.0), dots(128, 128, [(60, 60)] * 3, 6.0)
    near = dots(128, 128, [(50, 50), (80, 75), (60, 80)], 4.0)
    pipeline = make_pipeline()
    poses = pipeline(np.stack([large, near, small]), looks=3)
    assert pipeline._detector.calls[0] == 3
    assert all(count <= 2 for count in pipeline._detector.calls[1:])
    alone = [make_pipeline()(picture, looks=3) for picture in (large, near, small)]
    torch.testing.assert_close(poses.keypoints, torch.cat([one.keypoints for one in alone]))
    assert torch.equal(poses.keypoints[0], make_pipeline()(large).keypoints[0])
    assert poses.image_index.tolist() == [0, 1, 2]


def test_closer_crops_need_joints_to_go_by():
    crops, keypoints = torch.tensor([[0, 0, 400, 400]]).expand(3, 4), torch.rand(3, 17, 2) * 50 + 100
    scores = torch.ones(3, 17)
    scores[1, 3:] = 0.1  # three joints are no person
    scores[2] = torch.nan
    closer = closer_crops(keypoints, scores, crops, (64, 64), 0.5)
    assert closer[0, 2] < 80
    assert torch.equal(closer[1:], crops[1:])


@pytest.mark.parametrize("looks", [0, -1, 1.5, None])
def test_looks_are_a_positive_int(pipeline, looks):
    with pytest.raises(ValueError, match="looks must be a positive int"):
        pipeline(np.zeros((8, 8, 3), np.uint8), looks=looks)


def test_flip_test_exchanges_left_and_right():
    """A detector that marks right and left by the side of the picture they are on must not be confused by mirroring."""

    class Sided(nn.Module):
        def forward(self, images):
            maps = torch.zeros(len(images), 17, 32, 32)
            maps[:, [1, 2, 3], 10, 6] = 1
            maps[:, [4, 5, 6], 10, 25] = 1
            maps[:, 0, 10, 15:17] = 1
            return maps

    poses = PosePipeline(Sided(), PassingLifter(), "cpu", codec=CODEC, refine="none")(
        np.zeros((128, 128, 3), np.uint8), flip_test=True
    )
    assert poses.scores[0, [1, 2, 3, 4, 5, 6]].tolist() == [1] * 6
    assert poses.keypoints[0, [1, 4], 0].tolist() == [24, 100]
    assert [FLIP_PERMUTATION[j] for j in (1, 2, 3)] == [4, 5, 6]


def test_long_inputs_go_through_in_bounded_chunks():
    pipeline = make_pipeline()
    images = [dots(40 + i % 3, 50, [(10 + i, 20), (20, 10 + i), (30, 30)], 4) for i in range(11)]
    poses = pipeline(images, batch_size=4)
    assert pipeline._detector.calls == [4, 4, 3]
    assert poses.image_index.tolist() == list(range(11))
    for i in (0, 5, 10):
        assert error(poses, [(10 + i, 20), (20, 10 + i), (30, 30)], i) < 0.3
    parts = list(pipeline.stream(iter(images), batch_size=4))
    torch.testing.assert_close(torch.cat([part.keypoints for part in parts]), poses.keypoints)
    assert torch.cat([part.image_index for part in parts]).tolist() == list(range(11))


def test_stream_holds_one_chunk_of_pictures_at_a_time(pipeline):
    taken = []

    def frames():
        for i in range(100):
            taken.append(i)
            yield np.zeros((16, 16, 3), np.uint8)

    stream = pipeline.stream(frames(), batch_size=5)
    next(stream)
    assert len(taken) == 5
    boxes = ([[[0, 0, 8, 8]]] * 2 + [[]])[:3]
    parts = list(pipeline.stream([np.zeros((16, 16, 3), np.uint8)] * 3, boxes, batch_size=2))
    assert [part.image_index.tolist() for part in parts] == [[0, 1], []]
    with pytest.raises(ValueError, match="they end after 1"):
        list(pipeline.stream([np.zeros((16, 16, 3), np.uint8)] * 2, [[[0, 0, 8, 8]]]))


def test_a_thousand_pictures(pipeline):
    images = [dots(32, 32, [(5 + i % 20, 16), (16, 16), (16, 5 + i % 20)], 2)[: 32 - i % 2] for i in range(20)] * 50
    poses = pipeline(images)
    assert poses.keypoints.shape == (1000, 17, 2)
    assert torch.equal(poses.keypoints[:20], poses.keypoints[980:])


@pytest.mark.parametrize("batch", [[], np.zeros((0, 30, 20, 3), np.uint8), torch.zeros(0, 3, 9, 9, dtype=torch.uint8)])
def test_an_empty_batch_has_no_poses(pipeline, batch):
    poses = pipeline(batch, return_heatmaps=True)
    assert (poses.keypoints.shape, poses.scores.shape, poses.joints3d.shape) == ((0, 17, 2), (0, 17), (0, 17, 3))
    assert poses.heatmaps.shape == (0, 17, 32, 32)
    assert poses.image_index.dtype == torch.int64
    assert list(pipeline.stream([])) == []


def test_heatmaps_on_request(pipeline):
    images = np.stack([dots(128, 128, SQUARE, 7)] * 3)
    assert pipeline(images).heatmaps is None
    poses = pipeline(images, return_heatmaps=True, batch_size=2)
    assert poses.heatmaps.shape == (3, 17, 32, 32)
    v, u = divmod(int(poses.heatmaps[0, 0].argmax()), 32)
    assert abs(4 * u - SQUARE[0][0]) <= 2
    assert abs(4 * v - SQUARE[0][1]) <= 2


def test_bad_pictures_are_named(pipeline):
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(TypeError, match=r"batch must be uint8.*got float32.*multiply by 255"):
        pipeline(image.astype(np.float32))
    with pytest.raises(TypeError, match=r"batch\[1\] must be uint8"):
        pipeline([image, torch.zeros(8, 8, 3)])
    with pytest.raises(TypeError, match=r"got generator; PosePipeline\.stream"):
        pipeline(image for _ in range(2))
    with pytest.raises(TypeError, match="got str"):
        pipeline("picture.jpg")
    with pytest.raises(TypeError, match=r"batch\[0\] must be a numpy array"):
        pipeline([[1, 2, 3]])
    for shape in ((8,), (2, 3, 8, 8, 3), (2, 8, 8, 5), (8, 8, 2)):
        with pytest.raises(ValueError, match="batch must be uint8"):
            pipeline(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="at least one pixel"):
        pipeline(np.zeros((2, 0, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="batch_size must be a positive int"):
        pipeline(image, batch_size=0)


@pytest.mark.parametrize(
    ("boxes", "kind", "message"),
    [
        ([[0, 0, 5]], ValueError, r"boxes must be \[N, 4\]"),
        ([0, 0, 5, 5], ValueError, r"boxes must be \[N, 4\]"),
        ([[0, 0, 5, float("nan")]], ValueError, "number 0 must be finite"),
        ([[0, 0, 5, 5], [0, 0, 0, 5]], ValueError, "number 1 must be finite with positive"),
        ([[20, 0, 5, 5]], ValueError, "lies outside its picture of 9 x 8 pixels"),
        ([[float("inf"), 0, 5, 5]], ValueError, "number 0 must be finite"),
        ([[-1e6, -1e6, 2e6, 2e6]], ValueError, r"number 0, .* is more than 4 times as long as its picture of 9 x 8"),
        ([["a", 0, 5, 5]], TypeError, "boxes must be numbers"),
        ([[[0, 0, 5, 5]], [[0, 0, 5, 5]]], ValueError, "list of 1 arrays"),
    ],
)
def test_bad_boxes_are_named(pipeline, boxes, kind, message):
    with pytest.raises(kind, match=message):
        pipeline(np.zeros((8, 9, 3), np.uint8), boxes)


def test_as_many_boxes_as_pictures(pipeline):
    with pytest.raises(ValueError, match=r"boxes must be \[3, 4\], one for each picture"):
        pipeline(np.zeros((3, 8, 8, 3), np.uint8), [[0, 0, 5, 5]] * 2)


def test_bad_settings_are_named():
    with pytest.raises(TypeError, match=r"detector must be a torch\.nn\.Module"):
        PosePipeline("hrnet", PassingLifter())
    with pytest.raises(TypeError, match="dtype must be"):
        make_pipeline_with(dtype=torch.int8)
    with pytest.raises(ValueError, match="padding"):
        make_pipeline_with(padding=0)
    with pytest.raises(ValueError, match="device must be"):
        PosePipeline(DotDetector(), PassingLifter(), "tpu")
    foreign = DotDetector()
    foreign.metadata = {"joint_order": "unknown"}
    with pytest.raises(ValueError, match="joints in 'unknown' order"):
        PosePipeline(foreign, PassingLifter(), "cpu")
    wrong = make_pipeline_with(codec=OFFICIAL)
    with pytest.raises(ValueError, match=r"its codec wants \[1, 17, 64, 64\]"):
        PosePipeline(nn.Conv2d(3, 5, 1), PassingLifter(), "cpu", codec=OFFICIAL)(np.zeros((8, 8, 3), np.uint8))
    assert wrong.image_size == (256, 256)


def make_pipeline_with(**options):
    return PosePipeline(DotDetector(), PassingLifter(), "cpu", **options)


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_resampling_against_a_loop(height, width, rows, columns, seed):
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    crop = torch.tensor([rng.integers(-9, width), rng.integers(-9, height), *rng.integers(10, 80, 2)])
    found = resample(torch.from_numpy(picture)[None], crop, (rows, columns))[0].numpy()
    assert found.shape == (rows, columns, 3)
    x, y, w, h = crop.tolist()
    canvas = np.zeros((h, w, 3))
    for v in range(h):
        for u in range(w):
            if 0 <= y + v < height and 0 <= x + u < width:
                canvas[v, u] = picture[y + v, x + u]
    wide = np.einsum("rcd,jc->rjd", canvas, cubics(w, columns)).clip(0, 255)  # the picture is uint8 after either axis
    expected = np.einsum("ir,rjd->ijd", cubics(h, rows), wide).clip(0, 255)
    np.testing.assert_allclose(found, expected, atol=2.01)


def cubics(pixels, samples):
    """The weight of each pixel in each sample: Keys' kernel (a = -1/2) as wide as a sample, or as a pixel if larger."""
    scale = pixels / samples
    table = np.zeros((samples, pixels))
    for i in range(samples):
        for j in range(pixels):
            x = abs((i + 0.5) * scale - (j + 0.5)) / max(scale, 1.0)
            if x < 1:
                table[i, j] = 1.5 * x**3 - 2.5 * x**2 + 1
            elif x < 2:
                table[i, j] = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return table / table.sum(1, keepdims=True)


def test_the_centre_of_a_box_goes_to_the_centre_of_the_crop():
    size = (256, 192)
    crop = box_crops(torch.tensor([[100.0, 50.0, 40.0, 80.0]], dtype=torch.float64), size)
    assert crop.tolist() == [[82, 40, 75, 100]]  # 100 high, 3 / 4 of that wide, centre (120, 90)
    centre = torch.tensor([[[95.5, 127.5]]], dtype=torch.float64)
    torch.testing.assert_close(to_picture(centre, crop, size), torch.tensor([[[119.0, 89.5]]], dtype=torch.float64))


@given(
    x=st.floats(-500, 500),
    y=st.floats(-500, 500),
    width=st.floats(0.1, 3000),
    height=st.floats(0.1, 3000),
    size=st.sampled_from([(256, 256), (256, 192), (64, 96)]),
)
@settings(max_examples=60, deadline=None)
def test_crops_hold_their_boxes(x, y, width, height, size):
    left, top, w, h = box_crops(torch.tensor([[x, y, width, height]], dtype=torch.float64), size)[0].tolist()
    assert abs(left + w / 2 - (x + width / 2)) <= 0.5 + 1e-9
    assert abs(top + h / 2 - (y + height / 2)) <= 0.5 + 1e-9
    assert w >= 1.25 * width - 0.5
    assert h >= 1.25 * height - 0.5
    assert abs(w * size[0] - h * size[1]) <= 0.5 * sum(size) or min(w, h) == 1


def test_pictures_are_not_copied_when_they_fit():
    image = np.zeros((2, 8, 8, 3), np.uint8)
    assert as_pictures(image).data_ptr() == image.ctypes.data
    frozen = image.copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_pictures(frozen)


NETWORKS = {
    "hrnet": lambda: models.hrnet(width=8, modules=(1, 1, 1), blocks=1),
    "simple_baseline": lambda: models.simple_baseline(depth=18),
    "lifter": lambda: models.lifter(width=64),
}


def seen(model):
    """The model with BatchNorm statistics and weights that are not those of the start."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_leaves_no_batchnorm_and_the_same_results(name):
    model = seen(NETWORKS[name]())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    inputs = torch.rand(2, 17, 2) if name == "lifter" else torch.randn(2, 3, 64, 64)
    folded = fold_batchnorm(model.train())
    model.eval()
    assert not any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in folded.modules())
    with torch.no_grad():
        expected = model(inputs)
        torch.testing.assert_close(folded(inputs), expected, atol=float(expected.abs().max()) * 1e-4, rtol=0)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.fixture
def run(tmp_path):
    detector, lifter = NETWORKS["hrnet"](), NETWORKS["lifter"]()
    about = {"codec": asdict(OFFICIAL.resized(64, 16)), "normalization": asdict(IMAGENET), "trained_on": "dots"}
    models.save_checkpoint(tmp_path / "hrnet.safetensors", seen(detector), about)
    models.save_checkpoint(tmp_path / "lifter.safetensors", seen(lifter), {"trained_on": "chance"})
    return tmp_path


def test_load_says_what_it_was_trained_on(run, caplog):
    with caplog.at_level("INFO", logger="hpe_fast"):
        pipeline = load(run, "cpu", dtype=torch.float32)
    assert pipeline.metadata["detector"]["trained_on"] == "dots"
    assert pipeline.image_size == (64, 64)
    assert pipeline.codec == OFFICIAL.resized(64, 16)
    assert pipeline.normalization == IMAGENET
    assert "chance" in caplog.text
    picture = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    poses = pipeline(picture, return_heatmaps=True)
    assert poses.keypoints.isfinite().all()
    detector, lifter = (models.load_checkpoint(path) for path in weight_paths(run))
    small = resample(torch.from_numpy(picture)[None], whole_crop((90, 70), (64, 64)), (64, 64))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    with torch.no_grad():
        expected = detector((small.movedim(3, 1) / 255 - mean) / std)
    torch.testing.assert_close(poses.heatmaps, expected, atol=1e-3 * float(expected.abs().max()), rtol=0)
    unit = (poses.keypoints + 0.5 - torch.tensor([-10, 0])) / 90
    with torch.no_grad():
        torch.testing.assert_close(poses.joints3d, lifter(unit), atol=1e-3, rtol=1e-3)


def test_infer_keeps_its_pipeline_until_the_weights_change(run):
    image = np.zeros((64, 64, 3), np.uint8)
    first = infer(image, weights=run, device="cpu")
    kept = weights._pipeline(run, "cpu")
    assert weights._pipeline(run, "cpu") is kept
    torch.testing.assert_close(infer(image, weights=run, device="cpu").joints3d, first.joints3d)
    models.save_checkpoint(run / "lifter.safetensors", NETWORKS["lifter"](), {"trained_on": "more"})
    assert weights._pipeline(run, "cpu").metadata["lifter"]["trained_on"] == "more"


def test_bundled_weights_warn_once(run, tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    folder.mkdir()
    for stage in ("hrnet", "lifter"):
        (run / f"{stage}.safetensors").rename(folder / f"default.{stage}.safetensors")
    monkeypatch.setattr(weight_files, "BUNDLED", folder)
    monkeypatch.setattr(weights, "_told", False)
    with pytest.warns(UserWarning, match=r"trained on: dots \(2D\), chance \(3D\)"):
        load(device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(device="cpu")
        load("default", "cpu")
    with pytest.raises(FileNotFoundError, match=r"bundled weights \(default\)"):
        load("other")


def test_missing_weights_say_how_to_get_some(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "BUNDLED", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"python -m hpe_fast\.train"):
        load()
    with pytest.raises(FileNotFoundError, match=r"hrnet\.safetensors and lifter\.safetensors missing"):
        weight_paths(tmp_path)


def test_reduced_precision_moves_joints_little():
    """On heatmaps with clear peaks; the last layer stays float32."""
    torch.manual_seed(0)
    detector = NETWORKS["hrnet"]()
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    exact, fast = (
        PosePipeline(seen(detector), PassingLifter(), "cpu", codec=OFFICIAL.resized(64, 16), dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    a, b = exact(images, return_heatmaps=True), fast(images, return_heatmaps=True)
    assert b.keypoints.dtype == b.heatmaps.dtype == torch.float32
    spread = float(a.heatmaps.std())
    assert float((a.heatmaps - b.heatmaps).abs().mean()) < 0.05 * spread
    assert not torch.equal(a.heatmaps, b.heatmaps)


def test_several_threads_get_their_own_poses(pipeline):
    pictures = [dots(128, 128, [(30 + 4 * i, 60), (64, 30 + 4 * i), (64, 64)], 7) for i in range(12)]
    expected = [pipeline(picture).keypoints for picture in pictures]
    failures = []

    def work(i):
        for _ in range(3):
            if not torch.equal(pipeline(pictures[i]).keypoints, expected[i]):
                failures.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_models_given_are_not_changed():
    detector, lifter = NETWORKS["hrnet"](), NETWORKS["lifter"]()
    PosePipeline(detector, lifter, "cpu", codec=OFFICIAL.resized(64, 16), dtype=torch.bfloat16)
    assert detector.training
    assert {parameter.dtype for parameter in detector.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in detector.parameters())
    assert detector.final_layer.weight.dtype == torch.float32


def test_names_at_the_root():
    import hpe_fast

    assert hpe_fast.infer is infer
    assert hpe_fast.load is load
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_give_what_the_networks_give():
    detector, lifter = seen(NETWORKS["hrnet"]()), seen(NETWORKS["lifter"]())
    codec = OFFICIAL.resized(64, 16)
    graphed = PosePipeline(detector, lifter, "cuda", codec=codec, max_graphs=2)
    eager = PosePipeline(detector, lifter, "cuda", codec=codec, max_graphs=0)
    rng = np.random.default_rng(0)
    for size in (1, 3, 2, 1, 3):  # more sizes than graphs
        images = rng.integers(0, 256, (size, 64, 64, 3), dtype=np.uint8)
        torch.testing.assert_close(graphed(images).keypoints, eager(images).keypoints, atol=0.6, rtol=0)
    assert len(graphed._run._graphs) == 2


class FakeCuda:
    """torch.cuda as far as Graphs needs it: a capture remembers the call, a replay repeats it into the same outputs."""

    def __init__(self, monkeypatch):
        self.capturing, self.captures = None, 0
        stream = SimpleNamespace(wait_event=lambda event: None, wait_stream=lambda other: None)
        fakes = {
            "Event": lambda: SimpleNamespace(record=lambda stream: None),
            "current_stream": lambda: stream,
            "Stream": lambda: stream,
            "stream": lambda s: nullcontext(),
            "device": lambda d: nullcontext(),
            "synchronize": lambda: None,
            "CUDAGraph": lambda: SimpleNamespace(calls=[], replay=None),
            "graph": self._graph,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    @contextmanager
    def _graph(self, graph, capture_error_mode):
        self.capturing, self.captures = graph, self.captures + 1
        yield
        self.capturing = None

    def function(self, images, factor):
        output = images * factor
        if self.capturing is not None:
            self.capturing.replay = lambda: output.copy_(images * factor)
        return (output,)


def test_graphs_are_kept_up_to_a_limit_and_hand_out_copies(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    graphs = Graphs(cuda.function, torch.device("cuda", 0), limit=2)
    first = graphs(torch.tensor([1.0]), 3)[0]
    second = graphs(torch.tensor([5.0]), 3)[0]
    assert (first.item(), second.item(), cuda.captures) == (3, 15, 1), "another input through the same graph"
    assert graphs(torch.tensor([1.0, 2.0]), 3)[0].tolist() == [3, 6]
    assert graphs(torch.tensor([2.0]), 3)[0].item() == 6
    assert graphs(torch.tensor([2.0]), 4)[0].item() == 8, "another option is another graph"
    assert cuda.captures == 3
    assert graphs(torch.tensor([2.0]), 3)[0].item() == 6
    assert cuda.captures == 3, "the one used last was kept"
    graphs(torch.tensor([1.0, 2.0]), 3)
    assert cuda.captures == 4, "the one not used for longest was dropped"
    assert graphs(torch.tensor([7.0]), 3)[0].tolist() == [21]
    graphs(torch.tensor([1.0, 2.0, 3.0]), 3)
    assert cuda.captures == 5, "a larger batch than any"
    assert graphs(torch.tensor([4.0, 5.0]), 3)[0].tolist() == [12, 15]
    assert cuda.captures == 5, "a smaller one goes through the graph of a larger"


def test_boxes_in_some_pictures_of_a_batch_are_cut_from_those(run):
    """Two equal boxes in the first picture, none in the second, one in the third."""
    pictures = np.random.default_rng(0).integers(0, 255, (3, 96, 96, 3), np.uint8)
    box = [10, 10, 60, 60]
    boxes = [np.array([box, box]), np.zeros((0, 4)), np.array([box])]
    batch = infer(pictures, boxes, weights=run, device="cpu")
    single = infer(list(pictures), boxes, weights=run, device="cpu")
    assert batch.image_index.tolist() == [0, 0, 2]
    assert torch.equal(batch.keypoints, single.keypoints)


@pytest.mark.parametrize("option", [{"padding": float("inf")}, {"padding": 0}, {"refine": "half"}])
def test_bad_options_are_refused_at_once(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        PosePipeline(NETWORKS["hrnet"](), NETWORKS["lifter"](), "cpu", **option)


def test_networks_for_other_joints_are_refused_at_once():
    for networks in (
        (models.hrnet(width=8, modules=(1, 1, 1), blocks=1, joints=16), NETWORKS["lifter"]()),
        (NETWORKS["hrnet"](), models.lifter(width=16, in_joints=16)),
        (NETWORKS["hrnet"](), models.lifter(width=16, out_joints=16)),
    ):
        with pytest.raises(ValueError, match="joints 16; want the 17"):
            PosePipeline(*networks, "cpu")


def test_a_long_thin_picture_needs_no_square(monkeypatch):
    """2 x 40,000 pixels: 5 GB as a padded square."""
    largest = []
    real = torch.nn.functional.pad
    monkeypatch.setattr(torch.nn.functional, "pad", lambda t, p: largest.append(real(t, p)) or largest[-1])
    for shape in ((2, 40_000), (40_000, 2)):
        crop = whole_crop(shape, (64, 64))
        cut = resample(torch.full((1, *shape, 3), 200, dtype=torch.uint8), crop, (64, 64))
        assert cut.shape == (1, 64, 64, 3)
    assert max(t.numel() for t in largest) < 10_000_000


def test_flip_test_averages_the_lifter_too():
    """3D joints of the mirrored picture are the mirrored joints, which no lifter is by itself."""
    torch.manual_seed(0)
    lifter = models.lifter(width=16).eval()
    pipeline = PosePipeline(NETWORKS["hrnet"](), lifter, "cpu", codec=OFFICIAL.resized(64, 16))
    keypoints = torch.rand(4, 17, 2)
    mirrored = torch.stack([1 - keypoints[..., 0], keypoints[..., 1]], -1)[:, FLIP_PERMUTATION]
    one, other = (pipeline._lift(points, True) for points in (keypoints, mirrored))
    torch.testing.assert_close(other[:, FLIP_PERMUTATION] * torch.tensor([-1.0, 1, 1]), one)
    plain = pipeline._lift(keypoints, False)
    torch.testing.assert_close(plain, lifter(keypoints))
    assert not torch.allclose(plain, one)


def test_opaque_pictures_stay_as_they_are():
    values = torch.arange(256, dtype=torch.uint8)[:, None]
    opaque = torch.cat([values.expand(-1, 3), torch.full((256, 1), 255, dtype=torch.uint8)], 1)
    assert torch.equal(to_rgb(opaque), values.expand(-1, 3))


def test_a_folder_named_default_is_not_the_default(tmp_path, monkeypatch):
    (tmp_path / "default").mkdir()
    monkeypatch.chdir(tmp_path)
    assert weight_paths()[0].parent == weight_files.BUNDLED
    with pytest.raises(FileNotFoundError, match="run directory default"):
        weight_paths("default")
