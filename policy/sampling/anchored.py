"""Anchored sampling: from typical chunks, noised a little, to the one that fits best.

Every anchor (a centre of the training chunks) is noised to a truncated level and denoised from
there. Which of them fits the observation is told by how little the denoiser had to change it.

Source: Liao et al. 2025, DiffusionDrive, arXiv:2411.15139, section 4.

Differences from the paper: the mode score needs no trained classifier; it is the mean squared move
of an anchor against the variance it was noised by, so any checkpoint will do.

Shape legend: `M` anchors, `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size.
"""

import torch
from torch import Tensor

from policy.diffusion.noise import gumbel, randn
from policy.diffusion.schedule import check_path, karras_path
from policy.sampling.carry import check_carry, check_executed, nothing_known
from policy.sampling.descent import Descent
from policy.types import Carry, ChunkSpace, Denoiser, Generator


class Anchored:
    """A sampler that denoises all anchors at once and takes one."""

    start_nfe = 0

    def __init__(
        self,
        *,
        space: ChunkSpace,
        descent: Descent,
        n_steps: int,
        start_sigma: float,
        sigma_min: float,
        rho: float,
        temperature: float,
    ):
        """A sampler.

        Args:
            space: of the chunks, with anchors.
            descent: from level to level.
            n_steps: steps from the truncated level to 0.
            start_sigma: level that the anchors are noised to.
            sigma_min: last level before 0.
            rho: spacing of the levels, as of `policy.diffusion.schedule.karras`.
            temperature: of the draw among the scores; 0 takes the best.

        Raises:
            ValueError: there are no anchors, or a setting is out of range.
        """
        if space.anchors is None:
            raise ValueError(
                "the checkpoint has no anchors: fit them with "
                "cadence fit checkpoint=... store.path=..."
            )
        check_path(n_steps, sigma_min=sigma_min, rho=rho)
        space.check_end(sigma_min, setting="sigma_min")
        if sigma_min > start_sigma:
            raise ValueError(
                f"sigma_min is {sigma_min}, it must be at most start_sigma ({start_sigma})"
            )
        if not temperature >= 0:
            raise ValueError(f"temperature is {temperature}, it must be at least 0")
        space.check_start(start_sigma, name="start_sigma")
        self.space, self.descent, self.n_steps = space, descent, n_steps
        self.anchors, self.start_sigma = space.anchors, start_sigma
        self.sigma_min, self.rho, self.temperature = sigma_min, rho, temperature

    @property
    def nfe(self) -> int:
        """Denoiser calls per chunk, each with M chunks per stream."""
        return self.descent.nfe(self.n_steps)

    def start(self, denoiser: Denoiser, cond: Tensor, generator: Generator) -> Carry:
        """Carry of new streams: nothing is known of them yet."""
        return nothing_known(cond, self.space)

    def shift(self, carry: Carry, n_executed: int) -> Carry:
        """The same carry: the next chunk does not depend on it."""
        check_executed(carry, n_executed)
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
        check_carry(carry, cond, self.space)
        candidates, scores = self.candidates(denoiser, cond, generator)
        if self.temperature > 0:
            scores = scores / self.temperature + gumbel(scores.T.shape, generator).T
        best = scores.argmax(dim=0)
        x = candidates[best, torch.arange(len(cond), device=best.device)]
        return x, Carry(x=x, sigma=torch.zeros_like(x[..., 0]))

    def candidates(
        self, denoiser: Denoiser, cond: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """The chunk of each anchor [M, B, Tp, Da], and its mode score [M, B] <= 0."""
        anchors = self.anchors
        n_anchors, batch = len(anchors), len(cond)
        shape = (batch, *self.space.shape)

        def noise() -> Tensor:
            return torch.cat([randn(shape, generator) for _ in range(n_anchors)])

        given = anchors.repeat_interleave(batch, dim=0)  # the stream varies fastest
        sigma = given.new_full(given.shape[:2], self.start_sigma)
        x = given + self.start_sigma * noise()
        levels = karras_path(sigma, self.n_steps, sigma_min=self.sigma_min, rho=self.rho)
        x, _ = self.descent(denoiser, cond.repeat(n_anchors, 1), x, levels, noise=noise)
        moved = (x - given).square().mean(dim=(1, 2)) / (2 * self.start_sigma**2)
        return x.unflatten(0, (n_anchors, batch)), -moved.unflatten(0, (n_anchors, batch))
