"""Several processes that train one model: ``torchrun --nproc-per-node N -m hpe_fast.train``.

Every rank has a copy of the model and its own share of each epoch's samples; after the backward pass of a step one
``all_reduce`` over one flat buffer averages the gradients and the running statistics of batch normalisation, so that
all copies stay the same to the bit. This rather than DistributedDataParallel: its buckets are reduced by hooks that run
during the backward pass, on streams and in an order that it settles in its first iterations, which a CUDA graph can
record only after eleven eager steps with settings of its own; and in a replayed graph the kernels are launched without
the host, so that little is left to hide. One call behind the backward pass is captured like any kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

#: One rank may convert a dataset or wait for a slow disk while the others wait; torchrun ends them if it dies.
TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; on its own unless torchrun started it."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where what the ranks tell each other has to be: NCCL knows only CUDA."""

    @property
    def main(self) -> bool:
        """Whether this rank writes the files."""
        return self.rank == 0

    def average_(self, tensors: list[Tensor]) -> None:
        """Replace float tensors by their mean over the ranks; capturable in a CUDA graph.

        The tensors are dense; a gradient has its parameter's strides, so the order in memory is the same everywhere.
        """
        if self.world == 1 or not tensors:
            return
        parts = [_in_memory_order(t) for t in tensors]
        flat = torch.cat(parts)
        dist.all_reduce(flat)
        flat.div_(self.world)
        torch._foreach_copy_(parts, list(flat.split([len(part) for part in parts])))

    def mean(self, values: Tensor) -> Tensor:
        """Mean of a tensor over the ranks, on the CPU; NaN if it is on one of them."""
        if self.world > 1:
            values = values.to(self.device, copy=True)
            dist.all_reduce(values)
            values /= self.world
        return values.cpu()

    def any(self, *facts: bool) -> tuple[bool, ...]:
        """Which facts are true on some rank. Waits for all of them."""
        if self.world == 1:
            return facts
        votes = torch.tensor(facts, dtype=torch.int32, device=self.device)
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return tuple(bool(vote) for vote in votes.tolist())

    def gather(self, value: Tensor) -> list[Tensor]:
        """A tensor of the same shape from every rank, on the CPU."""
        if self.world == 1:
            return [value.cpu()]
        parts = [torch.empty_like(value, device=self.device) for _ in range(self.world)]
        dist.all_gather(parts, value.to(self.device))
        return [part.cpu() for part in parts]

    def broadcast(self, model: nn.Module) -> None:
        """Give every rank the first one's weights and statistics."""
        if self.world > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(_in_memory_order(tensor), 0)

    def text(self, text: str) -> str:
        """What the first rank says."""
        if self.world == 1:
            return text
        buffer = torch.tensor(list(text.encode().ljust(4096, b"\0")), dtype=torch.uint8, device=self.device)
        dist.broadcast(buffer, 0)
        return bytes(buffer.tolist()).rstrip(b"\0").decode()

    def wait(self) -> None:
        """Until all ranks are here."""
        self.any(True)


@contextmanager
def joined(device_name: str) -> Iterator[Ranks]:
    """The ranks that torchrun started, or this process alone; left again at the end.

    Args:
        device_name: ``--device``: auto, cuda (each rank the GPU of its local number, NCCL) or cpu (gloo).

    Raises:
        ValueError: one device named for several ranks, or fewer GPUs than ranks on this machine.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    if device_name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu or cuda with several ranks, got {device_name!r}")
    local = int(os.environ["LOCAL_RANK"])
    device = torch.device("cpu")
    if device_name == "cuda" or (device_name == "auto" and torch.cuda.is_available()):
        if local >= torch.cuda.device_count():
            raise ValueError(f"rank {local} of this machine has no GPU: there are {torch.cuda.device_count()} here")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Ranks(dist.get_rank(), world, device)
    finally:
        dist.destroy_process_group()


def _in_memory_order(tensor: Tensor) -> Tensor:
    """A dense tensor of any strides as a vector, not copied."""
    return tensor.as_strided((tensor.numel(),), (1,))


def ranks_here() -> int:
    """Processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Running means and variances of batch normalisation."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    return [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]


def synchronize_batch_norm(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Batch statistics over the samples of all ranks; torch's own module on CUDA, which is the only place it works."""
    if ranks.world == 1:
        return model
    if ranks.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            # Only the forward pass differs: parameters, statistics and their names stay as they are.
            module.__class__ = _SyncBatchNorm
    return model


class _SyncBatchNorm(_BatchNorm):
    """Batch normalisation over all ranks for CPUs, in plain operations that autograd differentiates."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # checked when this was a BatchNorm1d or BatchNorm2d

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        axes = [0, *range(2, x.dim())]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        mean = _Mean.apply(x.mean(axes))
        centred = x - mean.view(shape)
        variance = _Mean.apply(centred.square().mean(axes))
        with torch.no_grad():
            self.num_batches_tracked += 1
            count = dist.get_world_size() * x.numel() // x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        gain = self.weight * (variance + self.eps).rsqrt()
        return (centred * gain.view(shape) + self.bias.view(shape)).to(input.dtype)


class _Mean(torch.autograd.Function):
    """Mean over the ranks.

    Each rank's loss is a mean of its own, and the gradients are averaged at the end of the step: so the way back is the
    mean too, of what every rank's loss says of the common value.
    """

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()
