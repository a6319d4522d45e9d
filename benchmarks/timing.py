"""Rivals timed in turns: what disturbs the machine disturbs all of them, and ratios come from the same moment."""

from __future__ import annotations

import random
import time
import timeit
from collections.abc import Callable
from statistics import median

import torch

Call = Callable[[], object]
Series = dict[str, list[float]]

_BLOCK_SECONDS = 0.004
_BLOCK_CALLS = 20
_CUDA_CALLS = 5
_FLUSH_BYTES = 256 << 20
_BATCH_OF_IMAGES = 31 << 20


def round_robin(calls: dict[str, Call], device: str = "cpu", seconds: float = 3.0, least: int = 5) -> Series:
    """Time rivals in rounds of one block of calls each, in a new random order every round.

    A block starts with calls that are not counted: they bring the caches into the rival's own state, and wait for
    threads of the rival before it that still spin.

    Args:
        calls: what to time, by name.
        device: "cpu" (wall clock) or "cuda" (events, the L2 cache flushed before each call).
        seconds: stop after the round in which they have passed.
        least: rounds at least.

    Returns:
        For each rival the median of its calls in each round, in seconds.
    """
    block = _CudaBlock() if device == "cuda" else _cpu_block
    # glibc returns freed memory to the system, and gets it back page by page, until something as large has been freed
    # once; a process that has held a batch of pictures is past that, so no rival pays for it.
    torch.empty(_BATCH_OF_IMAGES, dtype=torch.uint8)
    order, shuffle = list(calls), random.Random(0).shuffle
    for call in calls.values():
        block(call)
    series: Series = {name: [] for name in calls}
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(series[order[0]]) < least:
        shuffle(order)
        for name in order:
            series[name].append(block(calls[name]))
    return series


def middle(series: Series, name: str) -> float:
    """Median seconds of a rival."""
    return median(series[name])


def ratio(series: Series, name: str, other: str) -> float:
    """Time of ``name`` over time of ``other``: the median over the rounds of the ratio within a round."""
    return median(a / b for a, b in zip(series[name], series[other], strict=True))


def host_seconds(call: Call, number: int = 1000, repeats: int = 15) -> float:
    """Median seconds of a call too short for a clock around each."""
    timeit.repeat(call, number=number, repeat=1)
    return median(timeit.repeat(call, number=number, repeat=repeats)) / number


def _cpu_block(call: Call) -> float:
    clock = time.perf_counter
    ready = clock() + _BLOCK_SECONDS
    call()
    while clock() < ready:
        call()
    times: list[float] = []
    while sum(times) < _BLOCK_SECONDS and len(times) < _BLOCK_CALLS:
        began = clock()
        call()
        times.append(clock() - began)
    return median(times)


class _CudaBlock:
    def __init__(self) -> None:
        l2_bytes = getattr(torch.cuda.get_device_properties(None), "L2_cache_size", 0)
        # Far more than the L2 holds: while it is written, the host gets ahead of the device.
        self._flush = torch.empty(max(_FLUSH_BYTES, 4 * l2_bytes), dtype=torch.uint8, device="cuda")

    def __call__(self, call: Call) -> float:
        call()
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(_CUDA_CALLS)]
        for start, end in events:
            self._flush.zero_()
            self._flush[: len(self._flush) // 2].max()  # else its dirty lines are written back on the next call's time
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return median(start.elapsed_time(end) for start, end in events) / 1e3


class ReplayClock:
    """A timer for pytest-benchmark that plays back durations, two readings each, since it cannot interleave rivals."""

    def __init__(self) -> None:
        self._durations: list[float] = []
        self._now = 0.0
        self._running = False

    def load(self, durations: list[float]) -> None:
        self._durations, self._running = list(reversed(durations)), False

    def read(self) -> float:
        if self._running:
            self._now += self._durations.pop()
        self._running = not self._running
        return self._now


#: A benchmark names its timer when it is collected, before there is anything to play.
CLOCK = ReplayClock()
