"""The operators as citizens of torch: opcheck, compile, autocast, fake tensors, transforms, streams, graphs."""

import copy
import subprocess
import sys

import pytest
import torch
from ops_restated import FORMATS
from test_ops_loss import some_heatmaps, some_weights
from test_ops_prepare import some_images
from test_ops_render import devices, some_keypoints
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import hpe_fast.ops as ops
from hpe_fast.ops import OFFICIAL, PAPER, UNBIASED, library, native, reference
from hpe_fast.skeleton import FLIP_PERMUTATION

OPERATORS = torch.ops.hpe_fast
SMALL = OFFICIAL.resized((20, 28), (5, 7))


def small_heatmaps(device="cpu", dtype=torch.float32, memory_format=torch.contiguous_format):
    return some_heatmaps(2, 17, (5, 7), dtype, memory_format, device)


def samples(device="cpu"):
    """Arguments of every operator, by name: both formats, with and without the optional ones."""
    keypoints, weights = some_keypoints(2, device=device) / 10, some_weights(2, device=device)
    nchw, nhwc = (small_heatmaps(device, memory_format=memory_format) for memory_format in FORMATS)
    strided = some_heatmaps(4, 17, (5, 7), memory_format=FORMATS[1], device=device)[::2]
    images, ids = some_images(2, 4, 5, device=device), torch.arange(2, device=device)
    color, noise = torch.rand(2, 3, 4, device=device), torch.rand(2, device=device)
    scalar, joints = torch.tensor(2.0, device=device), torch.rand(2, 17, device=device)
    to_image, flip = torch.rand(2, 2, 3, device=device), list(FLIP_PERMUTATION)
    codec, half = SMALL.params, nhwc.bfloat16()
    return {
        "render_heatmaps": [
            (keypoints, weights, codec, 5, 7, torch.float32, False),
            (keypoints, None, codec, 5, 7, torch.bfloat16, True),
        ],
        "heatmap_mse": [
            (nchw, keypoints, weights, codec, False),
            (nhwc, keypoints, None, codec, True),
            (strided, keypoints, None, codec, False),
            (half, keypoints, weights, codec, False),
        ],
        "heatmap_mse_backward": [
            (scalar, nchw, keypoints, weights, codec, False),
            (joints, nhwc, keypoints, None, codec, True),
            (joints, strided, keypoints, None, codec, True),
        ],
        "heatmap_mse_and_grad": [
            (nchw, keypoints, weights, codec, 1.0),
            (half, keypoints, None, codec, 0.5),
            (strided, keypoints, None, codec, 0.5),
        ],
        "decode_heatmaps": [
            (nchw, None, None, codec, 1, False, []),
            (nhwc, nhwc, to_image, codec, 2, True, flip),
            (half, strided.bfloat16(), None, codec, 0, False, flip),
        ],
        "prepare_images": [
            (images, None, None, None, [0.5] * 3, [0.2] * 3, 0, torch.float32),
            (images, color, noise, ids, [0.5] * 3, [0.2] * 3, 2**40, torch.bfloat16),
        ],
    }


CASES = [(name, index) for name, cases in samples().items() for index in range(len(cases))]
cases = pytest.mark.parametrize(("name", "index"), CASES, ids=lambda value: str(value))


@devices
@pytest.mark.parametrize("grad", [False, True], ids=["constant", "requires_grad"])
@cases
def test_opcheck(name, index, grad, device):
    arguments = copy.deepcopy(samples(device)[name][index])
    if grad:
        floating = [a for a in arguments if isinstance(a, torch.Tensor) and a.is_floating_point()]
        if not floating:
            pytest.skip("nothing to differentiate")
        floating[0].requires_grad_()
    tests = ["test_schema", "test_faketensor"] + ["test_autograd_registration"] * grad
    if name != "heatmap_mse_backward" or not grad:  # the second derivative is an error by intention
        tests.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(OPERATORS, name).default, arguments, test_utils=tests)


@cases
def test_meta_tensors_have_the_real_shapes_and_strides(name, index):
    arguments = samples()[name][index]
    real = getattr(OPERATORS, name)(*arguments)
    meta = getattr(OPERATORS, name)(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments))
    for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (real, meta)), strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def public_calls(device="cpu"):
    """Every public function on a batch, as a function of (heatmaps, keypoints, images)."""
    to_image = torch.rand(2, 2, 3, device=device)
    return {
        "render": lambda h, k, i: ops.render_heatmaps(k, codec=SMALL),
        "render nhwc": lambda h, k, i: ops.render_heatmaps(k, codec=SMALL, memory_format=torch.channels_last),
        "loss": lambda h, k, i: ops.heatmap_mse_loss(h, k, codec=SMALL),
        "per joint": lambda h, k, i: ops.heatmap_mse_loss(h * 2, k, codec=SMALL, per_joint=True).sum(),
        "loss and grad": lambda h, k, i: ops.heatmap_mse_loss_and_grad(h, k, codec=SMALL),
        "decode": lambda h, k, i: ops.decode_heatmaps(h, SMALL),
        "decode all": lambda h, k, i: ops.decode_heatmaps(h, SMALL, refine="dark", flipped=h, to_image=to_image),
        "prepare": lambda h, k, i: ops.prepare_images(i),
        "prepare noisy": lambda h, k, i: ops.prepare_images(i, noise_std=0.1, dtype=torch.bfloat16),
    }


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def compare_with_eager(function, compiled, device, memory_format):
    """Values and, where there are any, gradients."""
    keypoints, images = some_keypoints(2, device=device) / 10, some_images(2, 4, 5, device=device)
    results = []
    for call in (function, compiled):
        heatmaps = small_heatmaps(device, memory_format=memory_format).requires_grad_()
        result = call(heatmaps, keypoints, images)
        if isinstance(result, torch.Tensor) and result.requires_grad:
            (3 * result).backward()
        results.append((result, heatmaps.grad))
    assert_same(*results)


@devices
@pytest.mark.parametrize("memory_format", FORMATS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", public_calls())
def test_compiles_in_one_graph(name, memory_format, device):
    torch._dynamo.reset()
    function = public_calls(device)[name]
    compare_with_eager(function, torch.compile(function, fullgraph=True, backend="aot_eager"), device, memory_format)


@devices
@pytest.mark.slow
def test_compiles_with_inductor(device):
    torch._dynamo.reset()

    def step(heatmaps, keypoints, images):
        scaled = torch.nn.functional.relu(heatmaps) * 1.5 + images.float().mean() * 0
        return ops.heatmap_mse_loss(scaled, keypoints, codec=SMALL) + ops.decode_heatmaps(scaled, SMALL)[1].sum() * 0

    keypoints, images = some_keypoints(2, device=device) / 10, some_images(2, 4, 5, device=device)
    for memory_format in FORMATS:
        grads = []
        for call in (step, torch.compile(step, fullgraph=True)):
            heatmaps = small_heatmaps(device, memory_format=memory_format).requires_grad_()
            loss = call(heatmaps, keypoints, images)
            loss.backward()
            grads.append((loss.detach(), heatmaps.grad))
        torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-9)


@devices
def test_compiles_once_for_every_batch_size(device):
    torch._dynamo.reset()
    function = torch.compile(ops.heatmap_mse_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 3, 5):
        heatmaps, keypoints = some_heatmaps(batch, device=device), some_keypoints(batch, device=device)
        assert_same(function(heatmaps, keypoints), ops.heatmap_mse_loss(heatmaps, keypoints))


@pytest.mark.parametrize("name", ["heatmap_mse", "heatmap_mse_and_grad", "decode_heatmaps", "render_heatmaps"])
def test_twins_compile_in_one_graph(name):
    torch._dynamo.reset()
    twin = getattr(reference, name)
    arguments = samples()[name][0]
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), twin(*arguments))


@cases
def test_twins_copy_nothing_from_the_host(name, index):
    """So that they can be captured in a CUDA graph, too, where no kernels were built."""

    class Listener(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            heard.add(str(function))
            return function(*args, **(kwargs or {}))

    heard, arguments = set(), samples()[name][index]
    with Listener():
        getattr(reference, name)(*arguments)
    assert not [f for f in heard if "lift_fresh" in f or "local_scalar" in f or "where.Scalar" in f or "nonzero" in f]


@devices
def test_autocast_uses_tensors_as_they_come(device):
    weight = torch.randn(17, 8, 1, 1, device=device, requires_grad=True)
    keypoints = some_keypoints(2, device=device) / 10
    with torch.autocast(device, torch.bfloat16):
        heatmaps = torch.nn.functional.conv2d(torch.randn(2, 8, 5, 7, device=device), weight)
        loss = ops.heatmap_mse_loss(heatmaps, keypoints, codec=SMALL)
        _, grad, _ = ops.heatmap_mse_loss_and_grad(heatmaps, keypoints, codec=SMALL)
        compiled = torch.compile(ops.heatmap_mse_loss, fullgraph=True, backend="aot_eager")
        assert_same(compiled(heatmaps.detach(), keypoints, codec=SMALL), loss.detach())
    assert heatmaps.dtype == grad.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    loss.backward()
    assert weight.grad.dtype == torch.float32


class TestSkippingTheDispatcher:
    """Plain calls go past it; whatever listens there must be heard."""

    heatmaps, keypoints = small_heatmaps(), some_keypoints(2) / 10

    def loss(self, heatmaps=None):
        return ops.heatmap_mse_loss(self.heatmaps if heatmaps is None else heatmaps, self.keypoints, codec=SMALL)

    def test_plain_tensors_are_plain(self):
        assert library.is_plain(self.heatmaps)
        assert library.is_plain(torch.nn.Parameter(self.heatmaps))
        assert not library.is_plain(self.heatmaps.to("meta"))

    @pytest.mark.parametrize("per_joint", [False, True])
    def test_both_ways_record_the_same(self, per_joint):
        results = []
        for call in (library.HeatmapMSE.apply, library.heatmap_mse, OPERATORS.heatmap_mse):
            heatmaps = self.heatmaps.clone().requires_grad_(call is not library.heatmap_mse)
            loss = call(heatmaps, self.keypoints, None, SMALL.params, per_joint)
            if loss.requires_grad:
                loss.sum().backward()
                results.append(heatmaps.grad)
            assert_same(
                loss.detach(), OPERATORS.heatmap_mse(self.heatmaps, self.keypoints, None, SMALL.params, per_joint)
            )
        assert_same(*results)

    def test_fake_tensors(self):
        with FakeTensorMode() as mode:
            heatmaps, keypoints = (mode.from_tensor(t) for t in (self.heatmaps, self.keypoints))
            coords, scores = ops.decode_heatmaps(heatmaps, SMALL)
            loss = ops.heatmap_mse_loss(heatmaps, keypoints, codec=SMALL)
        assert type(coords) is type(loss) is type(scores) is type(heatmaps)

    def test_tracing(self):
        from torch.fx.experimental.proxy_tensor import make_fx

        graph = make_fx(lambda h: ops.decode_heatmaps(h, SMALL)[0])(self.heatmaps)
        assert OPERATORS.decode_heatmaps.default in [node.target for node in graph.graph.nodes]

    def test_modes(self):
        class Listener(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                heard.append(function)
                return function(*args, **(kwargs or {}))

        heard = []
        with Listener():
            self.loss()
        assert OPERATORS.heatmap_mse.default in heard

    def test_vmap(self):
        stacked = torch.stack([self.heatmaps, 2 * self.heatmaps])
        got = torch.vmap(self.loss)(stacked)
        torch.testing.assert_close(got, torch.stack([self.loss(maps) for maps in stacked]))

    def test_subclasses(self):
        class Labelled(torch.Tensor):
            pass

        assert not library.is_plain(self.heatmaps.as_subclass(Labelled))
        assert_same(self.loss(self.heatmaps.as_subclass(Labelled)).as_subclass(torch.Tensor), self.loss())

    def test_export(self):
        class Decoder(torch.nn.Module):
            def forward(self, heatmaps):
                return ops.decode_heatmaps(heatmaps, SMALL)

        program = torch.export.export(Decoder(), (self.heatmaps,))
        assert_same(program.module()(self.heatmaps), ops.decode_heatmaps(self.heatmaps, SMALL))

    def test_without_private_hooks_calls_go_through_the_dispatcher(self, monkeypatch):
        monkeypatch.setattr(library, "_dispatch_modes", lambda: 1)
        assert not library.is_plain(self.heatmaps)
        assert_same(self.loss(), self.loss())


def test_inference_mode():
    with torch.inference_mode():
        heatmaps, keypoints = small_heatmaps(), some_keypoints(2) / 10
        loss = ops.heatmap_mse_loss(heatmaps, keypoints, codec=SMALL)
        assert_same(loss, ops.heatmap_mse_loss_and_grad(heatmaps, keypoints, codec=SMALL)[0])
        assert ops.decode_heatmaps(heatmaps, SMALL)[0].is_inference()


def test_calls_from_many_threads_agree():
    from concurrent.futures import ThreadPoolExecutor

    heatmaps, keypoints = some_heatmaps(16), some_keypoints(16)
    call = lambda codec: ops.heatmap_mse_loss_and_grad(heatmaps, keypoints, codec=codec)  # noqa: E731
    codecs = [OFFICIAL, PAPER, UNBIASED] * 6
    with ThreadPoolExecutor(4) as pool:
        for codec, result in zip(codecs, pool.map(call, codecs), strict=True):
            assert_same(result, call(codec))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
class TestCuda:
    def test_kernels_are_there(self):
        if native.backend_name() == "auto":
            assert native.cuda() is not None

    @pytest.mark.parametrize("name", public_calls())
    def test_capture_and_replay(self, name):
        function = public_calls("cuda")[name]
        heatmaps, keypoints, images = (
            small_heatmaps("cuda"),
            some_keypoints(2, device="cuda") / 10,
            some_images(2, 4, 5),
        )
        images = images.cuda()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream), torch.no_grad():
            function(heatmaps, keypoints, images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            result = function(heatmaps, keypoints, images)
        for seed in (1, 2):
            torch.manual_seed(seed)
            heatmaps.copy_(torch.randn_like(heatmaps))
            keypoints.copy_(torch.rand_like(keypoints) * 28)
            images.copy_(torch.randint_like(images, 256))
            graph.replay()
            with torch.no_grad():
                assert_same(result, function(heatmaps, keypoints, images))

    def test_capture_of_a_training_step(self):
        heatmaps, keypoints = small_heatmaps("cuda").requires_grad_(), some_keypoints(2, device="cuda") / 10
        heatmaps.grad = torch.zeros_like(heatmaps)

        def step():
            heatmaps.grad.zero_()
            prediction = heatmaps * 2
            loss, grad, _ = ops.heatmap_mse_loss_and_grad(prediction, keypoints, codec=SMALL)
            torch.autograd.backward([prediction], [grad])
            return loss

        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = step()
        with torch.no_grad():
            heatmaps.mul_(2)
        graph.replay()
        wanted, grad, _ = ops.heatmap_mse_loss_and_grad(heatmaps * 2, keypoints, codec=SMALL)
        assert_same((loss, heatmaps.grad), (wanted, 2 * grad))

    def test_the_current_stream_is_used(self):
        stream, keypoints = torch.cuda.Stream(), some_keypoints(64, device="cuda")
        wanted = ops.heatmap_mse_loss(torch.ones(64, 17, 64, 64, device="cuda"), keypoints)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            heatmaps = torch.zeros(64, 17, 64, 64, device="cuda")
            torch.cuda._sleep(50_000_000)
            heatmaps.fill_(1)
            got = ops.heatmap_mse_loss(heatmaps, keypoints)  # on another stream it would see zeros
        stream.synchronize()
        assert_same(got, wanted)

    def test_cpu_and_cuda_agree(self):
        heatmaps, keypoints = some_heatmaps(), some_keypoints()
        on_cpu = ops.heatmap_mse_loss_and_grad(heatmaps, keypoints)
        on_cuda = ops.heatmap_mse_loss_and_grad(heatmaps.cuda(), keypoints.cuda())
        for a, b in zip(on_cpu, on_cuda, strict=True):
            torch.testing.assert_close(b.cpu(), a, rtol=1e-5, atol=1e-9)
        assert_same(ops.decode_heatmaps(heatmaps.cuda())[0].cpu(), ops.decode_heatmaps(heatmaps)[0])

    def test_float64_runs_the_twin(self):
        heatmaps, keypoints = small_heatmaps("cuda", torch.float64), some_keypoints(2, device="cuda") / 10
        assert ops.heatmap_mse_loss(heatmaps, keypoints, codec=SMALL).dtype == torch.float64

    def test_joints_on_the_other_device(self):
        with pytest.raises(ValueError, match=r"keypoints must be on the device of heatmaps \(cuda:0\), got cpu"):
            ops.heatmap_mse_loss(small_heatmaps("cuda"), some_keypoints(2), codec=SMALL)


FORKED = """
import os, torch
from hpe_fast import ops
torch.set_num_threads(2)
torch.ones(1 << 22).exp_()  # torch's pool runs, none of our kernels has
child = os.fork()
if not child:
    ops.render_heatmaps(torch.zeros(256, 17, 2))
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_does_not_wait_for_threads_that_are_not_there():
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=120)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_no_noise(dtype):
    images = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
    expected = ops.prepare_images(images, noise_std=0.1, seed=3)
    torch.set_default_dtype(dtype)
    try:
        assert torch.equal(ops.prepare_images(images, noise_std=0.1, seed=3), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_negative_views_of_joints_and_weights_are_read_with_their_sign():
    heatmaps, keypoints = some_heatmaps(2, size=(16, 16)), some_keypoints(2) / 4
    weights = some_weights(2)
    plain = ops.heatmap_mse_loss(heatmaps, keypoints, weights, OFFICIAL.resized(64, 16))
    views = (torch._neg_view(-keypoints), torch._neg_view(-weights))
    assert torch.equal(ops.heatmap_mse_loss(heatmaps, *views, OFFICIAL.resized(64, 16)), plain)
