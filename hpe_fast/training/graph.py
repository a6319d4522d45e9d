"""A step captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class GraphedStep:
    """Runs ``body(*tensors) -> loss`` eagerly a few times, then captures it in a CUDA graph and replays that.

    The first calls are ordinary training steps on a side stream (they initialise the optimiser's state and cuDNN's
    choices), so no step is wasted and no state needs putting back. A batch of another shape (the last one of an epoch)
    runs eagerly.
    """

    WARMUP = 3

    def __init__(self, body: Callable[..., Tensor]) -> None:
        self._body = body
        self._calls = 0
        self._stream = torch.cuda.Stream()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor | None, ...] = ()
        self._loss: Tensor | None = None

    def __call__(self, *tensors: Tensor | None) -> Tensor:
        if self._graph is not None and self._fits(tensors):
            for static, tensor in zip(self._inputs, tensors, strict=True):
                if static is not None:
                    static.copy_(tensor, non_blocking=True)
            self._graph.replay()
            return self._loss.clone()
        loss = self._eager(tensors)
        self._calls += 1
        if self._calls == self.WARMUP:
            self._capture(tensors)
        return loss

    def _fits(self, tensors: tuple[Tensor | None, ...]) -> bool:
        return all(
            (a is None) == (b is None) and (a is None or a.shape == b.shape)
            for a, b in zip(self._inputs, tensors, strict=True)
        )

    def _eager(self, tensors: tuple[Tensor | None, ...]) -> Tensor:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss = self._body(*tensors)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss

    def _capture(self, tensors: tuple[Tensor | None, ...]) -> None:
        self._inputs = tuple(None if t is None else t.clone() for t in tensors)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: DALI's threads go on calling CUDA meanwhile, which a global capture would forbid them.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._loss = self._body(*self._inputs)
