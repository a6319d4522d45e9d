"""From gradients to weights: optimisers, the schedule of the learning rate, and what a step does after backward."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hpe_fast.training.config import OptimizerConfig
from hpe_fast.training.distributed import Ranks, running_statistics
from hpe_fast.training.ema import WeightAverage


def learning_rate(config: OptimizerConfig, step: int, total: int) -> float:
    """The learning rate of a step.

    Example:
        >>> from hpe_fast.training.config import OptimizerConfig
        >>> [round(learning_rate(OptimizerConfig(learning_rate=1.0, warmup=0.5), s, 4), 2) for s in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    done = step / max(total, 1)
    if config.schedule == "step":
        return config.learning_rate * 0.1 ** sum(done >= milestone for milestone in config.milestones)
    if config.schedule == "constant":
        return config.learning_rate
    warmup_steps = max(1, round(config.warmup * total))
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(total - warmup_steps, 1)))


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Fused SGD or AdamW; on CUDA the rate is a tensor, so that a captured step follows the schedule."""
    parameters = list(model.parameters())
    on_cuda = parameters[0].is_cuda
    rate: Any = torch.tensor(config.learning_rate, device=parameters[0].device) if on_cuda else config.learning_rate
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=rate, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
    return torch.optim.AdamW(
        parameters,
        lr=rate,
        betas=(config.momentum, 0.999),
        weight_decay=config.weight_decay,
        fused=True,
        capturable=on_cuda,
    )


class Update:
    """What every step does once the gradients are there: ranks agree, clip, move the weights and their average.

    Attributes:
        config: how the weights move.
        optimizer: of torch.
        average: moving average of the weights, or None.
    """

    def __init__(self, config: OptimizerConfig, model: nn.Module, ranks: Ranks | None = None) -> None:
        self.config, self._model, self._ranks = config, model, ranks or Ranks()
        self._ranks.broadcast(model)
        self._parameters = list(model.parameters())
        self._statistics = running_statistics(model)
        self.optimizer = make_optimizer(config, model)
        self.average = WeightAverage(model, config.ema) if config.ema else None

    @property
    def evaluated(self) -> nn.Module:
        """The model to evaluate and to save: the average where there is one."""
        return self._model if self.average is None else self.average.model

    def __call__(self) -> None:
        self._ranks.average_([*(p.grad for p in self._parameters), *self._statistics])
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def set_learning_rate(self, rate: float) -> None:
        """In place on CUDA: a captured step reads the tensor's address."""
        for group in self._groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "average": self.average and self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # What this device needs, not the one that saved: on CUDA a captured step reads the rate's own tensor.
        own = [{name: group[name] for name in ("lr", "capturable") if name in group} for group in self._groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, kept in zip(self._groups, own, strict=True):
            group.update(kept)
        if self.average is not None:
            self.average.load_state_dict(state["average"])
