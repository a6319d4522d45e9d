"""render_heatmaps, and with it what a target is: every trap of the official code."""

import math

import ops_restated as restated
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ops_restated import DEVICES, DTYPES, FORMATS

from hpe_fast.ops import OFFICIAL, PAPER, UNBIASED, HeatmapCodec, reference, render_heatmaps

CODECS = {"official": OFFICIAL, "paper": PAPER, "unbiased": UNBIASED, "window": HeatmapCodec(rounding="none")}


def twin(keypoints, weights=None, codec=OFFICIAL, *, dtype=torch.float32, memory_format=torch.contiguous_format):
    channels_last = memory_format == torch.channels_last
    return reference.render_heatmaps(keypoints, weights, codec.params, *codec.heatmap_size, dtype, channels_last)


renders = pytest.mark.parametrize("render", [render_heatmaps, twin], ids=["operator", "twin"])
devices = pytest.mark.parametrize("device", DEVICES)


def one(render, x, y, weight=1.0, codec=OFFICIAL, device="cpu"):
    """Map [H, W] of one joint at heatmap pixel (x, y)."""
    keypoints = torch.tensor([[[x * codec.stride[0], y * codec.stride[1]]]], device=device)
    return render(keypoints, torch.full((1, 1), weight, device=device), codec)[0, 0].cpu()


@devices
@renders
class TestTraps:
    def test_negative_centres_truncate_toward_zero(self, render, device):
        assert one(render, -1.2, 10, device=device)[10, 0] == 1  # floor(-1.2 + 0.5) would be -1
        assert one(render, 10, -1.49, device=device)[0, 10] == 1
        assert one(render, -1.5, 10, device=device)[10, 0] == pytest.approx(math.exp(-1 / 8))

    def test_centres_are_whole_pixels(self, render, device):
        assert one(render, 10.49, 20, device=device)[20, 10] == 1
        assert one(render, 10.5, 20, device=device)[20, 11] == 1
        assert torch.equal(one(render, 10.3, 20, device=device), one(render, 9.5, 20.4, device=device))

    def test_window_is_a_square(self, render, device):
        m = one(render, 30, 30, device=device)
        assert m[36, 36] == pytest.approx(math.exp(-72 / 8), rel=1e-5)
        assert m[30, 37] == m[37, 30] == m[30, 23] == m[23, 30] == 0
        assert (m > 0).sum() == 13 * 13

    def test_window_at_the_far_border(self, render, device):
        assert one(render, 64 + 5, 30, device=device)[30, 63] == pytest.approx(math.exp(-36 / 8), rel=1e-5)
        assert one(render, 64 + 6, 30, device=device).count_nonzero() == 0

    def test_window_at_the_near_border(self, render, device):
        assert one(render, -6.5, 30, device=device)[30, 0] == pytest.approx(math.exp(-36 / 8), rel=1e-5)
        assert one(render, -7.5, 30, device=device).count_nonzero() == 0

    def test_weight_gates_strictly_above_a_half(self, render, device):
        assert one(render, 30, 30, 0.5, device=device).count_nonzero() == 0
        assert one(render, 30, 30, 0.51, device=device).max() == 1
        assert one(render, 30, 30, 7.0, device=device).max() == 1

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_unknown_joints_draw_nothing(self, render, device, bad):
        for codec in CODECS.values():
            assert one(render, bad, 30, codec=codec, device=device).count_nonzero() == 0
            assert one(render, 30, bad, codec=codec, device=device).count_nonzero() == 0
            assert one(render, 30, 30, bad, codec=codec, device=device).count_nonzero() == 0

    def test_paper_floors_and_covers_the_map(self, render, device):
        m = one(render, 10.9, 20.9, codec=PAPER, device=device)
        assert m[20, 10] == m.max() == pytest.approx(31.830989, rel=1e-6)
        assert m[20, 18] == pytest.approx(31.830989 * math.exp(-64 / 3), rel=1e-4)

    def test_unbiased_centre_lies_between_pixels(self, render, device):
        m = one(render, 10.25, 20.0, codec=UNBIASED, device=device)
        assert m[20, 10] == pytest.approx(math.exp(-(0.25**2) / 8), rel=1e-6)
        assert m[20, 11] == pytest.approx(math.exp(-(0.75**2) / 8), rel=1e-6)

    def test_nothing_is_denormal(self, render, device):
        m = one(render, 0, 0, codec=PAPER, device=device)
        assert m[m > 0].min() > 1e-30


sizes = st.integers(1, 21)
coordinate = st.one_of(st.floats(-60, 140, width=32), st.just(math.nan), st.floats(width=32))


@st.composite
def cases(draw):
    batch, joints, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(sizes), draw(sizes)
    codec = HeatmapCodec(
        sigma=draw(st.sampled_from([0.5, 1.0, math.sqrt(1.5), 2.0, 3.3])),
        amplitude=draw(st.sampled_from([1.0, 31.83])),
        truncate=draw(st.sampled_from([None, 1.0, 3.0])),
        rounding=draw(st.sampled_from(["none", "floor", "nearest"])),
        image_size=(draw(st.integers(1, 80)), draw(st.integers(1, 80))),
        heatmap_size=(height, width),
    )
    count = batch * joints
    xy = draw(st.lists(coordinate, min_size=2 * count, max_size=2 * count))
    weights = draw(st.lists(st.sampled_from([0.0, 0.4, 0.5, 0.6, 1.0, 1.5]), min_size=count, max_size=count))
    return codec, torch.tensor(xy).view(batch, joints, 2), torch.tensor(weights).view(batch, joints)


@devices
@renders
@given(case=cases(), memory_format=st.sampled_from(FORMATS))
@settings(max_examples=60, deadline=None)
@example(case=(OFFICIAL, torch.zeros(0, 17, 2), torch.zeros(0, 17)), memory_format=torch.contiguous_format)
@example(case=(OFFICIAL, torch.zeros(2, 0, 2), torch.zeros(2, 0)), memory_format=torch.channels_last)
def test_any_case_agrees_with_the_restatement(render, device, case, memory_format):
    codec, keypoints, weights = case
    got = render(keypoints.to(device), weights.to(device), codec, memory_format=memory_format)
    assert got.shape == (*keypoints.shape[:2], *codec.heatmap_size)
    assert got.is_contiguous(memory_format=memory_format)
    wanted, _ = restated.targets(keypoints, weights, codec)
    torch.testing.assert_close(got.double().cpu(), torch.from_numpy(wanted), rtol=2e-5, atol=2e-6 * codec.amplitude)


def some_keypoints(batch=3, joints=17, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, joints, 2, generator=generator) * 320 - 32).to(device)


@devices
@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_formats_and_dtypes_hold_the_same_numbers(codec, device):
    keypoints = some_keypoints(device=device)
    full = render_heatmaps(keypoints, codec=codec)
    assert torch.equal(full, render_heatmaps(keypoints, codec=codec, memory_format=torch.channels_last))
    assert torch.equal(full, render_heatmaps(keypoints, torch.ones(3, 17, device=device), codec))
    torch.testing.assert_close(full, twin(keypoints, codec=codec), rtol=2e-6, atol=1e-6)
    for dtype in DTYPES:
        for memory_format in FORMATS:
            got = render_heatmaps(keypoints, codec=codec, dtype=dtype, memory_format=memory_format)
            assert got.dtype == dtype
            if dtype == torch.float64:  # wider products of the same axis values
                torch.testing.assert_close(got.float(), full, rtol=1e-6, atol=1e-7)
            else:
                assert torch.equal(got, full.to(dtype))


@devices
def test_strided_converted_and_repeated_inputs_give_the_same_bits(device):
    keypoints = some_keypoints(8, device=device)
    wanted = render_heatmaps(keypoints[::2].contiguous())
    assert torch.equal(render_heatmaps(keypoints[::2]), wanted)
    assert torch.equal(render_heatmaps(keypoints[::2].double()), wanted)
    assert torch.equal(render_heatmaps(keypoints[::2], torch.ones(4, 17, dtype=torch.bool, device=device)), wanted)
    assert torch.equal(render_heatmaps(keypoints[::2].mT.contiguous().mT), wanted)


def test_threads_do_not_change_a_bit():
    keypoints, before = some_keypoints(64), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(render_heatmaps(keypoints, memory_format=torch.channels_last))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


class TestBadInput:
    def test_types(self):
        with pytest.raises(TypeError, match=r"keypoints must be a torch\.Tensor, got list"):
            render_heatmaps([[[1.0, 2.0]]])
        with pytest.raises(TypeError, match=r"keypoints must be a floating dtype, got torch\.int64"):
            render_heatmaps(torch.zeros(1, 17, 2, dtype=torch.int64))
        with pytest.raises(TypeError, match="codec must be a HeatmapCodec, got str"):
            render_heatmaps(torch.zeros(1, 17, 2), codec="official")
        with pytest.raises(TypeError, match=r"dtype must be float32.*got torch\.int8"):
            render_heatmaps(torch.zeros(1, 17, 2), dtype=torch.int8)
        with pytest.raises(TypeError, match=r"weights must be a floating dtype, bool or uint8, got torch\.int32"):
            render_heatmaps(torch.zeros(1, 17, 2), torch.zeros(1, 17, dtype=torch.int32))

    def test_values(self):
        with pytest.raises(ValueError, match=r"keypoints must have shape \[B, J, 2\], got \[17, 2\]"):
            render_heatmaps(torch.zeros(17, 2))
        with pytest.raises(ValueError, match=r"keypoints must have shape \[B, J, 2\], got \[1, 17, 3\]"):
            render_heatmaps(torch.zeros(1, 17, 3))
        with pytest.raises(ValueError, match=r"weights must have shape \[1, 17\], one a joint, got \[1, 17, 1\]"):
            render_heatmaps(torch.zeros(1, 17, 2), torch.zeros(1, 17, 1))
        with pytest.raises(ValueError, match="memory_format must be"):
            render_heatmaps(torch.zeros(1, 17, 2), memory_format=torch.preserve_format)
        with pytest.raises(ValueError, match=r"weights must be on the device of keypoints \(cpu\), got meta"):
            render_heatmaps(torch.zeros(1, 17, 2), torch.zeros(1, 17, device="meta"))
        with pytest.raises(ValueError, match=r"keypoints must not require grad.*keypoints\.detach"):
            render_heatmaps(torch.zeros(1, 17, 2, requires_grad=True))
