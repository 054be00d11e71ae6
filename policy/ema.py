"""Exponential moving average of a model's weights: the weights that are evaluated.

The decay grows with the number of steps s, so that the average always spans about a fixed share of
the training so far: `decay(s) = clip(1 - (1 + s)^-power, 0, max_decay)`. With power 0.75 it is .999
after 10,000 steps. Source: Diffusion Policy (Chi et al. 2023, arXiv:2303.04137).

Differences from the paper: buffers are copied, so that statistics and running means in the average
are those of the model.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """A shadow of a model that follows its weights.

    Args:
        model: the model to follow; copied. Its modules have to stay the same.
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
        self._shadow, self._model, self._followed = _parts(self.module), model, _parts(model)

    def decay(self, step: int) -> float:
        """Share of the old average that update number `step` keeps; 0 in the first."""
        return min(1 - (1 + step) ** -self.power, self.max_decay)

    @torch.no_grad()
    def update(self, model: M) -> None:
        """Follow the model's weights by one step."""
        # Looking through the modules takes as long as all the rest.
        followed = self._followed if model is self._model else _parts(model)
        # One fused call for all tensors; torch.optim uses these operations too.
        share = 1 - self.decay(self.step_count)
        torch._foreach_lerp_(self._shadow[0], followed[0], share)  # pyright: ignore
        buffers, others = _tensors(self._shadow[1]), _tensors(followed[1])
        if buffers:
            torch._foreach_copy_(buffers, others)  # pyright: ignore
        self.step_count += 1

    def state_dict(self) -> dict[str, object]:
        """The average and the number of updates."""
        return {"module": self.module.state_dict(), "step_count": self.step_count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of `state_dict`."""
        self.module.load_state_dict(state["module"])
        self.step_count = int(state["step_count"])


# The parameters of a module, and where its buffers are: moving a module makes new ones.
Parts = tuple[list[Tensor], list[tuple[nn.Module, str]]]


def _parts(module: nn.Module) -> Parts:
    places = [(part, name) for part in module.modules() for name in part._buffers]
    return list(module.parameters()), places


def _tensors(places: Sequence[tuple[nn.Module, str]]) -> list[Tensor]:
    tensors = (part._buffers[name] for part, name in places)
    return [tensor for tensor in tensors if tensor is not None]
