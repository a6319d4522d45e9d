"""The lifter's layers for training on a CPU: four passes over memory a layer beside the matrix products.

A plain layer (linear, batch normalisation, ReLU, dropout) draws a float for every unit and reads and writes the
activations some twenty times. Here the products are in bfloat16 where the processor has it, the bias, which batch
normalisation cancels, is left out of them, dropout's scale goes into the normalisation's, its mask is one AND with
random bits, and backward sees from the output alone where ReLU or dropout made it zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpe_fast.models import Lifter

_INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
_WORD_BITS = 16


def forward_dense(model: Lifter, keypoints: Tensor, dtype: torch.dtype) -> Tensor:
    """``model.forward_normalized(keypoints)`` in training mode, with products in ``dtype``.

    Other random numbers than torch's dropout, drawn from a generator that torch's own one seeds in every call: so a
    resumed run sees the same ones.
    """
    masks = _dropout_masks((len(keypoints), model.w1.out_features), model.dropout.p, _INTEGERS[dtype])
    x = model.normalize_keypoints(keypoints).to(dtype)
    scale = 1 / (1 - model.dropout.p)
    x = _layer(x, model.w1, model.batch_norm1, next(masks), scale)
    for stage in model.linear_stages:
        y = _layer(x, stage.w1, stage.batch_norm1, next(masks), scale)
        x = x + _layer(y, stage.w2, stage.batch_norm2, next(masks), scale)
    out = nn.functional.linear(x, model.w2.weight.to(dtype)).float() + model.w2.bias
    return out.unflatten(-1, (-1, 3))


def _dropout_masks(shape: tuple[int, int], p: float, integer: torch.dtype) -> Iterator[Tensor | None]:
    """For one layer after another: all bits set where a unit is kept, no bit where it is dropped."""
    while p == 0:
        yield None
    random = np.random.Generator(np.random.SFC64(int(torch.randint(2**63 - 1, ()))))
    drop_below = round(p * 2**_WORD_BITS) - 2 ** (_WORD_BITS - 1)
    while True:
        words = _words(random, shape)
        if p == 0.5:  # one draw has a bit for each of 16 layers
            for bit in range(_WORD_BITS):
                yield ((words << bit) >> (_WORD_BITS - 1)).to(integer)
        else:
            yield (words >= drop_below).to(integer).neg_()


def _words(random: np.random.Generator, shape: tuple[int, int]) -> Tensor:
    count = shape[0] * shape[1]
    words = random.integers(0, 2**64, -(-count * _WORD_BITS // 64), dtype=np.uint64)
    return torch.from_numpy(words.view(np.int16))[:count].view(shape)


def _layer(x: Tensor, linear: nn.Linear, norm: nn.BatchNorm1d, keep: Tensor | None, scale: float) -> Tensor:
    norm.num_batches_tracked += 1
    return _Layer.apply(x, linear.weight, linear.bias, norm.weight, norm.bias, norm, keep, scale)


class _Layer(torch.autograd.Function):
    """``dropout(relu(norm(x @ weight.T + bias)))``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        gain: Tensor,
        shift: Tensor,
        norm: nn.BatchNorm1d,
        keep: Tensor | None,
        scale: float,
    ) -> Tensor:
        weight, gain = weight.to(x.dtype), gain * scale
        z = x @ weight.t()
        running = norm.running_mean, norm.running_var
        y, mean, inverse_std = torch.native_batch_norm(z, gain, shift * scale, *running, True, norm.momentum, norm.eps)
        norm.running_mean.add_(bias, alpha=norm.momentum)  # of the sum that the bias was left out of
        y.relu_()
        if keep is not None:
            y.view(keep.dtype).bitwise_and_(keep)
        ctx.save_for_backward(x, weight, gain, z, mean, inverse_std, y)
        ctx.scale, ctx.eps = scale, norm.eps
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, weight, gain, z, mean, inverse_std, y = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, y, 0)
        grad, gain_grad, shift_grad = torch.ops.aten.native_batch_norm_backward(
            grad, z, gain, None, None, mean, inverse_std, True, ctx.eps, [True, True, True]
        )
        input_grad = grad @ weight if ctx.needs_input_grad[0] else None
        weight_grad = (grad.t() @ x).float()
        # The bias has no effect through the normalisation: its gradient is zero, not the rounding errors of a sum.
        return (
            input_grad,
            weight_grad,
            torch.zeros_like(mean),
            gain_grad * ctx.scale,
            shift_grad * ctx.scale,
            *[None] * 3,
        )
