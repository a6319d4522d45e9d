"""What makes a trained network faster without changing what it computes: folded BatchNorm and CUDA graphs."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy for inference in which every BatchNorm is part of the layer before it.

    A convolution or dense layer and the BatchNorm registered right after it in the same module are taken as one, which
    holds for every model of ``hpe_fast.models``; the BatchNorm becomes ``nn.Identity``. The results differ by rounding.

    Args:
        model: any module whose order of registration is the order of use. It is not changed.

    Returns:
        The copy, in evaluation mode, without gradients.

    Example:
        >>> from hpe_fast.models import hrnet
        >>> model = hrnet(width=8, modules=(1, 1, 1), blocks=1).eval()
        >>> folded = fold_batchnorm(model)
        >>> any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        False
        >>> images = torch.randn(1, 3, 64, 64)
        >>> torch.allclose(folded(images), model(images), atol=1e-4)
        True
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    for parent in list(folded.modules()):
        for name, following in pairwise(list(parent._modules)):
            layer, norm = parent._modules[name], parent._modules[following]
            if isinstance(norm, _BATCH_NORMS) and norm.track_running_stats:
                fused = _fused(layer, norm)
                if fused is not None:
                    parent._modules[name], parent._modules[following] = fused, nn.Identity()
    return folded


def _fused(layer: nn.Module | None, norm: nn.Module) -> nn.Module | None:
    """The two as one layer; None where they do not fit each other."""
    if isinstance(layer, _CONVOLUTIONS) and layer.out_channels == norm.num_features:
        return fuse_conv_bn_eval(layer, norm)
    if isinstance(layer, _TRANSPOSED) and layer.out_channels == norm.num_features:
        return fuse_conv_bn_eval(layer, norm, transpose=True)
    if isinstance(layer, nn.Linear) and layer.out_features == norm.num_features:
        return fuse_linear_bn_eval(layer, norm)
    return None


class Graphs:
    """CUDA graphs of one function, one for each shape of its input.

    As many are kept as ``limit`` says. Beyond that a batch goes through the smallest graph for a larger one, its last
    rows without meaning, so that crowds of changing numbers capture nothing anew; where it is the largest, the least
    recently used graph makes room.

    The function takes one tensor and returns a tuple of tensors. Calls from several threads and streams take turns: the
    buffers a graph reads and writes are its own, and the outputs handed out are copies.

    Args:
        function: without host synchronisation, so that it can be captured; rows of its results depend on the same rows
            of its input only.
        device: a CUDA device.
        limit: how many graphs are kept.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], device: torch.device, limit: int) -> None:
        self._function, self._device, self._limit = function, device, limit
        self._lock = threading.Lock()
        self._graphs: OrderedDict[Hashable, tuple[Any, Tensor, tuple[Tensor, ...]]] = OrderedDict()
        self._idle = torch.cuda.Event()  # recorded when the buffers may be used again

    def __call__(self, images: Tensor, *options: Hashable) -> tuple[Tensor, ...]:
        with self._lock, torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._idle)
            key = self._fitting(tuple(images.shape), options)
            if key not in self._graphs:
                while len(self._graphs) >= self._limit:
                    torch.cuda.synchronize()  # the oldest graph may still run
                    self._graphs.popitem(last=False)
                self._graphs[key] = self._capture(images, options)
            self._graphs.move_to_end(key)
            graph, buffer, outputs = self._graphs[key]
            buffer[: len(images)].copy_(images)
            graph.replay()
            copies = tuple(output[: len(images)].clone() for output in outputs)
            self._idle.record(stream)
        return copies

    def _fitting(self, shape: tuple[int, ...], options: tuple[Hashable, ...]) -> Hashable:
        """The graph to use, which need not be there yet."""
        if (shape, options) in self._graphs or len(self._graphs) < self._limit:
            return shape, options
        larger = [held for held, others in self._graphs if others == options and held[1:] == shape[1:] and held > shape]
        return min(larger, default=shape), options

    def _capture(self, images: Tensor, options: tuple[Hashable, ...]) -> tuple[Any, Tensor, tuple[Tensor, ...]]:
        buffer = images.clone()
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(2):  # libraries choose their algorithms and allocate outside the capture
                self._function(buffer, *options)
        current.wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = self._function(buffer, *options)
        return graph, buffer, outputs
