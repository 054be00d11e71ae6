"""Two networks, one for the lower and one for the higher noise levels.

What fine-tuning makes that leaves the first, noisiest steps of a chain as they were: the tuned
network serves the levels below a limit, the one it was tuned from all others.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class ByLevel(nn.Module):
    """The raw prediction of an action by the network that serves its level.

    Where levels are fixed (`at`) and on one side of the limit, only the network of that side is
    called, otherwise both.
    """

    def __init__(
        self,
        *,
        action_size: int,
        cond_size: int,
        pred_horizon: int,
        low: Callable[..., nn.Module],
        high: Callable[..., nn.Module],
        limit: float,
    ):
        """Two networks.

        Args:
            action_size: Da.
            cond_size: C.
            pred_horizon: Tp.
            low: builds the network for levels up to the limit, from these sizes.
            high: builds the one for higher levels.
            limit: in units of c_noise.
        """
        super().__init__()
        sizes = {
            "action_size": action_size,
            "cond_size": cond_size,
            "pred_horizon": pred_horizon,
        }
        self.low, self.high, self.limit = low(**sizes), high(**sizes), limit

    @classmethod
    def of(cls, low: nn.Module, high: nn.Module, *, limit: float) -> Self:
        """Two networks that are there already."""
        # The sizes are those of the networks, which know them.
        return cls(
            action_size=0,
            cond_size=0,
            pred_horizon=0,
            low=lambda **_: low,
            high=lambda **_: high,
            limit=limit,
        )

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor) -> Tensor:
        """Raw prediction [B, Tp, Da]; for the arguments see any other network."""
        is_low = (c_noise <= self.limit)[..., None]
        return torch.where(is_low, self.low(x, c_noise, cond), self.high(x, c_noise, cond))

    def at(self, c_noise: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The network f(x [B, Tp, Da], cond [B, C]) at given levels.

        Args:
            c_noise: [Tp], the same in all samples.
        """
        is_low = c_noise <= self.limit
        if not (is_low.all() or not is_low.any()):
            return lambda x, cond: self(x, c_noise.expand(len(x), -1), cond)
        net = self.low if is_low.all() else self.high
        at = getattr(net, "at", None)
        if at is not None:
            return at(c_noise)
        return lambda x, cond: net(x, c_noise.expand(len(x), -1), cond)

    def lowered(self, weights: str) -> Self:
        """The same with frozen copies that are fast for few rows, of the networks that have them.

        Args:
            weights: of the copies, such as "fp32", "bf16" or "int8".

        Raises:
            ValueError: a network has no such form, and its weights are fp32.
        """
        return type(self).of(
            _lowered(self.low, weights), _lowered(self.high, weights), limit=self.limit
        )

    @property
    def operators(self) -> dict:
        """Operators of the networks -> functions that do the same with less ado."""
        return {**getattr(self.low, "operators", {}), **getattr(self.high, "operators", {})}


def _lowered(net: nn.Module, weights: str) -> nn.Module:
    make = getattr(net, "lowered", None)
    if make is not None:
        return make(weights)
    if weights == "fp32":
        return net
    raise ValueError(
        f"weights={weights} needs a network with lowered(weights), {type(net).__name__} has none: "
        f"use weights=fp32"
    )
