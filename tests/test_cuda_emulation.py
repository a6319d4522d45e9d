"""The CUDA kernels, compiled for the CPU against tests/cuda_emulation and compared with restatements in float64.

This needs a C++17 compiler and no GPU. It covers indexing, layouts, tails, barriers and reductions; only a GPU can tell
about speed and about nvcc's code. Under ``HPE_EMULATION_FLAGS="-fsanitize=address,undefined"`` (with libasan and
libubsan in ``LD_PRELOAD`` and ``ASAN_OPTIONS=detect_leaks=0``) it also finds accesses outside tensors or shared memory.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import shutil
import subprocess
from collections.abc import Iterator
from ctypes import c_bool, c_float, c_int, c_int64, c_uint64, c_void_p
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")]

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
RESOLUTION = {dtype: torch.finfo(dtype).eps for dtype in DTYPES}
ALIGNED = 8  # guard elements around a tensor; with one more, its base is not a multiple of 16 bytes
SHAPES = [
    (2, 17, 64, 64),
    (1, 17, 96, 72),
    (3, 17, 13, 11),  # no row is a multiple of 16 bytes
    (2, 1, 1, 1),
    (1, 3, 5, 8),  # fewer joints than a vector holds
    (2, 5, 40, 16),
    (1, 64, 9, 24),
    (1, 300, 3, 4),  # more joints than a block interleaves
    (1, 190, 4, 80),  # tables beyond shared memory
]


def structure(name: str, **fields: type) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


Maps = structure(
    "Maps", batch=c_int64, joints=c_int64, height=c_int64, width=c_int64, channels_last=c_bool, dtype=c_int
)
Codec = structure(
    "Codec", sigma=c_float, amplitude=c_float, radius=c_int, rounding=c_int, stride_x=c_float, stride_y=c_float
)
DecodeOptions = structure("DecodeOptions", refine=c_int, shift=c_bool, permutation=c_void_p)
Images = structure(
    "Images",
    **dict.fromkeys(("batch", "height", "width"), c_int64),
    dtype=c_int,
    seed=c_uint64,
    mean=c_float * 3,
    inv_std=c_float * 3,
)
NONE, FLOOR, NEAREST = range(3)  # of the centre
CODECS = {
    "official": Codec(2, 1, 6, NEAREST, 4, 4),
    "paper": Codec(1.5**0.5, 31.83, -1, FLOOR, 4, 3),
    "unbiased": Codec(2, 1, -1, NONE, 4, 4),
    "windowed": Codec(1, 2, 3, NONE, 2, 4),
}


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def guarded(tensor: torch.Tensor, guard: int) -> tuple[torch.Tensor, torch.Tensor]:
    """NaN memory with ``guard`` elements more at both ends, and the part of it that is laid out as ``tensor``."""
    memory = torch.full((tensor.numel() + 2 * guard,), math.nan).to(tensor.dtype)
    return memory, memory[guard:].as_strided(tensor.shape, tensor.stride())


def argument(value):
    if isinstance(value, torch.Tensor):
        return c_void_p(value.data_ptr())
    if isinstance(value, ctypes.Structure):
        return ctypes.byref(value)
    return c_float(value) if isinstance(value, float) else value


class Kernels:
    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def __call__(self, name: str, outputs: list[torch.Tensor], *inputs, guard: int = ALIGNED) -> list[torch.Tensor]:
        """Calls ``name(*outputs, *inputs)`` on guarded NaN in two orders of the threads, which must not matter."""
        results = []
        for order in (1, 2):
            self.library.set_order(order)
            memories, views = zip(*(guarded(out, guard) for out in outputs), strict=True)
            assert getattr(self.library, name)(*map(argument, (*views, *inputs))) == 0
            for memory in memories:
                assert torch.cat([memory[:guard], memory[-guard:]]).isnan().all(), "a write outside the output"
            results.append(views)
        for first, second in zip(*results, strict=True):
            assert np.array_equal(bits(first), bits(second)), "the order of the threads matters"
        return list(results[0])


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> Iterator[Kernels]:
    library, here = tmp_path_factory.mktemp("emulation") / "libemulation.so", ROOT / "tests" / "cuda_emulation"
    flags = [
        "-std=c++17",
        "-O2",
        "-g",
        "-fPIC",
        "-shared",
        "-ffp-contract=off",
        "-fno-strict-aliasing",
        "-Wno-unknown-pragmas",
        f"-I{here}",
    ]
    flags += os.environ.get("HPE_EMULATION_FLAGS", "").split()
    sources = [here / "emulation.cpp", "-x", "c++", *sorted((ROOT / "csrc" / "cuda").glob("*.cu"))]
    subprocess.run([COMPILER, *flags, "-o", library, *sources], check=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are small
    yield Kernels(ctypes.CDLL(str(library)))
    torch.set_num_threads(threads)


def axis(size: int, centre: float, codec) -> np.ndarray:
    exponent = (np.arange(size) - centre) ** 2 / (2 * codec.sigma**2)
    return np.where(exponent < 27.6310211, np.exp(-exponent), 0)


def target(x, y, weight, codec, height: int, width: int) -> tuple[np.ndarray, float]:
    """The map of one joint and its weight in the loss; x, y, weight are float32."""
    if not np.isfinite([x, y, weight]).all():
        return np.zeros((height, width)), 0.0
    centre = [np.float32(x) / np.float32(codec.stride_x), np.float32(y) / np.float32(codec.stride_y)]
    round_centre = {NONE: lambda c: c, FLOOR: np.floor, NEAREST: lambda c: np.trunc(c + np.float32(0.5))}
    cx, cy = (float(round_centre[codec.rounding](c)) for c in centre)
    drawn = codec.amplitude * np.outer(axis(height, cy, codec), axis(width, cx, codec))
    if codec.radius >= 0:
        mx, my = (math.trunc(c + (0.5 if codec.rounding == NONE else 0)) for c in (cx, cy))
        left, right, top, bottom = mx - codec.radius, mx + codec.radius + 1, my - codec.radius, my + codec.radius + 1
        if left >= width or top >= height or right < 0 or bottom < 0:
            weight = 0.0
        inside = np.zeros_like(drawn, bool)
        inside[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
        drawn = drawn * inside
    return drawn * (weight > 0.5), float(weight)


def targets(keypoints, weights, shape, codec) -> tuple[torch.Tensor, torch.Tensor]:
    batch, joints, height, width = shape
    weights = np.ones((batch, joints), np.float32) if weights is None else weights.numpy()
    pairs = [
        target(*keypoints[b, j].numpy(), weights[b, j], codec, height, width)
        for b, j in itertools.product(range(batch), range(joints))
    ]
    maps, weight = zip(*pairs, strict=True)
    return torch.tensor(np.stack(maps)).view(shape), torch.tensor(weight, dtype=torch.float64).view(batch, joints)


def case(shape, channels_last: bool, dtype, codec, guard: int = ALIGNED):
    """Keypoints on, off and at the edges of the map, weights, heatmaps near the target (all seeded), and their Maps."""
    batch, joints, height, width = shape
    random = torch.Generator().manual_seed(sum(shape))
    size = torch.tensor([width * codec.stride_x, height * codec.stride_y])
    keypoints = torch.rand(batch, joints, 2, generator=random) * (size + 60) - 30
    edges = [[math.nan, 3], [math.inf, 0], [1e30, 1], [-1, -1], [-26, 5], [-30, 5], [float(size[0]) + 22, 5]]
    rows = keypoints.view(-1, 2)[1:-1:2]
    rows[: len(edges)] = torch.tensor(edges)[: len(rows)]
    weights = torch.tensor([1, 0, 0.5, 0.75, 1.5])[torch.randint(5, (batch, joints), generator=random)]
    drawn, _ = targets(keypoints, weights, shape, codec)
    heatmaps = (drawn + 0.1 * codec.amplitude * torch.randn(shape, generator=random)).to(dtype)
    heatmaps = heatmaps.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    _, placed = guarded(heatmaps, guard)
    return keypoints, weights, placed.copy_(heatmaps), Maps(*shape, channels_last, DTYPES[dtype])


def codecs_for(dtype) -> list[tuple[str, int]]:
    """Names of codecs, each with a guard: all of them in float32, two in the others; one on misaligned memory."""
    return [("official", ALIGNED), ("paper", ALIGNED + 1)] + [
        (name, ALIGNED) for name in ("unbiased", "windowed") if dtype == torch.float32
    ]


every_layout = pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@every_layout
@every_dtype
@every_shape
def test_render(kernels, shape, dtype, channels_last):
    for name, guard in codecs_for(dtype):
        codec = CODECS[name]
        keypoints, weights, heatmaps, maps = case(shape, channels_last, dtype, codec)
        (rendered,) = kernels("render_heatmaps", [heatmaps], keypoints, weights, maps, codec, guard=guard)
        expected, _ = targets(keypoints, weights, shape, codec)
        torch.testing.assert_close(rendered.double(), expected, rtol=max(RESOLUTION[dtype], 1e-5), atol=1e-7)


def test_grid_of_several_rows(kernels):
    keypoints = torch.zeros(16400, 1, 2)
    keypoints[::3] = 1e4
    (rendered,) = kernels(
        "render_heatmaps", [torch.empty(16400, 1, 1, 1)], keypoints, None, Maps(16400, 1, 1, 1), CODECS["official"]
    )
    assert torch.equal(rendered.view(-1), (keypoints[:, 0, 0] == 0).float())


def mse(heatmaps, keypoints, weights, codec) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-joint losses, and the gradient of their sum."""
    drawn, weight = targets(keypoints, weights, heatmaps.shape, codec)
    difference = heatmaps.double() - drawn
    pixels = heatmaps.shape[2] * heatmaps.shape[3]
    return weight * difference.square().mean((2, 3)), 2 / pixels * weight[..., None, None] * difference


@every_layout
@every_dtype
@every_shape
def test_mse(kernels, shape, dtype, channels_last):
    for name, guard in codecs_for(dtype):
        codec = CODECS[name]
        keypoints, weights, heatmaps, maps = case(shape, channels_last, dtype, codec, guard)
        weights = None if name == "unbiased" else weights
        inputs, count = (heatmaps, keypoints, weights), shape[0] * shape[1]
        per_joint, gradient = mse(*inputs, codec)
        empty = [torch.empty(shape[:2]), torch.empty(())]
        close = {"rtol": 1e-5, "atol": 1e-6}
        forward = kernels("heatmap_mse", empty, *inputs, maps, codec, guard=guard)
        both = kernels("heatmap_mse_and_grad", [*empty, heatmaps], *inputs, 100.0, maps, codec, guard=guard)
        for losses, loss in (forward, both[:2]):
            torch.testing.assert_close(losses.double(), per_joint, **close)
            torch.testing.assert_close(loss.double(), per_joint.mean(), **close)
        close["rtol"] = max(RESOLUTION[dtype], 1e-5)
        torch.testing.assert_close(both[2].double(), 100 / count * gradient, **close)
        scale = torch.linspace(1, 2, count).view(shape[:2])
        (grad,) = kernels("heatmap_mse_backward", [heatmaps], scale, *inputs, 1, maps, codec, guard=guard)
        torch.testing.assert_close(grad.double(), scale[..., None, None] * gradient, **close)
        (grad,) = kernels("heatmap_mse_backward", [heatmaps], torch.tensor(50.0), *inputs, 0, maps, codec, guard=guard)
        torch.testing.assert_close(grad.double(), 50 / count * gradient, **close)


def test_nan_in_a_heatmap_reaches_its_joint_only(kernels):
    keypoints, _, heatmaps, maps = case((2, 17, 16, 16), True, torch.float32, CODECS["official"])
    heatmaps[1, 5, 3, 4] = math.nan
    empty = [torch.empty(2, 17), torch.empty(())]
    losses, loss = kernels("heatmap_mse", empty, heatmaps, keypoints, None, maps, CODECS["official"])
    assert loss.isnan()
    assert losses.isnan().nonzero().tolist() == [[1, 5]]


def averaged(heatmaps, flipped, permutation, shift: bool) -> np.ndarray:
    maps = heatmaps.float()
    if flipped is not None:
        back = flipped.float()[:, permutation].flip(3)
        if shift:
            back = torch.cat([back[..., :1], back[..., :-1]], 3)
        maps = 0.5 * (maps + back)
    return maps.numpy()


def dark_offset(maps: np.ndarray, x: int, y: int, sigma: float) -> np.ndarray:
    radius = round(2.5 * sigma)
    kernel = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * (0.3 * (radius - 1) + 0.8) ** 2))
    padded = np.pad(maps.astype(np.float64), radius + 2)[y : y + 2 * radius + 5, x : x + 2 * radius + 5]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * radius + 1,) * 2)
    v = np.log(np.maximum(windows @ (kernel / kernel.sum()) @ (kernel / kernel.sum()), 1e-10))
    gradient = 0.5 * np.array([v[2, 3] - v[2, 1], v[3, 2] - v[1, 2]])
    xy = 0.25 * (v[3, 3] - v[1, 3] - v[3, 1] + v[1, 1])
    xx, yy = 0.25 * (v[2, 4] - 2 * v[2, 2] + v[2, 0]), 0.25 * (v[4, 2] - 2 * v[2, 2] + v[0, 2])
    hessian = np.array([[xx, xy], [xy, yy]])
    step = -np.linalg.solve(hessian, gradient) if np.linalg.det(hessian) else np.zeros(2)
    return step if np.abs(step).max() <= 2 else np.zeros(2)


def decode_map(m: np.ndarray, codec, refine: int) -> tuple[np.ndarray, float]:
    height, width = m.shape
    if np.isnan(m).all():
        return np.zeros(2), math.nan
    y, x = np.unravel_index(np.argmax(m == np.nanmax(m)), m.shape)
    if not m[y, x] > 0:
        return np.zeros(2), m[y, x]
    point = np.array([x, y], np.float64)
    if refine == 1 and 1 < x < width - 1 and 1 < y < height - 1:
        steps = np.array([m[y, x + 1] - m[y, x - 1], m[y + 1, x] - m[y - 1, x]])
        point += 0.25 * np.sign(np.nan_to_num(steps))
    if refine == 2 and 1 < x < width - 2 and 1 < y < height - 2:
        point += dark_offset(np.nan_to_num(m), x, y, codec.sigma)
    return (point + 0.5 * (codec.rounding == FLOOR)) * [codec.stride_x, codec.stride_y], m[y, x]


def expected_decode(maps: np.ndarray, codec, refine: int, to_image) -> tuple[torch.Tensor, torch.Tensor]:
    batch, joints = maps.shape[:2]
    points, scores = zip(*(decode_map(m, codec, refine) for m in maps.reshape(-1, *maps.shape[2:])), strict=True)
    points = torch.tensor(np.stack(points)).view(batch, joints, 2)
    if to_image is not None:
        points = torch.einsum("bik,bjk->bji", to_image[:, :, :2].double(), points) + to_image[:, None, :, 2]
    return points, torch.tensor(np.array(scores)).view(batch, joints)


def check_decode(kernels, heatmaps, maps, codec, refine=0, flipped=None, shift=False, to_image=None, guard=ALIGNED):
    batch, joints = heatmaps.shape[:2]
    permutation = torch.randperm(joints, generator=torch.Generator().manual_seed(1)).to(torch.int32)
    options = DecodeOptions(refine, shift, permutation.data_ptr())
    outputs = [torch.empty(batch, joints, 2), torch.empty(batch, joints)]
    coords, scores = kernels("decode_heatmaps", outputs, heatmaps, flipped, to_image, options, maps, codec, guard=guard)
    average = averaged(heatmaps, flipped, permutation.long(), shift)
    points, best = expected_decode(average, codec, refine, to_image)
    assert torch.equal(scores.nan_to_num(9e9), best.float().nan_to_num(9e9))
    torch.testing.assert_close(coords.double(), points.double(), rtol=1e-5, atol=0.02 if refine == 2 else 1e-4)


@every_layout
@every_dtype
@every_shape
def test_decode_with_ties_and_nan(kernels, shape, dtype, channels_last):
    codec = CODECS["paper"]
    _, _, heatmaps, maps = case(shape, channels_last, dtype, codec, guard=ALIGNED + (shape[0] == 3))
    heatmaps.copy_((heatmaps.float() / 4).round())  # small integers: many equal maxima
    rows = heatmaps.permute(0, 2, 3, 1)
    rows[torch.rand(rows.shape, generator=torch.Generator().manual_seed(1)) < 0.1] = math.nan
    for j, value in enumerate([math.nan, -math.inf, 0, -1][: shape[1] - 1]):
        heatmaps[0, j] = value
    flipped = heatmaps.flip(0, 2)
    flipped = flipped.contiguous(memory_format=torch.channels_last) if channels_last else flipped
    to_image = torch.randn(shape[0], 2, 3)
    check_decode(kernels, heatmaps, maps, codec, refine=1, to_image=to_image)
    if shape[1] <= 256:
        for shift in (False, True):
            check_decode(kernels, heatmaps, maps, codec, refine=1, flipped=flipped, shift=shift)


@every_layout
@pytest.mark.parametrize("shape", [(2, 17, 64, 48), (2, 5, 19, 33), (1, 300, 12, 16)], ids=str)
def test_decode_dark(kernels, shape, channels_last):
    for codec in CODECS.values():
        keypoints, _, heatmaps, maps = case(shape, channels_last, torch.float32, codec)
        drawn, _ = targets(keypoints, None, shape, codec)
        heatmaps.copy_(drawn)
        check_decode(kernels, heatmaps, maps, codec, refine=2)
        if shape[1] <= 256:
            check_decode(kernels, heatmaps, maps, codec, refine=2, flipped=heatmaps, shift=True)


@every_dtype
@pytest.mark.parametrize("size", [(2, 33, 32), (3, 7, 5), (1, 1, 1), (2, 64, 64)], ids=str)
@pytest.mark.parametrize(("colored", "noisy"), [(False, False), (True, False), (True, True)])
def test_prepare(kernels, size, dtype, colored, noisy):
    batch, height, width = size
    count, seed = height * width * 3, 0x123456789ABCDEF
    images = torch.randint(256, (*size, 3), dtype=torch.uint8)
    color = torch.randn(batch, 3, 4) * torch.tensor([1, 1, 1, 60]) if colored else None
    noise_std = torch.tensor([0.0, 0.1, 0.5])[-batch:].contiguous() if noisy else None
    ids = torch.tensor([7, -1, 1 << 40])[:batch].contiguous()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    desc = Images(*size, DTYPES[dtype], seed, (c_float * 3)(*mean), (c_float * 3)(*(1 / s for s in std)))
    out = torch.empty(*size, 3, dtype=dtype)
    (prepared,) = kernels("prepare_images", [out], images, color, noise_std, ids, desc)
    value = images.double()
    if colored:
        value = torch.einsum("bik,bhwk->bhwi", color[:, :, :3].double(), value) + color[:, None, None, :, 3]
    value = value.clamp(0, 255) / 255
    for b in range(batch if noisy else 0):
        noise = torch.empty((count + 3) // 4 * 4)
        kernels.library.noise(argument(noise), c_uint64(seed), c_int64(int(ids[b])), c_int64(len(noise) // 4))
        value[b] += noise_std[b] * noise[:count].view(height, width, 3)
    expected = (value - torch.tensor(mean, dtype=torch.float64)) / torch.tensor(std, dtype=torch.float64)
    torch.testing.assert_close(prepared.double(), expected, rtol=max(RESOLUTION[dtype], 1e-5), atol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_picture_is_prepared_alike_in_any_batch(kernels, dtype):
    images, ids, std = torch.randint(256, (3, 9, 11, 3), dtype=torch.uint8), torch.arange(3), torch.full((3,), 0.2)
    one = (c_float * 3)(1, 1, 1)

    def prepare(rows):
        desc = Images(len(rows), 9, 11, DTYPES[dtype], 5, one, one)
        inputs = (images[rows].contiguous(), None, std[rows].contiguous(), ids[rows].contiguous())
        return kernels("prepare_images", [torch.empty(len(rows), 9, 11, 3, dtype=dtype)], *inputs, desc)[0]

    assert torch.equal(prepare([0, 1, 2])[1:], prepare([1, 2]))


def test_what_a_kernel_cannot_take_is_refused(kernels):
    float64, code = 3, 1  # cudaErrorInvalidValue
    codec, out = CODECS["official"], torch.empty(1)
    library = kernels.library
    assert library.render_heatmaps(*map(argument, (out, out, None, Maps(1, 1, 1, 1, False, float64), codec))) == code
    assert (
        library.heatmap_mse(*map(argument, (out, None, out, out, None, Maps(1, 1, 9000, 9000, False, 0), codec)))
        == code
    )
    assert library.render_heatmaps(*map(argument, (None, None, None, Maps(0, 17, 64, 64, False, 0), codec))) == 0
