"""``torch.ops.hpe_fast.*``: schemas, kernels, fake kernels and gradients. The only module that registers operators.

Arguments arrive checked (functional.py). A CUDA call is capturable in a graph: current stream, no synchronisation,
outputs from torch's allocator, nothing copied from the host. Under autocast tensors are used as they come.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from hpe_fast.ops import native, reference
from hpe_fast.ops.reference import accumulation_dtype, memory_format_of

SCHEMAS = (
    "render_heatmaps(Tensor keypoints, Tensor? weights, float[] codec, int height, int width, ScalarType dtype, "
    "bool channels_last) -> Tensor",
    "heatmap_mse(Tensor heatmaps, Tensor keypoints, Tensor? weights, float[] codec, bool per_joint) -> Tensor",
    "heatmap_mse_backward(Tensor grad_out, Tensor heatmaps, Tensor keypoints, Tensor? weights, float[] codec, "
    "bool per_joint) -> Tensor",
    "heatmap_mse_and_grad(Tensor heatmaps, Tensor keypoints, Tensor? weights, float[] codec, float grad_scale) "
    "-> (Tensor loss, Tensor grad, Tensor per_joint)",
    "decode_heatmaps(Tensor heatmaps, Tensor? flipped, Tensor? to_image, float[] codec, int refine, "
    "bool shift_flipped, int[] flip_permutation) -> (Tensor coords, Tensor scores)",
    "prepare_images(Tensor images, Tensor? color, Tensor? noise_std, Tensor? sample_ids, float[] mean, float[] std, "
    "int seed, ScalarType dtype) -> Tensor",
)

#: Operators live as long as this object.
LIBRARY = torch.library.Library("hpe_fast", "DEF")
for _schema in SCHEMAS:
    LIBRARY.define(_schema)

#: Values of DType in csrc/kernels.h.
DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}

Maps = tuple[int, int, int, int, bool, int]


# Private to torch; a torch without them sends every call through the dispatcher.
_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_transforms = getattr(torch._C._functorch, "peek_interpreter_stack", lambda: True)
# A tenth of the time of torch.cuda.current_stream, whose answer is an object.
_current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", lambda i: torch.cuda.current_stream(i).cuda_stream)


def is_plain(x: Tensor) -> bool:
    """Whether a call with ``x`` may skip the dispatcher, which costs more than the rest of a call on the host.

    It may if nothing listens there: no compiler, tracer, function transform, mode (fake tensors, profilers of
    operators) or tensor subclass, and memory holds the values themselves (no negative view).
    """
    return (
        (type(x) is Tensor or type(x) is torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and _dispatch_modes() == 0
        and _transforms() is None
        and (x.is_cpu or x.is_cuda)
        and not x.is_neg()
        and not torch.jit.is_tracing()
    )


def _kernels(x: Tensor) -> ModuleType | None:
    """Compiled kernels for a tensor, None for the twin (which also takes float64 on CUDA)."""
    if x.is_cuda:
        return None if x.dtype == torch.float64 else native.cuda()
    return native.cpu()


def _twin(function: Callable, *arguments: object) -> Tensor | tuple[Tensor, ...]:
    """A twin's result without a graph of its own: gradients are the operators' business."""
    with torch.no_grad():
        return function(*arguments)


def _where(x: Tensor) -> tuple[int, ...]:
    """Last arguments of a kernel: threads, or device and stream."""
    if x.is_cuda:
        index = x.get_device()
        return index, _current_stream(index)
    return (torch.get_num_threads(),)


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _packed(x: Tensor | None) -> Tensor | None:
    if x is None:
        return None
    return (x.resolve_neg() if x.is_neg() else x).contiguous()


def _dense(heatmaps: Tensor) -> tuple[Tensor, Maps]:
    """Heatmaps without gaps, and the kernels' description of them."""
    memory_format = memory_format_of(heatmaps)
    channels_last = memory_format is torch.channels_last
    return heatmaps.contiguous(memory_format=memory_format), (
        *heatmaps.shape,
        channels_last,
        DTYPE_CODES[heatmaps.dtype],
    )


def _empty_heatmaps(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format)


def _register(name: str, kernel: object, fake: object, *, differentiable: bool = False) -> None:
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"hpe_fast::{name}", fake, lib=LIBRARY)
    if not differentiable:
        LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")


# render_heatmaps


def render_heatmaps(
    keypoints: Tensor,
    weights: Tensor | None,
    codec: list[float],
    height: int,
    width: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    kernels = None if dtype == torch.float64 and keypoints.is_cuda else _kernels(keypoints)
    if kernels is None:
        return _twin(reference.render_heatmaps, keypoints, weights, codec, height, width, dtype, channels_last)
    shape = (*keypoints.shape[:2], height, width)
    out = _empty_heatmaps(keypoints, shape, dtype, channels_last)
    keypoints, weights = _packed(keypoints), _packed(weights)
    maps = (*shape, channels_last, DTYPE_CODES[dtype])
    kernels.render_heatmaps(out.data_ptr(), keypoints.data_ptr(), _pointer(weights), maps, codec, *_where(keypoints))
    return out


def _render_heatmaps_fake(keypoints, weights, codec, height, width, dtype, channels_last):
    return _empty_heatmaps(keypoints, (*keypoints.shape[:2], height, width), dtype, channels_last)


_register("render_heatmaps", render_heatmaps, _render_heatmaps_fake)


# heatmap_mse and its gradient


def heatmap_mse(
    heatmaps: Tensor, keypoints: Tensor, weights: Tensor | None, codec: list[float], per_joint: bool
) -> Tensor:
    kernels = _kernels(heatmaps)
    if kernels is None or heatmaps.numel() == 0:
        return _twin(reference.heatmap_mse, heatmaps, keypoints, weights, codec, per_joint)
    heatmaps, maps = _dense(heatmaps)
    keypoints, weights = _packed(keypoints), _packed(weights)
    dtype = accumulation_dtype(heatmaps.dtype)
    losses = torch.empty(maps[:2], dtype=dtype, device=heatmaps.device)
    loss = None if per_joint else torch.empty((), dtype=dtype, device=heatmaps.device)
    kernels.heatmap_mse(
        losses.data_ptr(),
        _pointer(loss),
        heatmaps.data_ptr(),
        keypoints.data_ptr(),
        _pointer(weights),
        maps,
        codec,
        *_where(heatmaps),
    )
    return losses if loss is None else loss


def _heatmap_mse_fake(heatmaps, keypoints, weights, codec, per_joint):
    return heatmaps.new_empty(heatmaps.shape[:2] if per_joint else (), dtype=accumulation_dtype(heatmaps.dtype))


def heatmap_mse_backward(
    grad_out: Tensor,
    heatmaps: Tensor,
    keypoints: Tensor,
    weights: Tensor | None,
    codec: list[float],
    per_joint: bool,
) -> Tensor:
    kernels = _kernels(heatmaps)
    if kernels is None:
        return _twin(reference.heatmap_mse_backward, grad_out, heatmaps, keypoints, weights, codec, per_joint)
    heatmaps, maps = _dense(heatmaps)
    grad_out, keypoints, weights = _packed(grad_out), _packed(keypoints), _packed(weights)
    grad = torch.empty_like(heatmaps)
    kernels.heatmap_mse_backward(
        grad.data_ptr(),
        grad_out.data_ptr(),
        heatmaps.data_ptr(),
        keypoints.data_ptr(),
        _pointer(weights),
        per_joint,
        maps,
        codec,
        *_where(heatmaps),
    )
    return grad


def _heatmap_mse_backward_fake(grad_out, heatmaps, keypoints, weights, codec, per_joint):
    return torch.empty_like(heatmaps.contiguous(memory_format=memory_format_of(heatmaps)))


def _save_for_backward(ctx, inputs, output) -> None:
    heatmaps, keypoints, weights, ctx.codec, ctx.per_joint = inputs
    ctx.save_for_backward(heatmaps, keypoints, weights)


def _heatmap_mse_gradient(ctx, grad_out: Tensor):
    plain = is_plain(grad_out) and not torch.is_grad_enabled()  # enabled: somebody wants a second derivative
    backward = heatmap_mse_backward if plain else torch.ops.hpe_fast.heatmap_mse_backward
    return backward(grad_out, *ctx.saved_tensors, ctx.codec, ctx.per_joint), None, None, None, None


def _no_second_gradient(ctx, *grad_out: Tensor):
    raise NotImplementedError(
        "heatmap_mse_loss has no second derivative (double backward is not supported); "
        "hpe_fast.ops.reference.heatmap_mse has"
    )


class HeatmapMSE(torch.autograd.Function):
    """The recorded call without the dispatcher, which would double its cost on the host; see :func:`is_plain`.

    On the CPU the forward pass also leaves the gradient, so that backward, whose factor is 1 unless something scales
    the loss, has nothing to do. On CUDA looking at that factor would wait for the device.
    """

    @staticmethod
    def forward(ctx, heatmaps, keypoints, weights, codec, per_joint):
        _save_for_backward(ctx, (heatmaps, keypoints, weights, codec, per_joint), None)
        ctx.ready = None
        if per_joint or not heatmaps.is_cpu:
            return heatmap_mse(heatmaps, keypoints, weights, codec, per_joint)
        loss, ctx.ready, _ = heatmap_mse_and_grad(heatmaps, keypoints, weights, codec, 1.0)
        return loss

    @staticmethod
    def backward(ctx, grad_out):
        ready, ctx.ready = ctx.ready, None  # handed out once: with retain_graph, nobody changes another's gradient
        if ready is None or torch.is_grad_enabled() or not is_plain(grad_out) or grad_out.item() != 1:
            return _heatmap_mse_gradient(ctx, grad_out)
        return ready, None, None, None, None


_register("heatmap_mse", heatmap_mse, _heatmap_mse_fake, differentiable=True)
_register("heatmap_mse_backward", heatmap_mse_backward, _heatmap_mse_backward_fake, differentiable=True)
torch.library.register_autograd(
    "hpe_fast::heatmap_mse", _heatmap_mse_gradient, setup_context=_save_for_backward, lib=LIBRARY
)
torch.library.register_autograd("hpe_fast::heatmap_mse_backward", _no_second_gradient, lib=LIBRARY)


# heatmap_mse_and_grad


def heatmap_mse_and_grad(
    heatmaps: Tensor, keypoints: Tensor, weights: Tensor | None, codec: list[float], grad_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _kernels(heatmaps)
    if kernels is None or heatmaps.numel() == 0:
        return _twin(reference.heatmap_mse_and_grad, heatmaps, keypoints, weights, codec, grad_scale)
    heatmaps, maps = _dense(heatmaps)
    keypoints, weights = _packed(keypoints), _packed(weights)
    dtype = accumulation_dtype(heatmaps.dtype)
    losses = torch.empty(maps[:2], dtype=dtype, device=heatmaps.device)
    loss = torch.empty((), dtype=dtype, device=heatmaps.device)
    grad = torch.empty_like(heatmaps)
    kernels.heatmap_mse_and_grad(
        losses.data_ptr(),
        loss.data_ptr(),
        grad.data_ptr(),
        heatmaps.data_ptr(),
        keypoints.data_ptr(),
        _pointer(weights),
        grad_scale,
        maps,
        codec,
        *_where(heatmaps),
    )
    return loss, grad, losses


def _heatmap_mse_and_grad_fake(heatmaps, keypoints, weights, codec, grad_scale):
    dtype = accumulation_dtype(heatmaps.dtype)
    grad = torch.empty_like(heatmaps.contiguous(memory_format=memory_format_of(heatmaps)))
    return heatmaps.new_empty((), dtype=dtype), grad, heatmaps.new_empty(heatmaps.shape[:2], dtype=dtype)


_register("heatmap_mse_and_grad", heatmap_mse_and_grad, _heatmap_mse_and_grad_fake)


# decode_heatmaps


def decode_heatmaps(
    heatmaps: Tensor,
    flipped: Tensor | None,
    to_image: Tensor | None,
    codec: list[float],
    refine: int,
    shift_flipped: bool,
    flip_permutation: list[int],
) -> tuple[Tensor, Tensor]:
    kernels = _kernels(heatmaps)
    if kernels is None or heatmaps.numel() == 0:
        return _twin(
            reference.decode_heatmaps, heatmaps, flipped, to_image, codec, refine, shift_flipped, flip_permutation
        )
    heatmaps, maps = _dense(heatmaps)
    if flipped is not None:
        flipped = flipped.contiguous(memory_format=torch.channels_last if maps[4] else torch.contiguous_format)
    to_image = _packed(to_image)
    coords = torch.empty((*maps[:2], 2), dtype=torch.float32, device=heatmaps.device)
    scores = torch.empty(maps[:2], dtype=torch.float32, device=heatmaps.device)
    kernels.decode_heatmaps(
        coords.data_ptr(),
        scores.data_ptr(),
        heatmaps.data_ptr(),
        _pointer(flipped),
        _pointer(to_image),
        refine,
        shift_flipped,
        flip_permutation,
        maps,
        codec,
        *_where(heatmaps),
    )
    return coords, scores


def _decode_heatmaps_fake(heatmaps, flipped, to_image, codec, refine, shift_flipped, flip_permutation):
    shape = heatmaps.shape[:2]
    return heatmaps.new_empty((*shape, 2), dtype=torch.float32), heatmaps.new_empty(shape, dtype=torch.float32)


_register("decode_heatmaps", decode_heatmaps, _decode_heatmaps_fake)


# prepare_images


def prepare_images(
    images: Tensor,
    color: Tensor | None,
    noise_std: Tensor | None,
    sample_ids: Tensor | None,
    mean: list[float],
    std: list[float],
    seed: int,
    dtype: torch.dtype,
) -> Tensor:
    kernels = _kernels(images)
    if kernels is None:
        return _twin(reference.prepare_images, images, color, noise_std, sample_ids, mean, std, seed, dtype)
    images, color, noise_std, sample_ids = images.contiguous(), _packed(color), _packed(noise_std), _packed(sample_ids)
    batch, height, width, _ = images.shape
    out = torch.empty(images.shape, dtype=dtype, device=images.device)
    kernels.prepare_images(
        out.data_ptr(),
        images.data_ptr(),
        _pointer(color),
        _pointer(noise_std),
        _pointer(sample_ids),
        (batch, height, width, DTYPE_CODES[dtype], seed),
        mean,
        std,
        *_where(images),
    )
    return out.permute(0, 3, 1, 2)


def _prepare_images_fake(images, color, noise_std, sample_ids, mean, std, seed, dtype):
    return torch.empty(images.shape, dtype=dtype, device=images.device).permute(0, 3, 1, 2)


_register("prepare_images", prepare_images, _prepare_images_fake)
