"""The seams: denoiser, sampler and its carry, action chunk, robot.

Everybody speaks one noise coordinate, `x = x0 + sigma * eps`, with one sigma per action.

Shape legend: `B` batch (of streams), `Tp` predicted steps, `Da` action size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from data.types import Contract, Observation

# One generator for a whole batch, or one per stream so that a stream's noise does not depend on
# which others share its batch.
Generator = torch.Generator | Sequence[torch.Generator]


class Denoiser(Protocol):
    """Predicts the clean chunk from a noisy one."""

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        """x0_hat [B, Tp, Da] from x [B, Tp, Da], sigma [B, Tp] >= 0 and the encoded observation.

        Rows with sigma == 0 are clean: they condition the others and come back untouched.
        """
        ...


@dataclass(frozen=True)
class Carry:
    """What a sampler keeps of each stream between two calls.

    Args:
        x: [B, Tp, Da] chunk, noisy by `sigma`.
        sigma: [B, Tp] noise level of each action.
    """

    x: Tensor
    sigma: Tensor

    def replace(self, **changes: Tensor) -> Self:
        """A copy with some entries changed."""
        return replace(self, **changes)


class Sampler(Protocol):
    """Turns a denoiser into chunks of actions."""

    @property
    def nfe(self) -> int:
        """Denoiser calls per chunk; a constant, so that a call can be captured as one graph."""
        ...

    def start(self, batch: int, generator: Generator) -> Carry:
        """Carry of `batch` new streams."""
        ...

    def shift(self, carry: Carry, n_executed: int) -> Carry:
        """Carry after `n_executed` actions were executed."""
        ...

    def __call__(
        self, denoiser: Denoiser, cond: Tensor, carry: Carry, generator: Generator
    ) -> tuple[Tensor, Carry]:
        """Actions [B, Tp, Da] in the network's scale, and the carry."""
        ...


@dataclass(frozen=True)
class ActionChunk:
    """A plan: actions for consecutive control ticks, in physical units.

    Args:
        actions: [Tp, Da].
        tick0: control tick that `actions[0]` is meant for.
        contract: meaning of the numbers.
    """

    actions: np.ndarray
    tick0: int
    contract: Contract


class Robot(Protocol):
    """A robot, or something that behaves like one. Times are seconds on the control clock."""

    contract: Contract
    limits: tuple[np.ndarray, np.ndarray]  # lowest and highest action [Da]

    def read(self) -> Observation:
        """The newest observation, stamped with the time it was captured."""
        ...

    def command(self, action: np.ndarray, tick: int) -> None:
        """Send one action [Da] for control tick `tick`."""
        ...

    def stop(self) -> None:
        """Hold still. May be called at any time, any number of times."""
        ...
