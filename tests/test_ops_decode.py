"""decode_heatmaps: the official rules on every border, the flip test, DARK, and the way back to the image."""

import itertools
import math

import numpy as np
import ops_restated as restated
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_restated import DTYPES, FORMATS
from test_ops_loss import some_heatmaps
from test_ops_render import devices, sizes, some_keypoints

from hpe_fast.ops import OFFICIAL, PAPER, UNBIASED, HeatmapCodec, decode_heatmaps, reference, render_heatmaps
from hpe_fast.skeleton import FLIP_PERMUTATION

PLAIN = HeatmapCodec(image_size=8, heatmap_size=8)  # stride 1


def twin(
    heatmaps,
    codec=OFFICIAL,
    *,
    refine="quarter",
    flipped=None,
    to_image=None,
    shift_flipped=False,
    flip_permutation=FLIP_PERMUTATION,
):
    code = reference.REFINE_CODES[refine]
    return reference.decode_heatmaps(
        heatmaps, flipped, to_image, codec.params, code, shift_flipped, list(flip_permutation)
    )


decodes = pytest.mark.parametrize("decode", [decode_heatmaps, twin], ids=["operator", "twin"])
formats = pytest.mark.parametrize("memory_format", FORMATS, ids=["nchw", "nhwc"])


def maps_of(pixels, size=(8, 8), device="cpu"):
    """One map of zeros with the given {(x, y): value}."""
    heatmaps = torch.zeros(1, 1, *size, device=device)
    for (x, y), value in pixels.items():
        heatmaps[0, 0, y, x] = value
    return heatmaps


@devices
@decodes
class TestMaximum:
    def test_the_first_of_equal_maxima_wins(self, decode, device):
        heatmaps = maps_of({(5, 2): 1.0, (1, 4): 1.0, (7, 2): 1.0}, device=device)
        assert decode(heatmaps, PLAIN, refine="none")[0].tolist() == [[[5, 2]]]

    @pytest.mark.parametrize("refine", ["none", "quarter", "dark"])
    @pytest.mark.parametrize("codec", [PLAIN, PAPER.resized(32, 8)], ids=["official", "paper"])
    @pytest.mark.parametrize("value", [0.0, -0.0, -3.0, -math.inf])
    def test_no_positive_maximum_means_no_joint(self, decode, device, codec, refine, value):
        coords, scores = decode(torch.full((1, 1, 8, 8), value, device=device), codec, refine=refine)
        assert coords.tolist() == [[[0, 0]]]
        assert scores.item() == value

    def test_nan_is_ignored(self, decode, device):
        heatmaps = maps_of({(0, 0): math.nan, (5, 2): 1.0, (6, 2): math.nan}, device=device)
        coords, scores = decode(heatmaps, PLAIN, refine="quarter")
        assert coords.tolist() == [[[5, 2]]]  # neighbours 0 and NaN: no larger one
        assert scores.item() == 1

    @pytest.mark.parametrize("refine", ["none", "quarter", "dark"])
    def test_nothing_but_nan(self, decode, device, refine):
        coords, scores = decode(torch.full((1, 2, 8, 8), math.nan, device=device), PLAIN, refine=refine)
        assert coords.tolist() == [[[0, 0], [0, 0]]]
        assert scores.isnan().all()

    def test_nan_beside_minus_infinity(self, decode, device):
        heatmaps = torch.full((1, 1, 8, 8), math.nan, device=device)
        heatmaps[0, 0, 3, 3] = -math.inf
        coords, scores = decode(heatmaps, PLAIN)
        assert coords.tolist() == [[[0, 0]]]
        assert scores.item() == -math.inf

    @pytest.mark.parametrize("refine", ["none", "quarter", "dark"])
    def test_infinity_is_a_maximum(self, decode, device, refine):
        coords, scores = decode(maps_of({(5, 3): math.inf}, device=device), PLAIN, refine=refine)
        assert coords.tolist() == [[[5, 3]]]
        assert scores.item() == math.inf

    @pytest.mark.parametrize("width", [1, 2, 3, 15, 16, 17, 64, 65])
    def test_every_pixel_can_win(self, decode, device, width):
        height = 3
        heatmaps = torch.eye(height * width, device=device).view(1, -1, height, width)
        codec = PLAIN.resized((height, width), (height, width))
        wanted = [[x, y] for y in range(height) for x in range(width)]
        for memory_format in FORMATS:
            coords, scores = decode(heatmaps.contiguous(memory_format=memory_format), codec, refine="none")
            assert coords[0].tolist() == wanted
            assert (scores == 1).all()


@devices
@decodes
class TestQuarter:
    def offset(self, decode, device, x, y, neighbours, size=(8, 8)):
        heatmaps = maps_of({(x, y): 1.0, **neighbours}, size, device)
        coords, _ = decode(heatmaps, PLAIN.resized(size, size), refine="quarter")
        return coords[0, 0, 0].item() - x, coords[0, 0, 1].item() - y

    def test_towards_the_larger_neighbour(self, decode, device):
        assert self.offset(decode, device, 4, 4, {(5, 4): 0.5, (3, 4): 0.4, (4, 3): 0.1}) == (0.25, -0.25)
        assert self.offset(decode, device, 4, 4, {(5, 4): 0.5, (3, 4): 0.5}) == (0, 0)
        assert self.offset(decode, device, 4, 4, {(5, 4): -0.5, (4, 5): -1e-30}) == (-0.25, -0.25)

    @pytest.mark.parametrize(
        ("position", "moves"), [(0, False), (1, False), (2, True), (5, True), (6, True), (7, False)]
    )
    def test_borders(self, decode, device, position, moves):
        """`1 < p < size - 1`: 1 is out, size - 2 is in; one coordinate on the border stops both."""
        for x, y in ((position, 4), (4, position)):
            neighbours = {(min(x + 1, 7), y): 0.5, (x, min(y + 1, 7)): 0.5}
            neighbours.pop((x, y), None)
            expected = (0.25, 0.25) if moves else (0, 0)
            assert self.offset(decode, device, x, y, neighbours) == expected


@devices
@decodes
@formats
@pytest.mark.parametrize("refine", ["none", "quarter", "dark"])
def test_peaks_on_every_pixel_of_a_small_map(decode, refine, memory_format, device):
    generator = torch.Generator().manual_seed(3)
    size = (7, 9)
    heatmaps = torch.rand(63, 1, *size, generator=generator)
    for index, (y, x) in enumerate(itertools.product(range(7), range(9))):
        heatmaps[index, 0, y, x] = 2.0
    codec = OFFICIAL.resized((28, 45), size)
    wanted, scores = restated.decode(heatmaps.numpy(), codec, refine)
    got = decode(heatmaps.to(device).contiguous(memory_format=memory_format), codec, refine=refine)
    torch.testing.assert_close(got[0].double().cpu(), torch.from_numpy(wanted), rtol=1e-4, atol=1e-4)
    assert torch.equal(got[1].cpu(), torch.from_numpy(scores).float())


@devices
@decodes
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), sizes, sizes),
    rounding=st.sampled_from(["none", "floor", "nearest"]),
    refine=st.sampled_from(["none", "quarter"]),
    dtype=st.sampled_from(DTYPES),
    memory_format=st.sampled_from(FORMATS),
    flip=st.sampled_from([None, False, True]),
    affine=st.booleans(),
    levels=st.sampled_from([2, 5, 1000]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_case_agrees_with_the_restatement(
    decode, device, shape, rounding, refine, dtype, memory_format, flip, affine, levels, seed
):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: (torch.randint(-levels, levels, shape, generator=generator) / levels).to(dtype)  # noqa: E731
    heatmaps, flipped = draw(), draw()
    permutation = torch.randperm(shape[1], generator=generator).tolist()
    to_image = torch.randn(shape[0], 2, 3, generator=generator) if affine else None
    codec = HeatmapCodec(rounding=rounding, image_size=(33, 20), heatmap_size=shape[2:])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    options, maps = {}, heatmaps.to(wide).numpy()
    if flip is not None:
        maps = restated.flip_average(maps, flipped.to(wide).numpy(), permutation, flip)
        other = FORMATS[seed % 2]  # need not be the heatmaps' own
        options = {"flipped": flipped.to(device).contiguous(memory_format=other), "shift_flipped": flip}
        options["flip_permutation"] = permutation
    wanted, scores = restated.decode(maps, codec, refine, None if to_image is None else to_image.double().numpy())
    heatmaps = heatmaps.to(device).contiguous(memory_format=memory_format)
    to_image = None if to_image is None else to_image.to(device)
    got = decode(heatmaps, codec, refine=refine, to_image=to_image, **options)
    torch.testing.assert_close(got[0].double().cpu(), torch.from_numpy(wanted), rtol=1e-5, atol=1e-4)
    assert torch.equal(got[1].cpu(), torch.from_numpy(scores).float())


@devices
@decodes
class TestRefinement:
    def test_dark_finds_subpixel_centres(self, decode, device):
        generator = torch.Generator().manual_seed(5)
        keypoints = (torch.rand(4, 17, 2, generator=generator) * 200 + 28).to(device)
        coords, _ = decode(render_heatmaps(keypoints, codec=UNBIASED), UNBIASED, refine="dark")
        assert (coords - keypoints).abs().max() < 0.02
        coarse, _ = decode(render_heatmaps(keypoints, codec=UNBIASED), UNBIASED, refine="quarter")
        assert 0.5 < (coarse - keypoints).abs().max() < 2.1

    @formats
    @pytest.mark.parametrize("sigma", [2.0, 2.5, 3.0])
    def test_dark_is_mmposes(self, decode, device, sigma, memory_format):
        codec = HeatmapCodec(sigma=sigma, truncate=None, rounding="none", image_size=(96, 128), heatmap_size=(24, 32))
        generator = torch.Generator().manual_seed(6)
        keypoints = torch.rand(4, 5, 2, generator=generator) * torch.tensor([140.0, 108.0]) - 6
        heatmaps = render_heatmaps(keypoints, codec=codec) + 0.05 * torch.rand(4, 5, 24, 32, generator=generator)
        wanted, _ = restated.decode(heatmaps.numpy(), codec, "dark")
        got, _ = decode(heatmaps.to(device).contiguous(memory_format=memory_format), codec, refine="dark")
        torch.testing.assert_close(got.double().cpu(), torch.from_numpy(wanted), rtol=1e-4, atol=2e-3)

    def test_dark_stays_where_its_stencil_knows_the_map(self, decode, device):
        """A ridge that is all but straight: Newton's step is as long as may be."""
        random = np.random.default_rng(3)
        rows = torch.exp(-((torch.arange(64.0) - 30) ** 2) / 8)[:, None]
        ridges = rows * (1 + 1e-4 * torch.tensor(random.standard_normal((500, 1, 1, 64)).cumsum(-1))).float()
        coords, _ = decode(ridges.to(device), OFFICIAL, refine="dark")
        peaks, _ = decode(ridges.to(device), OFFICIAL, refine="none")
        steps = (coords - peaks).abs().amax(-1) / OFFICIAL.stride[0]
        assert steps.max() <= 2
        assert steps.max() > 0.5

    def test_dark_where_there_is_no_curvature(self, decode, device):
        flat = torch.ones(1, 1, 40, 40, device=device)
        flat[0, 0, :20] = 0  # first maximum on the left border: out of bounds for refinement
        codec = PLAIN.resized(40, 40)
        assert decode(flat, codec, refine="dark")[0].tolist() == [[[0, 20]]]

    def test_floored_centres_get_their_half_pixel_back(self, decode, device):
        codec = PAPER.resized(32, 8)
        for refine, peak in (("none", (3, 5)), ("quarter", (3, 5))):
            coords, _ = decode(maps_of({peak: 1.0}, device=device), codec, refine=refine)
            assert coords.tolist() == [[[14, 22]]]

    def test_rounded_targets_come_back(self, decode, device):
        keypoints = some_keypoints(device=device).clamp(0, 250)
        coords, scores = decode(render_heatmaps(keypoints), refine="none")
        assert (coords - keypoints).abs().max() <= 2
        assert (scores == 1).all()


@devices
@decodes
class TestFlipTest:
    def test_mirrored_picture_gives_the_same_joints(self, decode, device):
        keypoints = (some_keypoints(device=device).clamp(8, 240) / 4).round() * 4
        mirrored = keypoints.clone()
        mirrored[..., 0] = 252 - keypoints[..., 0]  # column x of the map is column 63 - x of the mirrored one
        mirrored = mirrored[:, list(FLIP_PERMUTATION)]
        coords, scores = decode(render_heatmaps(keypoints), refine="none", flipped=render_heatmaps(mirrored))
        assert torch.equal(coords, keypoints)
        assert (scores == 1).all()

    def test_shift_keeps_column_zero(self, decode, device):
        heatmaps, flipped = torch.zeros(2, 1, 1, 1, 8, device=device)
        flipped[..., 7] = 1  # mirrored back: column 0; shifted: columns 0 and 1
        codec = PLAIN.resized((1, 8), (1, 8))
        for shift, second in ((False, 0.0), (True, 0.5)):
            averaged = [
                decode(
                    heatmaps + torch.eye(8, device=device)[x] * 4,
                    codec,
                    refine="none",
                    flipped=flipped,
                    shift_flipped=shift,
                    flip_permutation=[0],
                )[1].item()
                for x in (0, 1, 2)
            ]
            assert averaged == [2.5, 2.0 + second, 2.0]


@devices
@formats
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("refine", ["none", "quarter", "dark"])
def test_operator_and_twin_agree(refine, dtype, memory_format, device):
    heatmaps = some_heatmaps(dtype=dtype, memory_format=memory_format, device=device)
    flipped = some_heatmaps(dtype=dtype, device=device).flip(0)
    to_image = torch.tensor([[[1.5, 0.2, 3.0], [-0.1, 1.4, -7.0]]], device=device).repeat(3, 1, 1)
    got = decode_heatmaps(heatmaps, refine=refine, flipped=flipped, to_image=to_image, shift_flipped=True)
    wanted = twin(heatmaps, refine=refine, flipped=flipped, to_image=to_image, shift_flipped=True)
    assert torch.equal(got[1], wanted[1])
    # On white noise DARK divides by curvatures next to zero.
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-4 if refine != "dark" else 1e-2, atol=1e-3)


@devices
def test_strided_inputs_and_threads_give_the_same_bits(device):
    whole, before = some_heatmaps(64, device=device), torch.get_num_threads()
    wanted = decode_heatmaps(whole[::2].contiguous(), flipped=whole[1::2].contiguous())
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            for heatmaps in (whole, whole.contiguous(memory_format=torch.channels_last)):
                got = decode_heatmaps(heatmaps[::2], flipped=heatmaps[1::2])
                assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    finally:
        torch.set_num_threads(before)


@devices
@decodes
@pytest.mark.parametrize("shape", [(0, 17, 64, 64), (2, 0, 64, 64)])
def test_empty_batches(decode, shape, device):
    heatmaps = torch.zeros(shape, device=device)
    permutation = range(shape[1])
    for flipped in (None, heatmaps):
        coords, scores = decode(heatmaps, flipped=flipped, flip_permutation=permutation)
        assert coords.shape == (*shape[:2], 2)
        assert scores.shape == shape[:2]


def test_the_result_carries_no_graph():
    coords, scores = decode_heatmaps(some_heatmaps().requires_grad_(), flipped=some_heatmaps().requires_grad_())
    assert not coords.requires_grad
    assert not scores.requires_grad


class TestBadInput:
    heatmaps = torch.zeros(2, 17, 64, 64)

    def test_heatmaps(self):
        with pytest.raises(ValueError, match=r"heatmaps of 64x64 pixels do not fit codec\.heatmap_size \(32, 32\)"):
            decode_heatmaps(self.heatmaps, OFFICIAL.resized(128, 32))
        with pytest.raises(TypeError, match=r"heatmaps must be float32.*got torch\.uint8"):
            decode_heatmaps(self.heatmaps.byte())
        with pytest.raises(ValueError, match=r"refine must be one of \['none', 'quarter', 'dark'\], got 'subpixel'"):
            decode_heatmaps(self.heatmaps, refine="subpixel")

    def test_flipped(self):
        with pytest.raises(ValueError, match=r"flipped must have shape \[2, 17, 64, 64\], like heatmaps"):
            decode_heatmaps(self.heatmaps, flipped=self.heatmaps[:1])
        with pytest.raises(TypeError, match=r"flipped must be torch\.float32, like heatmaps, got torch\.float16"):
            decode_heatmaps(self.heatmaps, flipped=self.heatmaps.half())
        with pytest.raises(ValueError, match="flip_permutation must be given for 5 joints"):
            decode_heatmaps(self.heatmaps[:, :5], flipped=self.heatmaps[:, :5])
        with pytest.raises(ValueError, match=r"flip_permutation must be a permutation of 0\.\.4"):
            decode_heatmaps(self.heatmaps[:, :5], flipped=self.heatmaps[:, :5], flip_permutation=[0, 1, 2, 3, 3])

    def test_to_image(self):
        with pytest.raises(ValueError, match=r"to_image must have shape \[2, 2, 3\], got \[2, 3\]"):
            decode_heatmaps(self.heatmaps, to_image=torch.zeros(2, 3))
        with pytest.raises(TypeError, match=r"to_image must be float32, got torch\.float64"):
            decode_heatmaps(self.heatmaps, to_image=torch.zeros(2, 2, 3).double())
        with pytest.raises(ValueError, match=r"to_image must be on the device of heatmaps \(cpu\), got meta"):
            decode_heatmaps(self.heatmaps, to_image=torch.zeros(2, 2, 3, device="meta"))
