"""Chunks drawn step by step, each step a Gaussian decision whose probability is known.

Source: Ren et al. 2024, DPPO, arXiv:2409.00588, sections 4.1 to 4.3.

    x_0 ~ N(0, sigma_0^2)  ->  x_1  ->  ...  ->  x_K = the chunk that is executed
      base  base   tuned   tuned  tuned              weights, with `n_tuned` 3 of K = 5 steps

The first noise and the steps of the frozen base weights are the environment's chance; the others
are decisions of the policy that learns.

Differences from the paper:

1. Steps are counted in the order in which they are taken, 0 being the noisiest.
2. Before the last step all actions of a chunk are part of a decision, executed or not: those that
   are not executed influence those that are through the later steps. Without them (`count_all`)
   the gradient is another one. Ratios and divergences are then those of all these actions.
3. Where the floor of exploration is 0 the last step is deterministic and no decision, so that a
   policy may explore by the noise of its chain alone (its gradient then leaves out that the last
   step, too, changes with the weights).
4. With a single step from a high level, where the prediction hardly depends on the noise that it
   starts from, the chain is an ordinary Gaussian policy round the mean prediction.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size, `K` steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policy.diffusion.likelihood import step_log_prob
from policy.diffusion.noise import randn
from policy.diffusion.schedule import check_grid
from policy.diffusion.step import ancestral_moments
from policy.types import ChunkSpace, Denoiser, Generator

# A narrower Gaussian tells actions apart by less than a thousandth of their range: its likelihood
# ratios are 0 or infinite after the smallest update.
NARROWEST = 1e-3


@dataclass(frozen=True)
class Chain:
    """Steps that were drawn.

    Args:
        x: [B, K + 1, Tp, Da] chunk before each step, and the result.
        log_prob: [B, K, Tp] of each action in each step; 0 of a step without noise.
    """

    x: Tensor
    log_prob: Tensor


@dataclass(frozen=True)
class Kernel:
    """How a chain goes from level to level.

    Args:
        sigmas: K + 1 decreasing levels ending in 0.
        eta: of the steps, 0 for none but the floor's noise, 1 for DDPM's.
        explore_std: least noise of a step, on the variance-preserving scale; 0 for no floor.
        likelihood_std: least standard deviation by which a step is judged, on the same scale; a
            larger one than the step's own damps its gradient by the square of their ratio.
        clip: limit of |x0_hat| in the network's scale; None for no limit.
        count_all: whether all actions of a chunk count in a step before the last, with which the
            gradient is exact unless `likelihood_std` damps it, or the executed ones alone, as in
            the last step, and as in DPPO.

    Raises:
        ValueError: the levels do not decrease to 0, or a standard deviation makes no sense.
    """

    sigmas: Sequence[float]
    eta: float = 1.0
    explore_std: float = 0.02
    likelihood_std: float = 0.0
    clip: float | None = None
    count_all: bool = True

    def __post_init__(self):
        try:
            object.__setattr__(self, "sigmas", tuple(float(sigma) for sigma in self.sigmas))
            check_grid(torch.tensor(self.sigmas))
        except (TypeError, ValueError) as error:
            raise ValueError(f"chain.sigmas is {list(self.sigmas)}: {error}") from error
        for name in ("explore_std", "likelihood_std"):
            std = getattr(self, name)
            if std != 0 and not NARROWEST <= std < 1:
                raise ValueError(
                    f"chain.{name} is {std}: with actions scaled to -1..1 it must be 0, or from "
                    f"{NARROWEST} to 1; narrower likelihoods are degenerate"
                )
        if not 0 <= self.eta <= 1:
            raise ValueError(f"chain.eta is {self.eta}, it must be in 0..1")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"chain.clip is {self.clip}, it must be positive, or null")
        if not any(self.has_noise(step) for step in range(self.n_steps)):
            raise ValueError(
                f"no step of the chain is drawn: chain.eta is {self.eta} and chain.explore_std "
                f"{self.explore_std}, so there is no decision to learn from; raise one of them"
            )

    @property
    def n_steps(self) -> int:
        """K, denoiser calls of a chunk."""
        return len(self.sigmas) - 1

    def has_noise(self, step: int) -> bool:
        """Whether a step is a decision."""
        return self.explore_std > 0 or (self.eta > 0 and self.sigmas[step + 1] > 0)

    def check(self, space: ChunkSpace) -> None:
        """Raise ValueError where a level was not trained."""
        space.check_start(self.sigmas[0], name="chain.sigmas")
        space.check_end(self.sigmas[-2], setting="chain.sigmas")

    def moments(
        self, denoiser: Denoiser, x: Tensor, cond: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean [B, Tp, Da] and standard deviation [B, Tp, 1] of steps.

        Args:
            denoiser: predicts the clean chunk.
            x: [B, Tp, Da] chunk before the step.
            cond: [B, C] encoded observation.
            step: [B] which step each row takes.
        """
        levels = x.new_tensor(self.sigmas)
        sigma = levels[step][:, None].expand(x.shape[:2])
        sigma_next = levels[step + 1][:, None].expand(x.shape[:2])
        x0_hat = denoiser(x, sigma, cond)
        if self.clip is not None:
            x0_hat = x0_hat.clamp(-self.clip, self.clip)
        return ancestral_moments(
            x, x0_hat, sigma, sigma_next, eta=self.eta, min_std=self.explore_std
        )

    def judged_std(self, std: Tensor, step: Tensor) -> Tensor:
        """Standard deviation [B, Tp, 1] by which steps of standard deviation `std` are judged."""
        sigma_next = std.new_tensor(self.sigmas)[step + 1][:, None, None]
        least = self.likelihood_std * (1 + sigma_next**2).sqrt()
        return torch.maximum(std, least)

    def counted(self, executed: Tensor, step: Tensor) -> Tensor:
        """Actions [..., Tp] that count in steps [...], of which some [..., Tp] are executed."""
        if not self.count_all:
            return executed
        return executed | (step < self.n_steps - 1)[..., None]

    def log_prob(self, x_next: Tensor, mean: Tensor, std: Tensor, *, step: Tensor) -> Tensor:
        """Log-probability [B, Tp] of each action of steps [B] to x_next [B, Tp, Da]."""
        return step_log_prob(x_next, mean, self.judged_std(std, step))

    @torch.no_grad()
    def draw(
        self,
        denoisers: Sequence[Denoiser],
        cond: Tensor,
        *,
        shape: Sequence[int],
        generator: Generator,
    ) -> Chain:
        """A chain for each condition.

        Args:
            denoisers: of each of the K steps.
            cond: [B, C] encoded observations.
            shape: Tp, Da.
            generator: of all noise.
        """
        x = self.sigmas[0] * randn((len(cond), *shape), generator)
        chunks, log_probs = [x], []
        for number, denoiser in enumerate(denoisers):
            step = torch.full((len(cond),), number, device=x.device)
            mean, std = self.moments(denoiser, x, cond, step)
            if self.has_noise(number):
                x = mean + std * randn(mean.shape, generator)
                log_probs.append(self.log_prob(x, mean, std, step=step))
            else:
                x = mean
                log_probs.append(x.new_zeros(x.shape[:2]))
            chunks.append(x)
        return Chain(torch.stack(chunks, dim=1), torch.stack(log_probs, dim=1))
