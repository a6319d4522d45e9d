"""The bars that the operators must clear, measured and printed: ``python -m benchmarks.ops_bars``.

On a CPU: batch 32, float32, two threads, and the cost on the host of a call with next to nothing to compute. On CUDA:
batch 256, float32 and bfloat16, both layouts, against the bandwidth of a copy. The exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.cases import Spec, all_specs, make_case
from benchmarks.timing import Series, host_seconds, middle, ratio, round_robin
from hpe_fast.ops import (
    OFFICIAL,
    decode_heatmaps,
    heatmap_mse_loss,
    heatmap_mse_loss_and_grad,
    prepare_images,
    render_heatmaps,
)

#: Operator: at most so many times the limit; at least so many times as fast as each rival.
CPU_BARS: dict[str, tuple[float | None, dict[str, float]]] = {
    "loss_and_grad": (1.4, {"compiled": 3.5, "eager": 15}),
    "loss_autograd": (None, {"compiled": 2.5}),
    "decode": (1.6, {"eager": 4, "official": 20}),
    "render": (1.5, {}),
    "prepare": (1.5, {}),
    "prepare_noise": (None, {"eager": 5}),
}
CPU_BATCH = 32
NHWC_LIMIT = 1.3
CUDA_BATCH = 256
CUDA_SHARE = 0.9
CUDA_SPEEDUPS = {"eager": 8.0, "compiled": 2.0}
HOST_LIMITS = {"recorded": 20.0, "not recorded": 8.0}


@dataclass
class Bar:
    """A figure that was asked for, and what was measured."""

    what: str
    wanted: float
    found: float
    at_least: bool
    note: str = ""

    @property
    def cleared(self) -> bool:
        return self.found >= self.wanted if self.at_least else self.found <= self.wanted

    def row(self) -> str:
        sign = ">=" if self.at_least else "<="
        outcome = "yes" if self.cleared else "**no**"
        return f"| {self.what} | {sign} {self.wanted:g} | {self.found:.2f} | {outcome} | {self.note} |"


def _times(series: Series, *names: str) -> str:
    return ", ".join(f"{name} {1e3 * middle(series, name):.3f} ms" for name in names)


def _speedups(spec: Spec, series: Series, wanted: dict[str, float]) -> Iterator[Bar]:
    for rival, factor in wanted.items():
        found = ratio(series, rival, "ours")
        yield Bar(f"{spec}: times as fast as {rival}", factor, found, True, _times(series, "ours", rival))


def cpu_bars(operator: str, seconds: float) -> Iterator[Bar]:
    """The bars of an operator on the CPU; both layouts are timed in the same rounds."""
    of_limit, speedups = CPU_BARS[operator]
    specs = [spec for spec in all_specs([CPU_BATCH], "cpu") if spec.operator == operator and spec.dtype == "float32"]
    cases = {spec.layout: make_case(spec, compiled=spec is specs[0] and "compiled" in speedups) for spec in specs}
    first = specs[0]
    wanted = ["ours", "limit", "limit, new tensor", *speedups]
    calls = {name: call for name, call in cases[first.layout].calls().items() if name in wanted}
    if len(specs) > 1:
        calls["ours, nhwc"] = cases["nhwc"].rivals["ours"].call
    for case in cases.values():
        case.check()
    series = round_robin(calls, "cpu", seconds)
    if of_limit is not None:
        found = ratio(series, "ours", "limit")
        names = [name for name in series if name == "ours" or name.startswith("limit")]
        yield Bar(f"{first}: time over the limit's", of_limit, found, False, _times(series, *names))
    yield from _speedups(first, series, speedups)
    if len(specs) > 1:
        found = ratio(series, "ours, nhwc", "ours")
        yield Bar(f"{operator}: NHWC over NCHW", NHWC_LIMIT, found, False, _times(series, "ours, nhwc", "ours"))


def cuda_bars(spec: Spec, seconds: float) -> Iterator[Bar]:
    """The bars of an operator on a GPU."""
    case = make_case(spec, compiled=True)
    case.check()
    series = round_robin(case.calls(), "cuda", seconds)
    found = ratio(series, "copy", "ours") * case.traffic / case.copy_traffic
    yield Bar(f"{spec}: share of a copy's bandwidth", CUDA_SHARE, found, True, _times(series, "ours", "copy"))
    yield from _speedups(spec, series, CUDA_SPEEDUPS)


def host_calls(device: str) -> dict[str, dict[str, Callable[[], object]]]:
    """Calls at batch 1 on maps and pictures so small that only the way to the kernel takes time."""
    codec = OFFICIAL.resized(16, 4)
    random = torch.Generator(device).manual_seed(0)
    keypoints = 16 * torch.rand(1, 1, 2, generator=random, device=device)
    heatmaps = torch.rand(1, 1, 4, 4, generator=random, device=device)
    leaf, images = heatmaps.clone().requires_grad_(), torch.full((1, 4, 4, 3), 7, dtype=torch.uint8, device=device)
    return {
        "recorded": {"heatmap_mse_loss": lambda: heatmap_mse_loss(leaf, keypoints, codec=codec)},
        "not recorded": {
            "heatmap_mse_loss": lambda: heatmap_mse_loss(heatmaps, keypoints, codec=codec),
            "heatmap_mse_loss_and_grad": lambda: heatmap_mse_loss_and_grad(heatmaps, keypoints, codec=codec),
            "decode_heatmaps": lambda: decode_heatmaps(heatmaps, codec),
            "render_heatmaps": lambda: render_heatmaps(keypoints, codec=codec),
            "prepare_images": lambda: prepare_images(images),
        },
    }


def host_bars(device: str) -> Iterator[Bar]:
    """What a call costs on the host."""
    for kind, calls in host_calls(device).items():
        for name, call in calls.items():
            microseconds = 1e6 * host_seconds(call)
            yield Bar(f"{name}: microseconds of a call, {kind}", HOST_LIMITS[kind], microseconds, False)


def all_bars(device: str, seconds: float) -> Iterator[Bar]:
    """Every bar of a device."""
    if device == "cpu":
        for operator in CPU_BARS:
            yield from cpu_bars(operator, seconds)
    else:
        for spec in all_specs([CUDA_BATCH], device):
            if spec.operator in CPU_BARS:
                yield from cuda_bars(spec, seconds)
    yield from host_bars(device)


def main() -> int:
    """Measures and prints; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: 2)")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each group of rivals (default: 4)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts = machine.describe(options.device)
    print(f"{machine.sentence(facts)}\n\n| bar | wanted | measured | cleared | medians |\n|---|---|---|---|---|")
    bars = []
    for bar in all_bars(options.device, options.seconds):
        bars.append(bar)
        print(bar.row(), flush=True)
    if options.json:
        results = [asdict(bar) | {"cleared": bar.cleared} for bar in bars]
        options.json.write_text(json.dumps({"machine": facts, "bars": results}, indent=1))
    return int(not all(bar.cleared for bar in bars))


if __name__ == "__main__":
    sys.exit(main())
