"""Exponential moving average of a model's weights: the weights that are evaluated.

The decay grows with the number of steps s, so that the average always spans about a fixed share of
the training so far: `decay(s) = clip(1 - (1 + s)^-power, 0, max_decay)`. With power 0.75 it is .999
after 10,000 steps. Source: Diffusion Policy (Chi et al. 2023, arXiv:2303.04137).

Differences from the paper: buffers are copied, so that statistics and running means in the average
are those of the model.
"""

import copy
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """A shadow of a model that follows its weights.

    Args:
        model: the model to follow; copied.
        power: exponent of the schedule.
        max_decay: cap of the decay.

    Raises:
        ValueError: `power` or `max_decay` is out of range.
    """

    def __init__(self, model: M, *, power: float = 0.75, max_decay: float = 0.999):
        if power <= 0:
            raise ValueError(f"power is {power}, it must be positive")
        if not 0 <= max_decay < 1:
            raise ValueError(f"max_decay is {max_decay}, it must be in 0..1, 1 excluded")
        self.power, self.max_decay = power, max_decay
        self.step_count = 0
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    def decay(self, step: int) -> float:
        """Share of the old average that update number `step` keeps; 0 in the first."""
        return min(1 - (1 + step) ** -self.power, self.max_decay)

    @torch.no_grad()
    def update(self, model: M) -> None:
        """Follow the model's weights by one step."""
        shadow, weights = list(self.module.parameters()), list(model.parameters())
        # One fused call for all tensors; torch.optim uses these operations too.
        torch._foreach_lerp_(shadow, weights, 1 - self.decay(self.step_count))  # pyright: ignore
        buffers = list(model.buffers())
        if buffers:
            torch._foreach_copy_(list(self.module.buffers()), buffers)  # pyright: ignore
        self.step_count += 1

    def state_dict(self) -> dict[str, object]:
        """The average and the number of updates."""
        return {"module": self.module.state_dict(), "step_count": self.step_count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of `state_dict`."""
        self.module.load_state_dict(state["module"])
        self.step_count = int(state["step_count"])
