"""Every operator with its rivals: what is timed, and that all of them compute the same."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks import official
from hpe_fast.ops import (
    IMAGENET,
    OFFICIAL,
    UNBIASED,
    decode_heatmaps,
    heatmap_mse_loss,
    heatmap_mse_loss_and_grad,
    prepare_images,
    reference,
    render_heatmaps,
)
from hpe_fast.ops.reference import REFINE_CODES
from hpe_fast.skeleton import NUM_JOINTS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
NOISE_STD = 0.05
_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
_OFFICIAL_BATCH = 32  # larger ones take seconds a call
_EXACT_NOISE_SAMPLES = 2

Result = tuple[Tensor, ...]


@dataclass(frozen=True)
class Spec:
    """What is measured: an operator on a batch."""

    operator: str
    batch: int
    dtype: str = "float32"
    layout: str = "nchw"
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.operator}-{self.batch}-{self.dtype}-{self.layout}"


@dataclass(frozen=True)
class Rival:
    """A way to compute it; ``result`` makes of what ``call`` returns something to hold against the eager twin's."""

    call: Callable[[], object]
    result: Callable[[object], Result] | None = lambda result: result


@dataclass
class Case:
    """The rivals on one set of inputs.

    Attributes:
        rivals: by name. "limit" moves the least traffic and computes next to nothing; "copy" is a plain copy.
        traffic: least bytes that the operator can move.
        copy_traffic: bytes that "copy" moves.
        tolerance: relative to the largest value of the eager twin's result.
        verify: replaces the comparison with the eager twin for rivals named here.
    """

    rivals: dict[str, Rival]
    traffic: int
    copy_traffic: int
    tolerance: float
    verify: dict[str, Callable[[Result], None]] = field(default_factory=dict)

    def calls(self) -> dict[str, Callable[[], object]]:
        """For the timer."""
        return {name: rival.call for name, rival in self.rivals.items()}

    def drop_broken(self) -> None:
        """Leave out, with a warning, rivals that do not run here (no compiler, say): one shall not cost the others."""
        for name in [name for name in self.rivals if name not in ("ours", "eager", "limit", "copy")]:
            try:
                self.rivals[name].call()
            except Exception as error:  # whatever a rival dies of
                warnings.warn(f"{name} does not run here: {error!r}"[:300], stacklevel=2)
                del self.rivals[name]

    def check(self) -> None:
        """Hold every rival's result against the eager twin's.

        Raises:
            AssertionError: one differs.
        """
        expected = self.rivals["eager"].result(self.rivals["eager"].call())
        for name, rival in self.rivals.items():
            if rival.result is None:
                continue
            found = rival.result(rival.call())
            if name in self.verify:
                self.verify[name](found)
            else:
                for a, b in zip(found, expected, strict=True):
                    assert_close(a, b, self.tolerance, name)


def assert_close(found: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    """Raise AssertionError where they differ by more than a share of the largest value expected."""
    expected, found = expected.detach().float().cpu(), found.detach().float().cpu()
    if found.shape != expected.shape:
        raise AssertionError(f"{name}: shape {tuple(found.shape)}, the twin has {tuple(expected.shape)}")
    largest, off = expected.abs().max().item(), (found - expected).abs().max().item()
    if largest == 0 or not off <= tolerance * largest:
        raise AssertionError(f"{name}: off by {off:.3g} where the twin's largest value is {largest:.3g}")


class Inputs:
    """Random people: heatmaps with a peak at each joint and noise everywhere, some joints unseen or off the map."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.dtype, self.memory_format = DTYPES[spec.dtype], LAYOUTS[spec.layout]
        self.random = torch.Generator(spec.device).manual_seed(0)
        self.tolerance = _TOLERANCE[self.dtype]

    def keypoints(self, low: float, high: float) -> Tensor:
        shape = (self.spec.batch, NUM_JOINTS, 2)
        return low + (high - low) * torch.rand(shape, generator=self.random, device=self.spec.device)

    def joints(self) -> tuple[Tensor, Tensor]:
        """Keypoints [B,J,2], a few of them off the map, and weights [B,J]."""
        keypoints = self.keypoints(-8.0, 264.0)
        seen = torch.rand(keypoints.shape[:2], generator=self.random, device=self.spec.device) < 0.9
        return keypoints, seen.float()

    def heatmaps(self, keypoints: Tensor) -> Tensor:
        """[B,J,H,W]."""
        target = render_heatmaps(keypoints, memory_format=self.memory_format)
        noise = torch.empty_like(target).normal_(generator=self.random)
        return target.add_(noise, alpha=0.02).to(self.dtype)

    def images(self) -> Tensor:
        """uint8 [B,256,256,3]."""
        shape = (self.spec.batch, *OFFICIAL.image_size, 3)
        return torch.randint(256, shape, generator=self.random, device=self.spec.device, dtype=torch.uint8)


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # not even the package it is part of
        return False


def can_compile(device: str) -> bool:
    """Whether torch.compile has what it needs: a C++ compiler, and on a GPU Triton."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    return compiler is not None and (device == "cpu" or installed("triton"))


def rival_names(spec: Spec, compiled: bool) -> list[str]:
    """What :func:`make_case` puts into a case, without making it."""
    names = ["ours", "eager"]
    if compiled:
        names.append("compiled")
    if spec.operator == "render_unbiased":
        names += [package for package in ("kornia", "dsntnn") if installed(package)]
    elif spec.batch <= _OFFICIAL_BATCH and spec.dtype == "float32" and spec.layout == "nchw":
        names.append("official")
    names.append("limit")
    return [*names, "copy"] if spec.device == "cuda" else names


def make_case(spec: Spec, compiled: bool) -> Case:
    """The rivals of an operator, ready to be called; ``compiled``: the twin under torch.compile among them."""
    case = _OPERATORS[spec.operator](Inputs(spec))
    twin = case.rivals["eager"]
    if compiled:
        # A new shape is a recompilation, and after a few of those torch.compile gives up.
        torch._dynamo.reset()
        case.rivals["compiled"] = Rival(twin.call.with_twin(_compile(twin.call.twin)), twin.result)
        if "eager" in case.verify:
            case.verify["compiled"] = case.verify["eager"]
    case.rivals = {name: case.rivals[name] for name in rival_names(spec, compiled)}
    return case


def _compile(function: Callable) -> Callable:
    return torch.compile(function, dynamic=False, fullgraph=True)


@dataclass(frozen=True)
class TwinCall:
    """A call of the plain-PyTorch twin, which can be replaced by its compiled form."""

    twin: Callable
    run: Callable[[Callable], object]

    def __call__(self) -> object:
        return self.run(self.twin)

    def with_twin(self, twin: Callable) -> TwinCall:
        return TwinCall(twin, self.run)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _limit(call: Callable[[], object]) -> Rival:
    return Rival(call, None)


def _copy(x: Tensor) -> Rival:
    return _limit(partial(torch.empty_like(x).copy_, x))


def _quick(x: Tensor) -> Tensor:
    """The same bytes in a type that torch's CPU kernels vectorise: a limit that bfloat16 slows down is none."""
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x


def _maps_in_memory(heatmaps: Tensor, layout: str) -> Tensor:
    """The same bytes as [B*J, H*W] without a copy: what a reduction reads fastest."""
    rows = heatmaps if layout == "nchw" else heatmaps.permute(0, 2, 3, 1)
    return _quick(rows.reshape(heatmaps.shape[0] * heatmaps.shape[1], -1))


def _numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.cpu().numpy() for tensor in tensors]


def _official_loss(heatmaps: Tensor, keypoints: Tensor, weights: Tensor) -> tuple[float, np.ndarray]:
    output, joints, visible = _numpy(heatmaps, keypoints, weights)
    return official.joints_mse_loss(output, *_official_targets(joints, visible))


def _official_targets(joints: np.ndarray, visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return official.generate_targets(joints, visible, OFFICIAL.stride, OFFICIAL.heatmap_size)


def _twice(result: tuple[float, np.ndarray]) -> Result:
    """The official loss carries a factor of a half."""
    loss, grad = result
    return torch.tensor(2 * loss), torch.from_numpy(2 * grad)


def _loss_and_grad(x: Inputs) -> Case:
    keypoints, weights = x.joints()
    heatmaps = x.heatmaps(keypoints)
    rivals = {
        "ours": Rival(lambda: heatmap_mse_loss_and_grad(heatmaps, keypoints, weights), lambda result: result[:2]),
        "eager": Rival(
            TwinCall(
                reference.heatmap_mse_and_grad, lambda twin: twin(heatmaps, keypoints, weights, OFFICIAL.params, 1.0)
            ),
            lambda result: result[:2],
        ),
        "official": Rival(lambda: _official_loss(heatmaps, keypoints, weights), _twice),
        "limit": _copy(heatmaps),
        "copy": _copy(heatmaps),
    }
    return Case(rivals, 2 * _bytes(heatmaps), 2 * _bytes(heatmaps), x.tolerance)


def _loss_autograd(x: Inputs) -> Case:
    keypoints, weights = x.joints()
    heatmaps = x.heatmaps(keypoints).requires_grad_()
    plain = heatmaps.detach()
    rows, grad = _maps_in_memory(plain, x.spec.layout), torch.empty_like(plain)

    def both(loss: Tensor) -> Result:
        return loss, *torch.autograd.grad(loss, heatmaps)

    # On a CPU a loss that is not scaled needs one pass: forward leaves the gradient. CUDA would have to wait to know.
    one_pass = x.spec.device == "cpu"

    def limit() -> None:
        if not one_pass:
            rows.amax(-1)
        grad.copy_(plain)

    rivals = {
        "ours": Rival(lambda: both(heatmap_mse_loss(heatmaps, keypoints, weights))),
        "eager": Rival(
            TwinCall(
                reference.heatmap_mse,
                lambda twin: both(twin(heatmaps, keypoints, weights, OFFICIAL.params, False)),
            )
        ),
        "official": Rival(lambda: _official_loss(plain, keypoints, weights), _twice),
        "limit": _limit(limit),
        "copy": _copy(plain),
    }
    return Case(rivals, (2 if one_pass else 3) * _bytes(plain), 2 * _bytes(plain), x.tolerance)


def _decode(x: Inputs) -> Case:
    heatmaps = x.heatmaps(x.joints()[0])
    rows, quarter = _maps_in_memory(heatmaps, x.spec.layout), REFINE_CODES["quarter"]
    rivals = {
        "ours": Rival(lambda: decode_heatmaps(heatmaps, refine="quarter")),
        "eager": Rival(
            TwinCall(
                reference.decode_heatmaps,
                lambda twin: twin(heatmaps, None, None, OFFICIAL.params, quarter, False, []),
            )
        ),
        "official": Rival(
            lambda: official.final_predictions(*_numpy(heatmaps), OFFICIAL.stride),
            lambda result: tuple(map(torch.from_numpy, result)),
        ),
        "limit": _limit(lambda: rows.amax(-1)),
        "copy": _copy(heatmaps),
    }
    return Case(rivals, _bytes(heatmaps), 2 * _bytes(heatmaps), 1e-6)


def _one(result: Tensor) -> Result:
    return (result,)


def _render(x: Inputs) -> Case:
    keypoints, weights = x.joints()
    height, width = OFFICIAL.heatmap_size
    out = x.heatmaps(keypoints)
    channels_last = x.spec.layout == "nhwc"
    rivals = {
        "ours": Rival(lambda: render_heatmaps(keypoints, weights, dtype=x.dtype, memory_format=x.memory_format), _one),
        "eager": Rival(
            TwinCall(
                reference.render_heatmaps,
                lambda twin: twin(keypoints, weights, OFFICIAL.params, height, width, x.dtype, channels_last),
            ),
            _one,
        ),
        "official": Rival(
            lambda: _official_targets(*_numpy(keypoints, weights)), lambda result: (torch.from_numpy(result[0]),)
        ),
        "limit": _limit(partial(torch.empty_like(out).fill_, 0.5)),
        "copy": _copy(out),
    }
    return Case(rivals, _bytes(out), 2 * _bytes(out), x.tolerance)


def _render_unbiased(x: Inputs) -> Case:
    """Sub-pixel centres on the whole map, which kornia and dsntnn draw too; they get heatmap coordinates as a gift."""
    keypoints = x.keypoints(80.0, 176.0)  # far from the borders, where kornia normalises by what is left of the sum
    height, width = UNBIASED.heatmap_size
    centre = keypoints / keypoints.new_tensor(UNBIASED.stride)
    out = keypoints.new_empty(*keypoints.shape[:2], height, width)
    rivals = {
        "ours": Rival(lambda: render_heatmaps(keypoints, codec=UNBIASED), _one),
        "eager": Rival(
            TwinCall(
                reference.render_heatmaps,
                lambda twin: twin(keypoints, None, UNBIASED.params, height, width, torch.float32, False),
            ),
            _one,
        ),
        "limit": _limit(partial(out.fill_, 0.5)),
        "copy": _copy(torch.full_like(out, 0.5)),
    }
    if installed("kornia"):
        rivals["kornia"] = _kornia(centre, (height, width))
    if installed("dsntnn"):
        rivals["dsntnn"] = _dsntnn(centre, (height, width))
    return Case(rivals, _bytes(out), 2 * _bytes(out), 1e-4)


def _kornia(centre: Tensor, size: tuple[int, int]) -> Rival:
    from kornia.geometry.subpix import render_gaussian2d

    mean, std = centre.flatten(0, 1), torch.full_like(centre.flatten(0, 1), UNBIASED.sigma)
    peak = 1 / (2 * math.pi * UNBIASED.sigma**2)
    return Rival(
        lambda: render_gaussian2d(mean, std, size, normalized_coordinates=False),
        lambda result: (result.view(*centre.shape[:2], *size) / peak,),
    )


def _dsntnn(centre: Tensor, size: tuple[int, int]) -> Rival:
    import dsntnn

    means = (2 * centre + 1) / centre.new_tensor(size[::-1]) - 1
    return Rival(lambda: dsntnn.make_gauss(means, size, UNBIASED.sigma, normalize=False), _one)


def _prepare(x: Inputs) -> Case:
    images = x.images()
    out = torch.empty(images.shape, dtype=x.dtype, device=images.device).fill_(0.5)
    constants = (list(IMAGENET.mean), list(IMAGENET.std), 0, x.dtype)
    rivals = {
        "ours": Rival(lambda: prepare_images(images, dtype=x.dtype), _one),
        "eager": Rival(
            TwinCall(reference.prepare_images, lambda twin: twin(images, None, None, None, *constants)), _one
        ),
        "official": Rival(
            lambda: official.normalized(*_numpy(images), IMAGENET.mean, IMAGENET.std),
            lambda result: (torch.from_numpy(result),),
        ),
        "limit": _limit(partial(_quick(out).copy_, images)),
        # Ours returns a new tensor: at 25 MB its pages' places in the cache matter as much as the kernel.
        "limit, new tensor": _limit(lambda: torch.empty_like(_quick(out)).copy_(images)),
        "copy": _copy(out),
    }
    return Case(rivals, _bytes(images) + _bytes(out), 2 * _bytes(out), x.tolerance)


def randn_images(images: Tensor, noise_std: Tensor, mean: list[float], std: list[float], dtype: torch.dtype) -> Tensor:
    """What one writes without a kernel; the twin's counter-based noise takes ten times as long in plain PyTorch."""
    value = images.permute(0, 3, 1, 2).float() / 255.0
    value = value + noise_std[:, None, None, None] * torch.randn_like(value)
    mean, std = (value.new_tensor(constant)[:, None, None] for constant in (mean, std))
    return ((value - mean) / std).to(dtype)


def _prepare_noise(x: Inputs) -> Case:
    images, case = x.images(), _prepare(x)
    noise_std = torch.full((x.spec.batch,), NOISE_STD, device=images.device)
    ids = torch.arange(x.spec.batch, device=images.device)
    mean, std = list(IMAGENET.mean), list(IMAGENET.std)
    case.rivals |= {
        "ours": Rival(lambda: prepare_images(images, noise_std=noise_std, sample_ids=ids, dtype=x.dtype), _one),
        "eager": Rival(TwinCall(randn_images, lambda twin: twin(images, noise_std, mean, std, x.dtype)), _one),
        "official": Rival(
            lambda: official.normalized(*_numpy(images), IMAGENET.mean, IMAGENET.std, _numpy(noise_std)[0]),
            lambda result: (torch.from_numpy(result),),
        ),
    }

    def exact(found: Result) -> None:
        few = slice(_EXACT_NOISE_SAMPLES)
        expected = reference.prepare_images(images[few], None, noise_std[few], ids[few], mean, std, 0, x.dtype)
        assert_close(found[0][few], expected, x.tolerance, "ours")

    def plausible(found: Result) -> None:
        clean = reference.prepare_images(images, None, None, None, mean, std, 0, torch.float32)
        noise = (found[0].to(clean.device).float() - clean).std((0, 2, 3)).cpu()
        assert_close(noise, NOISE_STD / torch.tensor(std), 0.02, "standard deviation of the noise")

    case.verify = {"ours": exact, "eager": plausible, "official": plausible}
    return case


_OPERATORS: dict[str, Callable[[Inputs], Case]] = {
    "loss_and_grad": _loss_and_grad,
    "loss_autograd": _loss_autograd,
    "decode": _decode,
    "render": _render,
    "prepare": _prepare,
    "prepare_noise": _prepare_noise,
    "render_unbiased": _render_unbiased,
}

#: Pictures come out in one layout, and the libraries draw NCHW float32 only.
_LAYOUTS_OF = {"prepare": ["nhwc"], "prepare_noise": ["nhwc"], "render_unbiased": ["nchw"]}
_DTYPES_OF = {"render_unbiased": ["float32"]}


def all_specs(batches: list[int], device: str) -> list[Spec]:
    """Every operator, batch, dtype and layout that makes sense."""
    return [
        Spec(operator, batch, dtype, layout, device)
        for batch in batches
        for operator in _OPERATORS
        for dtype in _DTYPES_OF.get(operator, DTYPES)
        for layout in _LAYOUTS_OF.get(operator, LAYOUTS)
    ]
