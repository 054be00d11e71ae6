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
4. Discrete elements keep nothing of the old chunk, so that a gripper may change its mind: their
   guess is what one call from full noise expects of them, noised to the level of their action.
   RTI-DP scales them down, or clips them, until a flip is near.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from policy.diffusion.noise import randn
from policy.diffusion.schedule import check_path, karras_path
from policy.sampling.carry import UNKNOWN, check_carry, constants, moved, without_past
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
        redraw_discrete: bool = True,
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
            n_committed: actions that are executed as the last chunk has them, besides those that
                are decided already (past ones, and those executed while a chunk is computed).
            redraw_discrete: whether discrete elements, where there are any, are guessed anew, at
                the price of one call; if not they are kept and noised as all others.
            guidance: towards the last chunk, or none. Discrete elements are not guided.

        Raises:
            ValueError: a level was not trained or exceeds full noise, or the number of committed
                actions is not whole or exceeds that of the known ones.
        """
        first_chunk = first(space=space)
        check_path(n_steps, sigma_min=sigma_min, rho=rho)
        space.check_end(sigma_min, setting="sigma_min")
        horizons = space.horizons
        known = horizons.pred - horizons.action - space.n_decided
        if known < 1:
            raise ValueError(
                f"of {horizons.future} actions {horizons.action} are executed before the next "
                f"chunk, so nothing would be known of it: execute fewer"
            )
        if type(n_committed) is not int or not 0 <= n_committed <= known:
            raise ValueError(
                f"n_committed is {n_committed}, {known} actions of the last chunk are known and "
                f"not decided when the next one begins: give a whole number in 0..{known}"
            )
        levels = restart(space)
        check_ladder(levels, space)
        lowest, highest = float(levels[space.n_decided]), float(levels[-1])
        if not sigma_min <= lowest <= highest <= first_chunk.sigmas[0] * (1 + 1e-6):
            raise ValueError(
                f"the restart levels are {lowest:g} to {highest:g}, they must be from sigma_min "
                f"({sigma_min:g}) to full noise ({first_chunk.sigmas[0]:g})"
            )
        self.space, self.first, self.descent = space, first_chunk, descent
        self.n_steps, self.restart = n_steps, tuple(levels.tolist())
        self.sigma_min, self.rho = sigma_min, rho
        self.n_fixed = space.n_decided + n_committed
        self.redraws = redraw_discrete and bool(space.discrete)
        self.guidance = guidance

    @property
    def nfe(self) -> int:
        """Denoiser calls per chunk."""
        return self.descent.nfe(self.n_steps) + self.redraws

    @property
    def start_nfe(self) -> int:
        """Denoiser calls of a stream's first chunk, which come before the first iteration."""
        return self.first.nfe

    def start(self, denoiser: Denoiser, cond: Tensor, generator: Generator) -> Carry:
        """Carry of new streams: a chunk by `first`, whose past is not known."""
        unknown = self.first.start(denoiser, cond, generator)
        carry = self.first(denoiser, cond, unknown, generator)[1]
        return without_past(carry, self.space)

    def shift(self, carry: Carry, n_executed: int) -> Carry:
        """The carry moved in time; nothing is known of its end."""
        return moved(carry, n_executed)

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

        def noise() -> Tensor:
            return randn(carry.x.shape, generator)

        is_known = carry.sigma < UNKNOWN
        position = torch.arange(self.space.horizons.pred, device=carry.x.device)
        is_fixed = is_known & (position < self.n_fixed)
        full = self.first.sigmas[0]
        sigma = torch.where(is_known, constants(self.restart, like=carry.x), full)
        sigma = torch.where(is_fixed, 0.0, sigma)
        guess = torch.where(is_known[..., None], carry.x, 0.0)
        if self.redraws:
            expected = self._expected(denoiser, cond, guess, is_fixed, noise())
            is_redrawn = self._is_discrete(guess) & ~is_fixed[..., None] & is_known[..., None]
            guess = torch.where(is_redrawn, expected, guess)
        x = guess + sigma[..., None] * noise()
        if self.guidance is not None:
            is_guided = is_known[..., None] & ~self._is_discrete(guess)
            denoiser = self.guidance(denoiser, carry.x, is_guided)
        levels = karras_path(sigma, self.n_steps, sigma_min=self.sigma_min, rho=self.rho)
        x, _ = self.descent(denoiser, cond, x, levels, noise=noise)
        return x, Carry(x=x, sigma=torch.zeros_like(sigma))

    def _expected(
        self, denoiser: Denoiser, cond: Tensor, guess: Tensor, is_fixed: Tensor, eps: Tensor
    ) -> Tensor:
        """What one call from full noise expects of a chunk whose fixed actions are known."""
        full = self.first.sigmas[0]
        x = torch.where(is_fixed[..., None], guess, full * eps)
        return self.descent.predict(denoiser, x, torch.where(is_fixed, 0.0, full), cond)

    def _is_discrete(self, x: Tensor) -> Tensor:
        """[Da] bool, whether an element is discrete."""
        elements = range(self.space.action_size)
        return constants([i in self.space.discrete for i in elements], like=x) > 0
