"""Sequential sampling: every chunk from fresh noise, all actions at one level, down a grid to 0.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size.
"""

from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from policy.diffusion.noise import device_of, randn
from policy.diffusion.step import History, no_history
from policy.types import Carry, Denoiser, Generator


class Solver(Protocol):
    """One step of a chunk to a lower noise level, such as `policy.diffusion.step.dpmpp_2m`."""

    def __call__(
        self,
        x: Tensor,
        x0_hat: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        *,
        history: History,
        generator: Generator,
    ) -> Tensor:
        """The chunk [B, Tp, Da] at sigma_next."""
        ...


class Sequential:
    """A sampler that denoises each chunk from the grid's first level to 0."""

    def __init__(
        self,
        *,
        pred_horizon: int,
        action_size: int,
        grid: Tensor,
        solver: Solver,
        clip: float | None = None,
    ):
        """A sampler.

        Args:
            pred_horizon: Tp.
            action_size: Da.
            grid: [K + 1] decreasing levels ending in 0, such as `policy.diffusion.schedule.karras`.
            solver: of one step.
            clip: limit of |x0_hat| in the network's scale. Needed by networks that predict the
                noise, whose x0_hat is far off at the first levels; others are better without,
                where actions are not scaled into [-1, 1].

        Raises:
            ValueError: the grid does not decrease to 0, or the limit is not positive.
        """
        if len(grid) < 2 or grid[-1] != 0 or not (grid[:-1] > grid[1:]).all():
            raise ValueError(f"the grid is {grid.tolist()}, it must decrease and end in 0")
        if clip is not None and clip <= 0:
            raise ValueError(f"clip is {clip}, it must be positive, or null for no limit")
        self.pred_horizon, self.action_size = pred_horizon, action_size
        # Plain numbers: a step then needs no transfer to the device.
        self.sigmas = tuple(grid.tolist())
        self.solver, self.clip = solver, clip

    @property
    def nfe(self) -> int:
        """Denoiser calls per chunk."""
        return len(self.sigmas) - 1

    def start(self, batch: int, generator: Generator) -> Carry:
        """Carry of `batch` new streams: nothing is known of them yet."""
        x = torch.zeros(batch, self.pred_horizon, self.action_size, device=device_of(generator))
        return Carry(x=x, sigma=x[..., 0])

    def shift(self, carry: Carry, n_executed: int) -> Carry:
        """The same carry: the next chunk does not depend on it."""
        return carry

    def __call__(
        self, denoiser: Denoiser, cond: Tensor, carry: Carry, generator: Generator
    ) -> tuple[Tensor, Carry]:
        """Actions [B, Tp, Da] in the network's scale, and a carry that holds them.

        Args:
            denoiser: predicts the clean chunk.
            cond: [B, C] encoded observation.
            carry: of `start` or the last call; not used.
            generator: of all noise.
        """
        x = self.sigmas[0] * randn((len(cond), self.pred_horizon, self.action_size), generator)
        history = no_history(x)
        for level, level_next in pairwise(self.sigmas):
            sigma = x.new_full(x.shape[:2], level)
            x0_hat = denoiser(x, sigma, cond)
            if self.clip is not None:
                x0_hat = x0_hat.clamp(-self.clip, self.clip)
            sigma_next = x.new_full(x.shape[:2], level_next)
            x = self.solver(x, x0_hat, sigma, sigma_next, history=history, generator=generator)
            history = History(x0_hat, sigma)
        return x, Carry(x=x, sigma=torch.zeros_like(x[..., 0]))
