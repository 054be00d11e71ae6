"""Streaming: a rolling buffer whose actions are the cleaner, the sooner they are due.

At each tick the actions due now are denoised to 0 and all others a little; the executed ones leave
at the front and pure noise enters at the end. So a tick costs few calls, and a plan is carried on
instead of drawn anew.

    level at the begin of a tick    L0 L0 L0 L0  L1 L1 L1 L1  L2 L2 L2 L2
    at its end                      0  0  0  0   L0 L0 L0 L0  L1 L1 L1 L1

Source: Hoeg et al. 2024, Streaming Diffusion Policy, arXiv:2406.04806.

Differences from the paper:

1. Levels belong to actions, by any ladder, where the paper has chunks of equal steps of a training
   index. The level at the front decides how much of an outdated plan remains.
2. A stream starts with a chunk drawn from noise, noised again to the ladder, and every stream of a
   batch by itself.
3. The appended end has the level of full noise, whatever the ladder says of its place.
4. What is decided is clean to the network, and not clean but called noisy: past actions, and those
   that are executed while a chunk is computed (an inference delay).
5. A multi-step solver begins anew at each tick: a prediction from the last observation would be
   taken for a slope in the noise level.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from policy.diffusion.noise import randn
from policy.diffusion.schedule import check_path, karras_path
from policy.diffusion.step import History, Noise, Solver
from policy.sampling.carry import UNKNOWN, check_carry, constants, moved, without_past
from policy.sampling.descent import Descent
from policy.sampling.ladder import check_ladder
from policy.sampling.sequential import Sequential
from policy.types import Carry, ChunkSpace, Denoiser, Generator


class Streaming:
    """A sampler that keeps a buffer of partly denoised actions."""

    def __init__(
        self,
        *,
        space: ChunkSpace,
        first: Callable[..., Sequential],
        descent: Descent,
        n_steps: int,
        ladder: Callable[[ChunkSpace], Tensor],
        sigma_min: float,
        rho: float,
        head_solver: Solver | None = None,
    ):
        """A sampler.

        Args:
            space: of the chunks.
            first: makes the sampler of a stream's first chunk, given `space`; its first level is
                that of full noise.
            descent: from level to level.
            n_steps: steps of a tick.
            ladder: gives the levels [Tp] at the begin of a tick, such as
                `policy.sampling.ladder.by_chunk`.
            sigma_min: last level before 0 of the actions due now.
            rho: spacing of their levels, as of `policy.diffusion.schedule.karras`.
            head_solver: of the actions due now; None: that of `descent`. One with noise forgets
                more of an outdated plan.

        Raises:
            ValueError: the ladder falls, or a level was not trained.
        """
        first_chunk = first(space=space)
        check_path(n_steps, sigma_min=sigma_min, rho=rho)
        space.check_end(sigma_min, setting="sigma_min")
        levels = ladder(space)
        check_ladder(levels, space)
        space.check_start(float(levels[space.n_decided]), name="the ladder")
        if levels[-1] > first_chunk.sigmas[0] * (1 + 1e-6):
            raise ValueError(
                f"the ladder ends at {float(levels[-1]):g}, full noise is "
                f"{first_chunk.sigmas[0]:g}: end at most there"
            )
        if descent.corrector is not None:
            raise ValueError("streaming takes no corrector: an action's steps span several ticks")
        self.space, self.first, self.descent = space, first_chunk, descent
        self.n_steps, self.ladder = n_steps, tuple(levels.tolist())
        self.sigma_min, self.rho, self.head_solver = sigma_min, rho, head_solver

    @property
    def nfe(self) -> int:
        """Denoiser calls per chunk."""
        return self.n_steps

    @property
    def start_nfe(self) -> int:
        """Denoiser calls of a stream's first chunk, which come before the first tick."""
        return self.first.nfe

    def start(self, denoiser: Denoiser, cond: Tensor, generator: Generator) -> Carry:
        """Carry of new streams: a chunk by `first`, noised to the ladder."""
        unknown = self.first.start(denoiser, cond, generator)
        x0, _ = self.first(denoiser, cond, unknown, generator)
        sigma = constants(self.ladder, like=x0).expand(x0.shape[:2])
        x = x0 + sigma[..., None] * randn(x0.shape, generator)
        return without_past(Carry(x, sigma), self.space)

    def shift(self, carry: Carry, n_executed: int) -> Carry:
        """The buffer moved in time; its end is full noise, drawn at the next call."""
        return moved(carry, n_executed)

    def __call__(
        self, denoiser: Denoiser, cond: Tensor, carry: Carry, generator: Generator
    ) -> tuple[Tensor, Carry]:
        """Actions [B, Tp, Da] in the network's scale, and the carry.

        Those due before the next chunk comes are samples, the later ones predictions.

        Args:
            denoiser: predicts the clean chunk.
            cond: [B, C] encoded observation.
            carry: the buffer, shifted.
            generator: of all noise.
        """
        check_carry(carry, cond, self.space)

        def noise() -> Tensor:
            return randn(carry.x.shape, generator)

        full = self.first.sigmas[0]
        is_new = carry.sigma == UNKNOWN
        sigma = torch.where(is_new, full, carry.sigma)
        x = torch.where(is_new[..., None], full * noise(), carry.x)
        levels = self._levels(sigma)
        descent = replace(self.descent, solver=self._solver(levels[-1] == 0))
        x, last = descent(denoiser, cond, x, levels, noise=noise)
        sigma = levels[-1]
        return torch.where((sigma == 0)[..., None], x, last.x0_hat), Carry(x, sigma)

    def _levels(self, sigma: Tensor) -> list[Tensor]:
        """Levels [B, Tp] from those of the buffer to those at the end of the tick."""
        n = self.space.horizons.action
        later = self.ladder[: len(self.ladder) - n]
        target = constants((0.0,) * n + later, like=sigma)
        target = torch.minimum(target, sigma)
        to_zero = karras_path(sigma, self.n_steps, sigma_min=self.sigma_min, rho=self.rho)
        is_due = target == 0
        # What is due takes the other branch; a ratio of 1 keeps the gradient of this one finite.
        ratio = torch.where(is_due, 1.0, target) / torch.where(is_due, 1.0, sigma)
        between = [sigma * ratio ** (i / self.n_steps) for i in range(self.n_steps)]
        pairs = zip(to_zero, [*between, target], strict=True)
        return [torch.where(is_due, zero, some) for zero, some in pairs]

    def _solver(self, is_head: Tensor) -> Solver:
        """The solver of the actions due now beside that of the others; is_head: [B, Tp]."""
        others, head = self.descent.solver, self.head_solver
        if head is None:
            return others

        def both(
            x: Tensor,
            x0_hat: Tensor,
            sigma: Tensor,
            sigma_next: Tensor,
            *,
            history: History,
            noise: Noise,
        ) -> Tensor:
            args = (x, x0_hat, sigma, sigma_next)
            return torch.where(
                is_head[..., None],
                head(*args, history=history, noise=noise),
                others(*args, history=history, noise=noise),
            )

        return both
