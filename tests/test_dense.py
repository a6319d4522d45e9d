"""The lifter's layers written out by hand are the plain ones."""

import pytest
import torch
from torch import nn

from hpe_fast.models import lifter
from hpe_fast.training import dense
from hpe_fast.training.dense import forward_dense


def problem(dropout: float = 0.0, width: int = 48, batch: int = 32):
    torch.manual_seed(0)
    model = lifter(width=width, dropout=dropout)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.train(), torch.rand(batch, 17, 2), torch.randn(batch, 17, 3)


def trained(model, forward, keypoints, target):
    """Output, gradients and running statistics."""
    out = forward(keypoints)
    nn.functional.mse_loss(out.to(target.dtype), target).backward()
    return out.detach(), {n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())


def masks(count: int, shape: tuple[int, int], p: float) -> list[torch.Tensor]:
    torch.manual_seed(5)
    drawn = dense._dropout_masks(shape, p, torch.int32)
    return [next(drawn).clone() for _ in range(count)]


@pytest.mark.parametrize(
    ("p", "dtype"), [(0.0, torch.float32), (0.5, torch.float32), (0.2, torch.float32), (0.5, torch.bfloat16)]
)
def test_values_gradients_and_statistics_are_those_of_the_plain_layers(p, dtype):
    model, keypoints, target = problem(p)
    torch.manual_seed(5)
    ours = trained(model, lambda k: forward_dense(model, k, dtype), keypoints, target)

    twin, _, _ = problem(p)
    twin.double()
    kept = iter([(mask != 0).double() for mask in masks(5, (32, 48), p)] if p else [])
    twin.dropout.forward = lambda x: x * next(kept) / (1 - p) if p else x
    for stage in twin.linear_stages:
        stage.dropout.forward = twin.dropout.forward
    theirs = trained(twin, twin.forward_normalized, keypoints.double(), target.double())

    tolerance = 1e-5 if dtype is torch.float32 else 0.1
    assert off(ours[0], theirs[0]) < tolerance
    for name, grad in theirs[1].items():
        if grad.abs().max() > 1e-12:
            assert off(ours[1][name], grad) < tolerance, name
        else:  # the bias before a normalisation
            assert ours[1][name].abs().max() == 0, name
    for name, value in theirs[2].items():
        if value.is_floating_point():
            assert off(ours[2][name], value) < tolerance, name
        else:
            assert ours[2][name] == value, name


def off(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value.double() - expected).norm() / expected.norm().clamp(min=1e-12))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
def test_dropout_drops_its_share_of_independent_units(p):
    drawn = torch.stack([mask != 0 for mask in masks(18, (256, 256), p)])  # more layers than bits in a word
    shares = drawn.float().mean((1, 2))
    assert (shares - (1 - p)).abs().max() < 0.01
    together = torch.corrcoef(drawn.flatten(1).float()) - torch.eye(18)
    assert together.abs().max() < 0.02
    neighbours = (drawn[:, :, 1:] & drawn[:, :, :-1]).float().mean()
    assert neighbours == pytest.approx((1 - p) ** 2, abs=0.01)


def test_torchs_generator_decides_what_is_dropped():
    model, keypoints, _ = problem(0.5)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(forward_dense(model, keypoints, torch.float32))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
