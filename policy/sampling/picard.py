"""Picard iteration: all steps of sequential sampling at once, repeated until they agree.

A sweep evaluates the denoiser at every level side by side, as one batch, and goes along the
trajectory anew with these predictions. State k is exact after k sweeps at the latest, and usually
all are after far fewer. Worth it where a batch of K costs less than K calls.

Source: Shih et al. 2023, ParaDiGMS, arXiv:2305.16317, algorithm 1.

Differences from the paper:

1. A fixed number of sweeps over the whole trajectory, where the paper slides a window on until a
   tolerance is met: a call costs the same every time.
2. The first guess of a state is the noise scaled to its level, where the paper starts with the
   unscaled noise.
3. A step from a state that has changed since it was evaluated keeps sigma_next / sigma of the
   change, as DDIM does at a given prediction; the paper adds up the steps as they were, and keeps
   all of it. The trajectory they agree on is the same, but what was wrong at a high level no longer
   stays in all states after it, and grids of few steps converge in fewer sweeps.

Shape legend: `K` steps, `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size.
"""

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from policy.diffusion.noise import randn
from policy.diffusion.step import History
from policy.sampling.carry import check_carry, constants
from policy.sampling.descent import Descent
from policy.sampling.sequential import Sequential
from policy.types import Carry, ChunkSpace, Denoiser, Generator


class Picard:
    """A sampler that gives the chunks of `Sequential` for the same noise."""

    start_nfe = 0

    def __init__(self, *, space: ChunkSpace, grid: Tensor, descent: Descent, n_sweeps: int):
        """A sampler.

        Args:
            space: of the chunks.
            grid: [K + 1] decreasing levels ending in 0.
            descent: from level to level, without a corrector.
            n_sweeps: denoiser calls, each with K chunks per stream; K make it exact.

        Raises:
            ValueError: the number of sweeps is not in 1..K, there is a corrector, or the grid is
                no grid of the denoiser.
        """
        self._sequential = Sequential(space=space, grid=grid, descent=descent)
        n_steps = len(grid) - 1
        if not 1 <= n_sweeps <= n_steps:
            raise ValueError(
                f"n_sweeps is {n_sweeps}, it must be in 1..{n_steps}: the grid has {n_steps} "
                f"steps, and as many sweeps are exact"
            )
        if descent.corrector is not None:
            raise ValueError("Picard iteration takes no corrector: use a solver of one call")
        self.space, self.descent, self.n_sweeps = space, descent, n_sweeps

    @property
    def nfe(self) -> int:
        """Denoiser calls per chunk, each with K chunks per stream."""
        return self.n_sweeps

    def start(self, denoiser: Denoiser, cond: Tensor, generator: Generator) -> Carry:
        """Carry of new streams: nothing is known of them yet."""
        return self._sequential.start(denoiser, cond, generator)

    def shift(self, carry: Carry, n_executed: int) -> Carry:
        """The same carry: the next chunk does not depend on it."""
        return self._sequential.shift(carry, n_executed)

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
        check_carry(carry, cond, self.space)
        sigmas, batch = self._sequential.sigmas, len(cond)
        n_steps, shape = len(sigmas) - 1, (batch, *self.space.shape)
        start = sigmas[0] * randn(shape, generator)

        @cache
        def noise() -> Tensor:
            """The same in every sweep: [K * B, Tp, Da], step by step as `Sequential` draws it."""
            return torch.cat([randn(shape, generator) for _ in range(n_steps)])

        level = constants(sigmas, like=start).repeat_interleave(batch)[:, None].expand(-1, shape[1])
        sigma, sigma_next = level[:-batch], level[batch:]
        conds = cond.repeat(n_steps, 1)
        ratios = [low / high for high, low in pairwise(sigmas)]
        # States 0 to K - 1, at first as if the denoiser predicted 0 throughout.
        x = start.repeat(n_steps, 1, 1) * (sigma / sigmas[0])[..., None]
        end = start
        for _ in range(self.n_sweeps):
            x0_hat = self.descent.predict(denoiser, x, sigma, conds)
            before = _step_before(x, x0_hat, sigma, batch)
            moved = self.descent.solver(x, x0_hat, sigma, sigma_next, history=before, noise=noise)
            states = [start]
            for was, to, ratio in zip(x.split(batch), moved.split(batch), ratios, strict=True):
                states.append(to + ratio * (states[-1] - was))
            x, end = torch.cat(states[:-1]), states[-1]
        return end, Carry(x=end, sigma=torch.zeros_like(end[..., 0]))


def _step_before(x: Tensor, x0_hat: Tensor, sigma: Tensor, batch: int) -> History:
    """History of every step [K * B, ...]: what this sweep has of the step before it."""

    def delayed(values: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(values[:batch]), values[:-batch]])

    return History(delayed(x), delayed(x0_hat), delayed(sigma))
