"""heatmap_mse_loss and heatmap_mse_loss_and_grad."""

import math
import os

import ops_restated as restated
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ops_restated import DEVICES, DTYPES, FORMATS, TOLERANCE
from test_ops_render import CODECS, cases, devices, some_keypoints

from hpe_fast.ops import (
    OFFICIAL,
    PAPER,
    heatmap_mse_loss,
    heatmap_mse_loss_and_grad,
    native,
    reference,
    render_heatmaps,
)


def twin(heatmaps, keypoints, weights=None, codec=OFFICIAL, *, per_joint=False):
    return reference.heatmap_mse(heatmaps, keypoints, weights, codec.params, per_joint)


def twin_and_grad(heatmaps, keypoints, weights=None, codec=OFFICIAL, *, grad_scale=1.0):
    return reference.heatmap_mse_and_grad(heatmaps, keypoints, weights, codec.params, grad_scale)


losses = pytest.mark.parametrize("loss", [heatmap_mse_loss, twin], ids=["operator", "twin"])
one_pass = pytest.mark.parametrize(
    "loss_and_grad", [heatmap_mse_loss_and_grad, twin_and_grad], ids=["operator", "twin"]
)


def some_heatmaps(
    batch=3, joints=17, size=(64, 64), dtype=torch.float32, memory_format=torch.contiguous_format, device="cpu"
):
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(batch, joints, *size, generator=generator)
    return maps.to(device, dtype).contiguous(memory_format=memory_format)


def some_weights(batch=3, joints=17, device="cpu"):
    return torch.rand(batch, joints, generator=torch.Generator().manual_seed(2)).mul(4).round().div(2).to(device)


def gradient(loss, heatmaps, *args, **options):
    heatmaps = heatmaps.detach().requires_grad_()
    value = loss(heatmaps, *args, **options)
    value.sum().backward()
    return value.detach(), heatmaps.grad


@devices
@losses
class TestWeights:
    """What a joint counts on maps of ones, where an empty target costs 1."""

    def cost(self, loss, x, y, weight, device):
        keypoints = torch.tensor([[[4.0 * x, 4.0 * y]]], device=device)
        ones = torch.ones(1, 1, 64, 64, device=device)
        return loss(ones, keypoints, torch.full((1, 1), weight, device=device), per_joint=True).item()

    def test_a_window_that_ends_at_the_border_keeps_its_weight(self, loss, device):
        assert self.cost(loss, -7.5, 30, 1.0, device) == 1  # bottom right corner at 0: not off the map for `br < 0`
        assert self.cost(loss, 30, -7.5, 1.0, device) == 1
        assert self.cost(loss, -8.5, 30, 1.0, device) == 0
        assert self.cost(loss, 30, -8.5, 1.0, device) == 0

    def test_the_far_border_is_not_strict(self, loss, device):
        assert self.cost(loss, 64 + 6, 30, 1.0, device) == 0
        assert self.cost(loss, 30, 64 + 6, 1.0, device) == 0
        assert 0.9 < self.cost(loss, 64 + 5, 30, 1.0, device) < 1

    def test_light_joints_cost_their_weight_against_an_empty_map(self, loss, device):
        assert self.cost(loss, 30, 30, 0.5, device) == 0.5
        assert self.cost(loss, 30, 30, 0.25, device) == 0.25
        assert self.cost(loss, 30, 30, 0.0, device) == 0
        assert 0.9 < self.cost(loss, 30, 30, 1.0, device) < 1
        assert self.cost(loss, 30, 30, 2.0, device) == pytest.approx(2 * self.cost(loss, 30, 30, 1.0, device))

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_unknown_joints_cost_nothing(self, loss, device, bad):
        assert self.cost(loss, bad, 30, 1.0, device) == self.cost(loss, 30, bad, 1.0, device) == 0
        assert self.cost(loss, 30, 30, bad, device) == 0


@devices
@losses
@given(case=cases(), memory_format=st.sampled_from(FORMATS), dtype=st.sampled_from(DTYPES))
@settings(max_examples=60, deadline=None)
@example(case=(OFFICIAL, torch.full((1, 1, 2), -30.0), torch.ones(1, 1)), memory_format=FORMATS[1], dtype=torch.float32)
def test_any_case_agrees_with_the_restatement(loss, device, case, memory_format, dtype):
    codec, keypoints, weights = case
    heatmaps = some_heatmaps(*keypoints.shape[:2], codec.heatmap_size, dtype, memory_format)
    wanted, wanted_grad = restated.mse(heatmaps, keypoints, weights, codec)
    on_device = heatmaps.to(device), keypoints.to(device), weights.to(device)
    got, grad = gradient(loss, *on_device, codec)
    per_joint = loss(*on_device, codec, per_joint=True)
    assert got.dtype == per_joint.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert grad.dtype == dtype
    assert grad.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(per_joint.double().cpu(), torch.from_numpy(wanted), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.item(), float(wanted.mean()), rtol=1e-5, atol=1e-6)
    rtol, atol = TOLERANCE[dtype]
    scale = codec.amplitude / heatmaps.numel()
    torch.testing.assert_close(grad.double().cpu(), torch.from_numpy(wanted_grad), rtol=rtol, atol=10 * atol * scale)


@devices
@pytest.mark.parametrize("memory_format", FORMATS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_one_pass_and_three_agree_with_the_twin(codec, dtype, memory_format, device):
    heatmaps = some_heatmaps(dtype=dtype, memory_format=memory_format, device=device)
    keypoints, weights = some_keypoints(device=device), some_weights(device=device)
    wanted_loss, wanted_grad, wanted_joints = twin_and_grad(heatmaps, keypoints, weights, codec)
    loss, grad, per_joint = heatmap_mse_loss_and_grad(heatmaps, keypoints, weights, codec)
    recorded, recorded_grad = gradient(heatmap_mse_loss, heatmaps, keypoints, weights, codec)
    assert loss.shape == ()
    assert grad.dtype == recorded_grad.dtype == dtype
    assert grad.stride() == recorded_grad.stride() == heatmaps.stride()
    for value in (loss, recorded):
        torch.testing.assert_close(value, wanted_loss, rtol=5e-6, atol=0)
    torch.testing.assert_close(per_joint, wanted_joints, rtol=5e-6, atol=0)
    rtol, _ = TOLERANCE[dtype]
    smallest = 6.1e-8 if dtype == torch.float16 else 0  # one step between its denormals
    for value in (grad, recorded_grad):
        torch.testing.assert_close(value, wanted_grad, rtol=rtol, atol=smallest + 1e-5 * codec.amplitude / grad.numel())


@devices
@one_pass
def test_grad_scale_scales_the_gradient_alone(loss_and_grad, device):
    heatmaps, keypoints = some_heatmaps(device=device), some_keypoints(device=device)
    loss, grad, per_joint = loss_and_grad(heatmaps, keypoints)
    scaled_loss, scaled_grad, scaled_joints = loss_and_grad(heatmaps, keypoints, grad_scale=4.0)
    assert torch.equal(loss, scaled_loss)
    assert torch.equal(per_joint, scaled_joints)
    assert torch.equal(4 * grad, scaled_grad)
    torch.testing.assert_close(per_joint.mean(), loss)


@devices
@losses
def test_per_joint_gradients_weigh_each_joint(loss, device):
    heatmaps, keypoints, weights = (
        some_heatmaps(device=device),
        some_keypoints(device=device),
        some_weights(device=device),
    )
    heatmaps.requires_grad_()
    factors = torch.rand(3, 17, device=device)
    (loss(heatmaps, keypoints, weights, per_joint=True) * factors).sum().backward()
    _, wanted = restated.mse(heatmaps, keypoints, weights, OFFICIAL)
    wanted = torch.from_numpy(wanted).to(device) * 3 * 17 * factors[..., None, None]
    torch.testing.assert_close(heatmaps.grad.double(), wanted, rtol=1e-5, atol=1e-9)


@devices
@losses
def test_official_joints_mse_loss_is_half_of_it(loss, device):
    heatmaps, keypoints = some_heatmaps(device=device), some_keypoints(device=device)
    weights = (some_weights(device=device) > 0.5).float()
    maps, w = (torch.from_numpy(a).to(device) for a in restated.targets(keypoints, weights, OFFICIAL))
    official = sum(
        0.5 * torch.nn.functional.mse_loss(heatmaps[:, j] * w[:, j, None, None], maps[:, j] * w[:, j, None, None])
        for j in range(17)
    )
    torch.testing.assert_close(2 * official.item() / 17, loss(heatmaps, keypoints, weights).item(), rtol=1e-5, atol=0)


@devices
@pytest.mark.parametrize("per_joint", [False, True])
@pytest.mark.parametrize("memory_format", FORMATS, ids=["nchw", "nhwc"])
def test_gradcheck(per_joint, memory_format, device):
    codec = PAPER.resized((28, 20), (7, 5))
    heatmaps = some_heatmaps(2, 3, (7, 5), torch.float64, memory_format, device).requires_grad_()
    keypoints = torch.tensor([[[3.0, 9.0], [-2.0, 40.0], [math.nan, 4.0]], [[10.0, 2.0], [19.0, 27.0], [6.0, 6.0]]])
    weights = torch.tensor([[1.0, 1.0, 1.0], [0.5, 2.0, 0.0]])
    keypoints, weights = keypoints.to(device), weights.to(device)
    assert torch.autograd.gradcheck(
        lambda h: heatmap_mse_loss(h, keypoints, weights, codec, per_joint=per_joint), (heatmaps,), atol=1e-6
    )


@devices
@losses
def test_a_perfect_prediction_costs_nothing(loss, device):
    keypoints = some_keypoints(device=device)
    value, grad = gradient(loss, render_heatmaps(keypoints), keypoints)
    assert value < 1e-12
    assert grad.abs().max() < 1e-9


@devices
def test_strided_and_converted_inputs_give_the_same_bits(device):
    whole = some_heatmaps(6, device=device)
    keypoints, weights = some_keypoints(6, device=device)[::2], some_weights(6, device=device)[::2]
    wanted = heatmap_mse_loss_and_grad(whole[::2].contiguous(), keypoints.contiguous(), weights.contiguous())
    channels_last = whole.contiguous(memory_format=torch.channels_last)
    for heatmaps in (whole[::2], channels_last[::2], whole.mT.contiguous().mT[::2]):
        got = heatmap_mse_loss_and_grad(heatmaps, keypoints.double(), weights.half())
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)
    got = heatmap_mse_loss_and_grad(whole[::2], keypoints, weights)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@devices
@pytest.mark.parametrize("memory_format", FORMATS, ids=["nchw", "nhwc"])
def test_run_to_run_is_bit_identical(memory_format, device):
    heatmaps, keypoints = (
        some_heatmaps(32, memory_format=memory_format, device=device),
        some_keypoints(32, device=device),
    )
    first = heatmap_mse_loss_and_grad(heatmaps, keypoints)
    for _ in range(3):
        again = heatmap_mse_loss_and_grad(heatmaps, keypoints)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("memory_format", FORMATS, ids=["nchw", "nhwc"])
def test_threads_do_not_change_a_bit(memory_format):
    if native.backend_name() == "torch":
        pytest.skip("torch's own sums depend on the number of threads")
    heatmaps, keypoints, before = (
        some_heatmaps(32, memory_format=memory_format),
        some_keypoints(32),
        torch.get_num_threads(),
    )
    try:
        results = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(
                (*heatmap_mse_loss_and_grad(heatmaps, keypoints), *gradient(heatmap_mse_loss, heatmaps, keypoints))
            )
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@devices
@pytest.mark.parametrize("shape", [(0, 17, 64, 64), (2, 0, 64, 64)])
def test_empty_batches(shape, device):
    heatmaps = torch.zeros(shape, device=device, requires_grad=True)
    keypoints = torch.zeros(*shape[:2], 2, device=device)
    loss, grad, per_joint = heatmap_mse_loss_and_grad(heatmaps, keypoints)
    assert loss.isnan()
    assert grad.shape == shape
    assert per_joint.shape == shape[:2]
    heatmap_mse_loss(heatmaps, keypoints).backward()
    assert heatmaps.grad.shape == shape
    assert heatmap_mse_loss(heatmaps, keypoints, per_joint=True).shape == shape[:2]


@devices
@pytest.mark.parametrize("shape", [(2, 1, 5, 7), (2, 3, 1, 1), (1, 1, 1, 1), (2, 3, 1, 7), (2, 3, 5, 1)])
def test_sizes_of_one_where_strides_mean_nothing(shape, device):
    codec = OFFICIAL.resized((4 * shape[2], 4 * shape[3]), shape[2:])
    keypoints = torch.zeros(*shape[:2], 2, device=device)
    plain = some_heatmaps(*shape[:2], shape[2:], device=device)
    wanted = heatmap_mse_loss_and_grad(plain, keypoints, codec=codec)
    for memory_format in FORMATS:
        strided = torch.empty_strided(shape, torch.empty(shape).to(memory_format=memory_format).stride(), device=device)
        got = heatmap_mse_loss_and_grad(strided.copy_(plain), keypoints, codec=codec)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_the_training_loops_way():
    heatmaps, keypoints = some_heatmaps().requires_grad_(), some_keypoints()
    doubled = heatmaps * 2
    _, grad, _ = heatmap_mse_loss_and_grad(doubled, keypoints)
    assert not grad.requires_grad
    torch.autograd.backward([doubled], [grad])
    torch.testing.assert_close(heatmaps.grad, 2 * grad)


def test_there_is_no_second_derivative():
    heatmaps = some_heatmaps().requires_grad_()
    (grad,) = torch.autograd.grad(heatmap_mse_loss(heatmaps, some_keypoints()), heatmaps, create_graph=True)
    with pytest.raises(NotImplementedError, match="double backward is not supported"):
        grad.sum().backward()


class TestBadInput:
    heatmaps, keypoints = torch.zeros(2, 17, 64, 64), torch.zeros(2, 17, 2)

    @pytest.mark.parametrize("function", [heatmap_mse_loss, heatmap_mse_loss_and_grad])
    def test_heatmaps(self, function):
        with pytest.raises(TypeError, match=r"heatmaps must be a torch\.Tensor, got ndarray"):
            function(self.heatmaps.numpy(), self.keypoints)
        with pytest.raises(
            TypeError, match=r"heatmaps must be float32, float16, bfloat16 or float64, got torch\.int64"
        ):
            function(self.heatmaps.long(), self.keypoints)
        with pytest.raises(ValueError, match=r"heatmaps must have shape \[B, J, H, W\], got \[17, 64, 64\]"):
            function(self.heatmaps[0], self.keypoints)
        with pytest.raises(
            ValueError, match=r"32x48 pixels do not fit codec.heatmap_size \(64, 64\); use codec\.resized"
        ):
            function(torch.zeros(2, 17, 32, 48), self.keypoints)

    @pytest.mark.parametrize("function", [heatmap_mse_loss, heatmap_mse_loss_and_grad])
    def test_joints(self, function):
        with pytest.raises(
            ValueError, match=r"keypoints must have shape \[2, 17, 2\], like heatmaps.*got \[2, 16, 2\]"
        ):
            function(self.heatmaps, self.keypoints[:, :16])
        with pytest.raises(ValueError, match=r"keypoints must be on the device of heatmaps \(cpu\), got meta"):
            function(self.heatmaps, self.keypoints.to("meta"))
        with pytest.raises(ValueError, match=r"weights must have shape \[2, 17\]"):
            function(self.heatmaps, self.keypoints, torch.zeros(2, 1))
        with pytest.raises(ValueError, match="weights must not require grad"):
            function(self.heatmaps, self.keypoints, torch.zeros(2, 17, requires_grad=True))
        with pytest.raises(TypeError, match="codec must be a HeatmapCodec, got list"):
            function(self.heatmaps, self.keypoints, None, OFFICIAL.params)

    @pytest.mark.parametrize("scale", [math.nan, math.inf, "1"])
    def test_grad_scale(self, scale):
        with pytest.raises(ValueError, match="grad_scale must be a finite number"):
            heatmap_mse_loss_and_grad(self.heatmaps, self.keypoints, grad_scale=scale)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_more_than_two_to_the_31_elements(device):
    batch = 2**31 // (17 * 64 * 64) + 2
    bytes_needed = 2 * 2 * batch * 17 * 64 * 64 + 2**30
    if device == "cpu":
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        free = torch.cuda.mem_get_info()[0]
    if free < bytes_needed or (device == "cpu" and native.backend_name() == "torch"):
        pytest.skip(f"needs {bytes_needed / 2**30:.0f} GiB and a kernel")
    keypoints = some_keypoints(batch, device=device)
    for memory_format in FORMATS:
        heatmaps = torch.zeros(batch, 17, 64, 64, dtype=torch.bfloat16, device=device).to(memory_format=memory_format)
        heatmaps[-1] = 1
        _, grad, per_joint = heatmap_mse_loss_and_grad(heatmaps, keypoints)
        small = heatmap_mse_loss_and_grad(heatmaps[-2:].clone(), keypoints[-2:], grad_scale=2 / batch)
        assert torch.equal(per_joint[-2:], small[2])
        torch.testing.assert_close(grad[-2:], small[1], rtol=8e-3, atol=0)
        del heatmaps, grad
