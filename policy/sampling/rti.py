"""Real-time iteration: each chunk starts from the last one, shifted in time and noised again.

What is known of the next chunk is the last one, moved by the executed actions. It is noised to the
restart level and denoised from there under the new observation: few calls suffice, and the way
once taken is kept. The end of the chunk, of which nothing is known, starts from full noise.

Also here, since both are the same loop with other levels or another denoiser: first actions that
are committed (level 0, as a clean prefix condition the rest), and guidance towards the last chunk.

Sources: Duan et al. 2025, RTI-DP, arXiv:2508.05396; Black et al. 2025, training-time action
conditioning, arXiv:2512.05964 (`n_committed`).

Differences from the papers:

1. The shifted chunk is noised to the level that the denoiser is told, where RTI-DP hands it over as
   it is; and each step goes to the level that the next one is told. Both lessen what remains of an
   outdated plan at the same number of calls.
2. It is shifted by the actions executed, not by one.
3. The appended end starts from full noise instead of a repeated last action.
4. Discrete elements keep nothing of the old chunk: they restart as pure noise, of the level of
   their action, so that a gripper may change its mind.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from policy.diffusion.noise import randn
from policy.diffusion.schedule import karras_path
from policy.sampling.carry import UNKNOWN, check_carry, constants, shift_left
from policy.sampling.descent import Descent
from policy.sampling.ladder import check_ladder
from policy.sampling.sequential import Sequential
from policy.types import Carry, ChunkSpace, Denoiser, Generator, Towards


class RTI:
    """A sampler that denoises the last chunk again, from a restart level."""

    def __init__(
        self,
        *,
        space: ChunkSpace,
        first: Callable[..., Sequential],
        descent: Descent,
        n_steps: int,
        restart: Callable[[ChunkSpace], Tensor],
        sigma_min: float,
        rho: float,
        n_committed: int = 0,
        guidance: Towards | None = None,
    ):
        """A sampler.

        Args:
            space: of the chunks.
            first: makes the sampler of a stream's first chunk, given `space`; its first level is
                that of full noise.
            descent: from level to level.
            n_steps: steps of every later chunk.
            restart: gives the levels [Tp] that the last chunk is noised to, such as
                `policy.sampling.ladder.flat`.
            sigma_min: last level before 0.
            rho: spacing of the levels, as of `policy.diffusion.schedule.karras`.
            n_committed: first actions from now on that are executed as the last chunk has them;
                past ones are facts in any case.
            guidance: towards the last chunk, or none.

        Raises:
            ValueError: a level was not trained or exceeds full noise, or more actions are
                committed than are known.
        """
        first_chunk = first(space=space)
        horizons = space.horizons
        known = horizons.future - horizons.action
        if not 0 <= n_committed <= known:
            raise ValueError(
                f"n_committed is {n_committed}: of {horizons.future} actions, {known} are known "
                f"after {horizons.action} were executed: give 0 to {known}"
            )
        levels = restart(space)
        check_ladder(levels, space)
        lowest, highest = float(levels[horizons.past]), float(levels[-1])
        if not sigma_min <= lowest <= highest <= first_chunk.sigmas[0] * (1 + 1e-6):
            raise ValueError(
                f"the restart levels are {lowest:g} to {highest:g}, they must be from sigma_min "
                f"({sigma_min:g}) to full noise ({first_chunk.sigmas[0]:g})"
            )
        space.check_start(lowest, name="the restart")
        self.space, self.first, self.descent = space, first_chunk, descent
        self.n_steps, self.restart = n_steps, tuple(levels.tolist())
        self.sigma_min, self.rho = sigma_min, rho
        self.n_committed, self.guidance = n_committed, guidance

    @property
    def nfe(self) -> int:
        """Denoiser calls per chunk."""
        return self.descent.nfe(self.n_steps)

    @property
    def start_nfe(self) -> int:
        """Denoiser calls of a stream's first chunk, which come before the first iteration."""
        return self.first.nfe

    def start(self, denoiser: Denoiser, cond: Tensor, generator: Generator) -> Carry:
        """Carry of new streams: a chunk by `first`."""
        unknown = self.first.start(denoiser, cond, generator)
        return self.first(denoiser, cond, unknown, generator)[1]

    def shift(self, carry: Carry, n_executed: int) -> Carry:
        """The carry moved in time; nothing is known of its end."""
        return carry.replace(
            x=shift_left(carry.x, n_executed, fill=0.0),
            sigma=shift_left(carry.sigma, n_executed, fill=UNKNOWN),
        )

    def __call__(
        self, denoiser: Denoiser, cond: Tensor, carry: Carry, generator: Generator
    ) -> tuple[Tensor, Carry]:
        """Actions [B, Tp, Da] in the network's scale, and a carry that holds them.

        Args:
            denoiser: predicts the clean chunk.
            cond: [B, C] encoded observation.
            carry: the last chunk, shifted.
            generator: of all noise.
        """
        check_carry(carry, cond, self.space)
        is_known = carry.sigma < UNKNOWN
        if self.guidance is not None:
            denoiser = self.guidance(denoiser, carry.x, is_known)
        position = torch.arange(self.space.horizons.pred, device=carry.x.device)
        is_committed = is_known & (position < self.space.horizons.past + self.n_committed)
        restart = constants(self.restart, like=carry.x)
        sigma = torch.where(is_known, restart, self.first.sigmas[0])
        sigma = torch.where(is_committed, 0.0, sigma)

        def noise() -> Tensor:
            return randn(carry.x.shape, generator)

        x = self._without_discrete(carry.x, is_committed) + sigma[..., None] * noise()
        levels = karras_path(sigma, self.n_steps, sigma_min=self.sigma_min, rho=self.rho)
        x, _ = self.descent(denoiser, cond, x, levels, noise=noise)
        return x, Carry(x=x, sigma=torch.zeros_like(sigma))

    def _without_discrete(self, x: Tensor, is_committed: Tensor) -> Tensor:
        """The chunk with 0 for discrete elements, except in committed actions."""
        elements = range(self.space.action_size)
        is_kept = constants([i not in self.space.discrete for i in elements], like=x) > 0
        return torch.where(is_kept | is_committed[..., None], x, 0.0)
