"""A moving average of the weights, which is evaluated and saved in their place."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """``average += (1 - decay) * (weights - average)`` after every step, of parameters and running statistics.

    The first steps count more, ``1 - decay`` being at least ``9 / (9 + steps)``: else the untrained weights would stay
    in the average for the first ``1 / (1 - decay)`` steps. Nothing here waits for the device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        pairs = list(zip(_values(self.model), _values(model), strict=True))
        self._averaged = [mine for mine, _ in pairs if mine.is_floating_point()]
        self._weights = [theirs for _, theirs in pairs if theirs.is_floating_point()]
        self._counts = [(mine, theirs) for mine, theirs in pairs if not mine.is_floating_point()]
        self._steps = torch.zeros((), device=self._averaged[0].device)

    @torch.no_grad()
    def update(self) -> None:
        self._steps += 1
        share = (9 / (9 + self._steps)).clamp(min=1 - self.decay)  # a tensor: a captured step computes it anew
        change = torch._foreach_sub(self._weights, self._averaged)
        torch._foreach_mul_(change, share)
        torch._foreach_add_(self._averaged, change)
        for mine, theirs in self._counts:
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, object]:
        return {"model": self.model.state_dict(), "steps": self._steps}

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self._steps.copy_(state["steps"])


def _values(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
