"""The operators as users call them: arguments checked, defaults filled in.

Shapes: B batch, J joints, H and W heatmap height and width. Keypoints are network-input pixels, x before y, where
the centre of the top-left pixel is (0, 0). Heatmaps may be ``channels_last``; they are never copied to another layout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NoReturn

import torch
from torch import Tensor

from hpe_fast.ops import library as _library  # registers torch.ops.hpe_fast.*
from hpe_fast.ops.codec import IMAGENET, OFFICIAL, HeatmapCodec, Normalization
from hpe_fast.ops.reference import REFINE_CODES
from hpe_fast.skeleton import FLIP_PERMUTATION

Refine = Literal["none", "quarter", "dark"]

_OPS = torch.ops.hpe_fast

_HEATMAP_DTYPES = frozenset(_library.DTYPE_CODES)
_IMAGE_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
_WEIGHT_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8})
_MAX_FLIP_JOINTS = 256  # kMaxFlipJoints in csrc/kernels.h
_MAX_DARK_SIGMA = 25.0  # heatmap pixels; its blur reaches 2.5 sigmas, and Blur::kMaxRadius in csrc/cuda/decode.cu is 64


def _require_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def _reject_shape(name: str, value: Tensor, wanted: str) -> NoReturn:
    raise ValueError(f"{name} must have shape {wanted}, got {list(value.shape)}")


def _reject_dtype(name: str, value: Tensor, wanted: str) -> NoReturn:
    raise TypeError(f"{name} must be {wanted}, got {value.dtype}")


def _reject_device(name: str, value: Tensor, other: str, device: torch.device) -> NoReturn:
    raise ValueError(f"{name} must be on the device of {other} ({device}), got {value.device}")


def _reject_gradient(name: str) -> NoReturn:
    raise ValueError(f"{name} must not require grad: only heatmaps are differentiated; pass {name}.detach()")


def _check_codec(codec: object) -> None:
    if not isinstance(codec, HeatmapCodec):
        raise TypeError(f"codec must be a HeatmapCodec, got {type(codec).__name__}")


def _check_heatmaps(heatmaps: Tensor, codec: HeatmapCodec, name: str = "heatmaps") -> None:
    _require_tensor(name, heatmaps)
    if heatmaps.dtype not in _HEATMAP_DTYPES:
        _reject_dtype(name, heatmaps, "float32, float16, bfloat16 or float64")
    if heatmaps.dim() != 4:
        _reject_shape(name, heatmaps, "[B, J, H, W]")
    _check_codec(codec)
    _, _, height, width = heatmaps.shape
    if codec.heatmap_size != (height, width):
        raise ValueError(
            f"{name} of {height}x{width} pixels do not fit codec.heatmap_size {codec.heatmap_size}; "
            f"use codec.resized(image_size, ({height}, {width}))"
        )


def _checked_joints(keypoints: Tensor, weights: Tensor | None, heatmaps: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Keypoints and weights as float32, checked against each other and the heatmaps they belong to."""
    _require_tensor("keypoints", keypoints)
    shape = keypoints.shape
    if len(shape) != 3 or shape[2] != 2:
        _reject_shape("keypoints", keypoints, "[B, J, 2]")
    if keypoints.dtype is not torch.float32:
        if not keypoints.dtype.is_floating_point:
            _reject_dtype("keypoints", keypoints, "a floating dtype")
        keypoints = keypoints.float()
    if keypoints.requires_grad and torch.is_grad_enabled():
        _reject_gradient("keypoints")
    if heatmaps is not None:
        maps = heatmaps.shape
        if shape[0] != maps[0] or shape[1] != maps[1]:
            _reject_shape("keypoints", keypoints, f"{[maps[0], maps[1], 2]}, like heatmaps {list(maps)}")
        if keypoints.device != heatmaps.device:
            _reject_device("keypoints", keypoints, "heatmaps", heatmaps.device)
    return keypoints, None if weights is None else _checked_weights(weights, keypoints)


def _checked_weights(weights: Tensor, keypoints: Tensor) -> Tensor:
    _require_tensor("weights", weights)
    shape, joints = weights.shape, keypoints.shape
    if len(shape) != 2 or shape[0] != joints[0] or shape[1] != joints[1]:
        _reject_shape("weights", weights, f"{[joints[0], joints[1]]}, one a joint")
    if weights.dtype is not torch.float32:
        if weights.dtype not in _WEIGHT_DTYPES:
            _reject_dtype("weights", weights, "a floating dtype, bool or uint8")
        weights = weights.float()
    if weights.requires_grad and torch.is_grad_enabled():
        _reject_gradient("weights")
    if weights.device != keypoints.device:
        _reject_device("weights", weights, "keypoints", keypoints.device)
    return weights


def _check_float32(name: str, value: Tensor, shape: tuple[int, ...], images: Tensor, other: str) -> None:
    _require_tensor(name, value)
    if value.shape != shape:
        _reject_shape(name, value, str(list(shape)))
    if value.dtype is not torch.float32:
        _reject_dtype(name, value, "float32")
    if value.device != images.device:
        _reject_device(name, value, other, images.device)
    if value.requires_grad and torch.is_grad_enabled():
        _reject_gradient(name)


def render_heatmaps(
    keypoints: Tensor,
    weights: Tensor | None = None,
    codec: HeatmapCodec = OFFICIAL,
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Target heatmaps of joints, as the official ``generate_target`` draws them (``JointsDataset.py`` of HRNet).

    Not needed for training: :func:`heatmap_mse_loss` never stores a target.

    Args:
        keypoints: ``[B, J, 2]`` network-input pixels, floating; NaN counts as weight 0.
        weights: ``[B, J]``; a joint is drawn where its weight is above 0.5. None: all are.
        codec: what a target is, and how large.
        dtype: of the result: float32, float16, bfloat16 or float64.
        memory_format: of the result: ``torch.contiguous_format`` or ``torch.channels_last``.

    Returns:
        ``[B, J, H, W]`` with ``(H, W) = codec.heatmap_size``; a joint off the map, or without weight, has an empty map.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, on another device, or an unknown memory format.

    Example:
        >>> import torch
        >>> from hpe_fast.ops import OFFICIAL, render_heatmaps
        >>> heatmaps = render_heatmaps(torch.tensor([[[40.0, 80.0]]]), codec=OFFICIAL)
        >>> heatmaps.shape, heatmaps[0, 0, 20, 10].item()
        (torch.Size([1, 1, 64, 64]), 1.0)
    """
    _check_codec(codec)
    keypoints, weights = _checked_joints(keypoints, weights, None)
    if dtype not in _HEATMAP_DTYPES:
        raise TypeError(f"dtype must be float32, float16, bfloat16 or float64, got {dtype}")
    channels_last = memory_format is torch.channels_last
    if not channels_last and memory_format is not torch.contiguous_format:
        raise ValueError(f"memory_format must be torch.contiguous_format or torch.channels_last, got {memory_format}")
    height, width = codec.heatmap_size
    render = _library.render_heatmaps if _library.is_plain(keypoints) else _OPS.render_heatmaps
    return render(keypoints, weights, codec.params, height, width, dtype, channels_last)


def heatmap_mse_loss(
    heatmaps: Tensor,
    keypoints: Tensor,
    weights: Tensor | None = None,
    codec: HeatmapCodec = OFFICIAL,
    *,
    per_joint: bool = False,
) -> Tensor:
    """Mean of ``w (p - t)^2`` over all pixels, where the target ``t`` is never stored.

    It is mmpose's ``KeypointMSELoss`` and, for weights 0 and 1, twice the official ``JointsMSELoss``. Joints off the
    map and NaN joints weigh 0 yet count in the mean, as there. Differentiable in ``heatmaps``, once and backwards
    (``torch.autograd.forward_ad`` finds no tangent); bit-identical from run to run.

    Args:
        heatmaps: ``[B, J, H, W]`` predictions; float32, float16, bfloat16 or float64, NCHW or ``channels_last``. Under
            autocast they are used as they come.
        keypoints: ``[B, J, 2]`` network-input pixels, floating; NaN counts as weight 0.
        weights: ``[B, J]`` floating, bool or uint8; None: ones.
        codec: what a target is; its ``heatmap_size`` must be ``(H, W)``.
        per_joint: return ``[B, J]``, the mean over each joint's pixels (for logging, or hard-joint mining).

    Returns:
        float32 (float64 for float64 heatmaps): a scalar, or ``[B, J]``. The mean of an empty batch is NaN, as torch
        has it.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes that do not agree, different devices, keypoints or weights that require grad.

    Example:
        >>> import torch
        >>> from hpe_fast.ops import heatmap_mse_loss, render_heatmaps
        >>> keypoints = torch.tensor([[[40.0, 80.0], [100.0, 31.0]]])
        >>> heatmaps = render_heatmaps(keypoints).requires_grad_()
        >>> loss = heatmap_mse_loss(heatmaps, keypoints)
        >>> loss.backward()
        >>> loss.item(), heatmaps.grad.abs().max().item()
        (0.0, 0.0)
    """
    _check_heatmaps(heatmaps, codec)
    keypoints, weights = _checked_joints(keypoints, weights, heatmaps)
    if not _library.is_plain(heatmaps):
        mse = _OPS.heatmap_mse
    elif heatmaps.requires_grad and torch.is_grad_enabled():
        mse = _library.HeatmapMSE.apply
    else:
        mse = _library.heatmap_mse
    return mse(heatmaps, keypoints, weights, codec.params, per_joint)


def heatmap_mse_loss_and_grad(
    heatmaps: Tensor,
    keypoints: Tensor,
    weights: Tensor | None = None,
    codec: HeatmapCodec = OFFICIAL,
    *,
    grad_scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of :func:`heatmap_mse_loss` and its gradient in one pass over the heatmaps: the training loop's way.

    The results carry no graph of their own: ``torch.autograd.backward([heatmaps], [grad])`` goes on from here.

    Args:
        heatmaps: ``[B, J, H, W]`` predictions; float32, float16, bfloat16 or float64, NCHW or ``channels_last``.
        keypoints: ``[B, J, 2]`` network-input pixels, floating; NaN counts as weight 0.
        weights: ``[B, J]`` floating, bool or uint8; None: ones.
        codec: what a target is; its ``heatmap_size`` must be ``(H, W)``.
        grad_scale: factor of the gradient (a loss scale, or the share of one of several heads).

    Returns:
        The loss (scalar, without ``grad_scale``), ``grad_scale * d loss / d heatmaps`` (dtype and layout of the
        heatmaps), and the losses ``[B, J]`` of the joints.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes that do not agree, different devices, a grad_scale that is not finite.

    Example:
        >>> import torch
        >>> from hpe_fast.ops import heatmap_mse_loss_and_grad
        >>> heatmaps = torch.zeros(2, 17, 64, 64, requires_grad=True)
        >>> loss, grad, per_joint = heatmap_mse_loss_and_grad(heatmaps, torch.full((2, 17, 2), 90.0))
        >>> torch.autograd.backward([heatmaps], [grad])
        >>> heatmaps.grad.shape, per_joint.shape, bool(loss > 0)
        (torch.Size([2, 17, 64, 64]), torch.Size([2, 17]), True)
    """
    _check_heatmaps(heatmaps, codec)
    keypoints, weights = _checked_joints(keypoints, weights, heatmaps)
    if not hasattr(grad_scale, "__float__") or not math.isfinite(grad_scale):
        raise ValueError(f"grad_scale must be a finite number, got {grad_scale!r}")
    if heatmaps.requires_grad:
        heatmaps = heatmaps.detach()
    mse_and_grad = _library.heatmap_mse_and_grad if _library.is_plain(heatmaps) else _OPS.heatmap_mse_and_grad
    return mse_and_grad(heatmaps, keypoints, weights, codec.params, grad_scale)


def _checked_permutation(permutation: Sequence[int] | None, joints: int) -> list[int]:
    if permutation is None:
        if joints != len(FLIP_PERMUTATION):
            raise ValueError(
                f"flip_permutation must be given for {joints} joints: joint j of the mirrored picture is joint "
                f"flip_permutation[j]; the default is Human3.6M's {len(FLIP_PERMUTATION)}"
            )
        return list(FLIP_PERMUTATION)
    permutation = [int(j) for j in permutation]
    if sorted(permutation) != list(range(joints)) or joints > _MAX_FLIP_JOINTS:
        raise ValueError(
            f"flip_permutation must be a permutation of 0..{joints - 1}, of {_MAX_FLIP_JOINTS} joints at most, "
            f"got {permutation}"
        )
    return permutation


def decode_heatmaps(
    heatmaps: Tensor,
    codec: HeatmapCodec = OFFICIAL,
    *,
    refine: Refine = "quarter",
    flipped: Tensor | None = None,
    to_image: Tensor | None = None,
    shift_flipped: bool = False,
    flip_permutation: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Joints and their scores from heatmaps: argmax, refinement, flip test and the way back to the image, in one pass.

    The first maximum wins and NaN is ignored. Where the maximum is not positive the joint is at heatmap pixel (0,
    0), as in the official ``get_max_preds``; a map of nothing but NaN is there too, with score NaN. Not differentiable.

    Args:
        heatmaps: ``[B, J, H, W]``; float32, float16, bfloat16 or float64, NCHW or ``channels_last``.
        codec: what the network was trained on; its ``heatmap_size`` must be ``(H, W)``.
        refine: ``"quarter"``: a quarter pixel towards the larger neighbour, except within a pixel of the border
            (official ``get_final_preds``); ``"dark"``: one Newton step on the logarithm of the blurred map (Zhang et
            al. 2020, as mmpose's ``refine_keypoints_dark``, but no step of more than two pixels, which its stencil
            knows nothing of); or ``"none"``.
        flipped: heatmaps of the mirrored pictures, like ``heatmaps``; they are mirrored back, left and right are
            exchanged, and the average is decoded.
        to_image: ``[B, 2, 3]`` float32, affine from network-input pixels to image pixels.
        shift_flipped: move the mirrored-back map right by one pixel (the official ``SHIFT_HEATMAP``).
        flip_permutation: joint j of a mirrored picture is joint ``flip_permutation[j]``; None: Human3.6M's 17 joints.

    Returns:
        ``coords [B, J, 2]``, in network-input pixels or, with ``to_image``, in image pixels; ``scores [B, J]``, the
        maxima. Both float32.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes that do not agree, different devices, an unknown refinement, no permutation.

    Example:
        >>> import torch
        >>> from hpe_fast.ops import decode_heatmaps, render_heatmaps
        >>> keypoints = torch.tensor([[[40.0, 80.0], [100.0, 32.0]]])
        >>> coords, scores = decode_heatmaps(render_heatmaps(keypoints))
        >>> coords.tolist(), scores.tolist()
        ([[[40.0, 80.0], [100.0, 32.0]]], [[1.0, 1.0]])
    """
    _check_heatmaps(heatmaps, codec)
    code = REFINE_CODES.get(refine) if isinstance(refine, str) else None
    if code is None:
        raise ValueError(f"refine must be one of {list(REFINE_CODES)}, got {refine!r}")
    if refine == "dark" and codec.sigma > _MAX_DARK_SIGMA:
        raise ValueError(f"refine 'dark' needs a codec.sigma of at most {_MAX_DARK_SIGMA}, got {codec.sigma!r}")
    permutation: list[int] = []
    if flipped is not None:
        _check_heatmaps(flipped, codec, "flipped")
        if flipped.shape != heatmaps.shape:
            _reject_shape("flipped", flipped, f"{list(heatmaps.shape)}, like heatmaps")
        if flipped.dtype is not heatmaps.dtype:
            _reject_dtype("flipped", flipped, f"{heatmaps.dtype}, like heatmaps")
        if flipped.device != heatmaps.device:
            _reject_device("flipped", flipped, "heatmaps", heatmaps.device)
        if flipped.requires_grad:
            flipped = flipped.detach()
        permutation = _checked_permutation(flip_permutation, heatmaps.shape[1])
    if to_image is not None:
        _check_float32("to_image", to_image, (heatmaps.shape[0], 2, 3), heatmaps, "heatmaps")
    if heatmaps.requires_grad:
        heatmaps = heatmaps.detach()
    decode = _library.decode_heatmaps if _library.is_plain(heatmaps) else _OPS.decode_heatmaps
    return decode(heatmaps, flipped, to_image, codec.params, code, shift_flipped, permutation)


def _checked_noise(
    noise_std: float | Tensor | None, sample_ids: Tensor | None, images: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """``noise_std [B]`` and ``sample_ids [B]``, or nothing where there is no noise."""
    batch = images.shape[0]
    if sample_ids is not None:
        _require_tensor("sample_ids", sample_ids)
        if sample_ids.dtype is not torch.int64:
            _reject_dtype("sample_ids", sample_ids, "int64")
        if sample_ids.shape != (batch,):
            _reject_shape("sample_ids", sample_ids, str([batch]))
        if sample_ids.device != images.device:
            _reject_device("sample_ids", sample_ids, "images", images.device)
    if isinstance(noise_std, Tensor):
        _check_float32("noise_std", noise_std, (batch,), images, "images")
    elif noise_std is not None:
        if not hasattr(noise_std, "__float__") or not (math.isfinite(noise_std) and noise_std >= 0):
            raise ValueError(f"noise_std must be a number >= 0 or a tensor [B], got {noise_std!r}")
        noise_std = (
            torch.full((batch,), noise_std, dtype=torch.float32, device=images.device) if noise_std > 0 else None
        )
    if noise_std is None:
        return None, None
    return noise_std, torch.arange(batch, device=images.device) if sample_ids is None else sample_ids


def prepare_images(
    images: Tensor,
    normalization: Normalization = IMAGENET,
    *,
    noise_std: float | Tensor | None = None,
    color: Tensor | None = None,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """uint8 pictures to network input, with an optional colour matrix and Gaussian noise, in one pass.

    ``out = (clamp(color @ (r, g, b, 1), 0, 255) / 255 + noise - mean) / std``. The noise of an element is a function of
    ``(seed, sample id, element)`` alone (Philox4x32-10, Salmon et al. 2011), so a sample looks the same in every
    batch and on every device.

    Args:
        images: uint8 ``[B, H, W, 3]``, RGB.
        normalization: ``mean`` and ``std`` of each channel, on the 0..1 scale.
        noise_std: standard deviation on the 0..1 scale, a number or float32 ``[B]``; None: no noise.
        color: float32 ``[B, 3, 4]`` on the 0..255 scale; None: the identity.
        seed: of the noise, 0 <= seed < 2**63.
        sample_ids: int64 ``[B]``; None: 0..B-1.
        dtype: of the result: float32, float16 or bfloat16.

    Returns:
        ``[B, 3, H, W]`` in ``channels_last`` memory.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, on another device, or out of range.

    Example:
        >>> import torch
        >>> from hpe_fast.ops import PAPER_NORMALIZATION, prepare_images
        >>> images = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
        >>> out = prepare_images(images, PAPER_NORMALIZATION)
        >>> out.shape, round(out.max().item(), 3)
        (torch.Size([1, 3, 2, 2]), -1.0)
    """
    _require_tensor("images", images)
    if images.dtype is not torch.uint8:
        _reject_dtype("images", images, "uint8")
    if images.dim() != 4 or images.shape[3] != 3:
        _reject_shape("images", images, "[B, H, W, 3]")
    if dtype not in _IMAGE_DTYPES:
        raise TypeError(f"dtype must be float32, float16 or bfloat16, got {dtype}")
    if not isinstance(normalization, Normalization):
        raise TypeError(f"normalization must be a Normalization, got {type(normalization).__name__}")
    if not hasattr(seed, "__index__") or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in 0..2**63-1, got {seed!r}")
    noise_std, sample_ids = _checked_noise(noise_std, sample_ids, images)
    if color is not None:
        _check_float32("color", color, (images.shape[0], 3, 4), images, "images")
    prepare = _library.prepare_images if _library.is_plain(images) else _OPS.prepare_images
    return prepare(images, color, noise_std, sample_ids, normalization.mean, normalization.std, seed, dtype)
