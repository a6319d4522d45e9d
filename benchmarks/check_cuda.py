"""Every operator on a CUDA device against the CPU's, directly or from a captured graph; small enough for a sanitizer.

python -m benchmarks.check_cuda [--graphs] [--shape B,J,H,W ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from hpe_fast import ops

DTYPES = {torch.float32: (1e-5, 1e-6), torch.float16: (1e-3, 1e-6), torch.bfloat16: (8e-3, 1e-6)}  # rtol, atol
SHAPES = ["2,17,64,64", "3,17,13,11", "1,3,5,8", "33,17,16,12"]
FORMATS = (torch.contiguous_format, torch.channels_last)

Inputs = dict[str, Tensor]
Operator = Callable[[Inputs], tuple[Tensor, ...]]


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format, seed: int) -> Inputs:
    random = torch.Generator().manual_seed(seed)
    batch, joints, height, width = shape
    heatmaps = torch.randn(2, *shape, generator=random).to(dtype)
    return {
        "heatmaps": heatmaps[0].contiguous(memory_format=memory_format),
        "flipped": heatmaps[1].contiguous(memory_format=memory_format),
        "keypoints": torch.rand(batch, joints, 2, generator=random) * 4 * max(height, width) - 8,
        "weights": torch.randint(2, (batch, joints), generator=random).float(),
        "to_image": torch.randn(batch, 2, 3, generator=random),
        "images": torch.randint(256, (batch, height, width, 3), generator=random, dtype=torch.uint8),
        "color": torch.randn(batch, 3, 4, generator=random),
        "noise_std": torch.rand(batch, generator=random),
        "sample_ids": torch.randint(1 << 40, (batch,), generator=random),
    }


def operators(shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format) -> dict[str, Operator]:
    joints, height, width = shape[1:]
    codec = ops.OFFICIAL.resized((4 * height, 4 * width), (height, width))
    permutation = list(reversed(range(joints)))

    def backward(x: Inputs) -> tuple[Tensor, ...]:
        heatmaps = x["heatmaps"].detach().requires_grad_()
        loss = ops.heatmap_mse_loss(heatmaps, x["keypoints"], x["weights"], codec)
        return loss.detach(), *torch.autograd.grad(loss, heatmaps)

    def decode(refine: str, **options) -> Operator:
        def run(x: Inputs) -> tuple[Tensor, ...]:
            flipped = {"flipped": x["flipped"], "flip_permutation": permutation} if "shift_flipped" in options else {}
            return ops.decode_heatmaps(
                x["heatmaps"], codec, refine=refine, to_image=x["to_image"], **options, **flipped
            )

        return run

    def prepare(x: Inputs) -> tuple[Tensor, ...]:
        extra = {name: x[name] for name in ("color", "noise_std", "sample_ids")}
        return (ops.prepare_images(x["images"], seed=5, dtype=dtype, **extra),)

    return {
        "render": lambda x: (
            ops.render_heatmaps(x["keypoints"], x["weights"], codec, dtype=dtype, memory_format=memory_format),
        ),
        "mse per joint": lambda x: (
            ops.heatmap_mse_loss(x["heatmaps"], x["keypoints"], x["weights"], codec, per_joint=True),
        ),
        "mse and backward": backward,
        "mse and grad": lambda x: ops.heatmap_mse_loss_and_grad(x["heatmaps"], x["keypoints"], x["weights"], codec),
        "decode": decode("quarter"),
        "decode flip": decode("quarter", shift_flipped=True),
        "decode dark": decode("dark"),
        "prepare": prepare,
    }


def captured(operator: Operator, inputs: Inputs, others: Inputs) -> tuple[Tensor, ...]:
    """The operator's results for ``others`` from a graph that was captured with ``inputs``."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        operator(inputs)  # warm-up: modules are loaded, pools are filled
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = operator(inputs)
    for name, value in inputs.items():
        value.copy_(others[name])
    graph.replay()
    return results


def compare(name: str, operator: Operator, make: Callable[[int], Inputs], dtype: torch.dtype, graphs: bool) -> None:
    inputs, others = make(1), make(2)
    expected = operator(others)
    on_device = [{k: v.cuda() for k, v in x.items()} for x in (inputs, others)]
    results = captured(operator, *on_device) if graphs else operator(on_device[1])
    again = operator(on_device[1])
    rtol, atol = DTYPES[dtype]
    if name == "decode dark":  # one Newton step, ill-conditioned on noise: only what is always so
        results, again, expected = results[1:], again[1:], expected[1:]
    for result, repeated, wanted in zip(results, again, expected, strict=True):
        if not torch.equal(result, repeated):
            raise AssertionError("two runs differ")
        scale = max(wanted.abs().max().item(), 1e-3)
        torch.testing.assert_close(result.cpu(), wanted, rtol=rtol, atol=max(atol, 1e-5) * scale)


def check_noise() -> None:
    """CPU and CUDA must draw the same bits."""
    images, unit = torch.zeros(3, 37, 29, 3, dtype=torch.uint8), ops.Normalization((0.0,) * 3, (1.0,) * 3)
    cpu, cuda = (ops.prepare_images(x, unit, noise_std=1.0, seed=1 << 40) for x in (images, images.cuda()))
    if not torch.equal(cpu, cuda.cpu()):
        raise AssertionError("the noise of CPU and CUDA differs")


def checks(shapes: list[str], graphs: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    if not graphs:
        yield "noise bits", check_noise
    for text, dtype, memory_format in itertools.product(shapes, DTYPES, FORMATS):
        shape = tuple(map(int, text.split(",")))
        for name, operator in operators(shape, dtype, memory_format).items():
            label = f"{name} {text} {str(dtype)[6:]} {str(memory_format)[6:]}"

            def run(name=name, operator=operator, shape=shape, dtype=dtype, memory_format=memory_format) -> None:
                compare(name, operator, lambda seed: make_inputs(shape, dtype, memory_format, seed), dtype, graphs)

            yield label, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", action="store_true", help="capture each operator in a CUDA graph and replay it")
    parser.add_argument("--shape", nargs="+", default=SHAPES, help="B,J,H,W")
    parser.add_argument("--json", type=Path, help="where to write the outcome")
    arguments = parser.parse_args()
    outcome = {}
    for label, run in checks(arguments.shape, arguments.graphs):
        try:
            run()
            outcome[label] = "ok"
        except (AssertionError, RuntimeError) as error:
            outcome[label] = str(error).strip()
            print(f"FAILED {label}: {error}")
    failed = sum(result != "ok" for result in outcome.values())
    print(f"{len(outcome) - failed} of {len(outcome)} checks passed on {torch.cuda.get_device_name()}")
    if arguments.json:
        info = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "build": ops.build_info()}
        arguments.json.write_text(json.dumps({**info, "checks": outcome}, indent=1, default=str))
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
