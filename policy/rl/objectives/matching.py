"""Objectives on executed chunks and the loss of pre-training, without the chain that drew them.

    error(x0) = w(sigma) |x0_hat(x0 + sigma eps) - x0|^2 / (Ta Da)

`AdvantageWeightedMatching` (AWM) takes -error for a log-probability and the clipped surrogate of
PPO; `WeightedRegression` weighs the error with exp(advantage / temperature): AWR with advantages
of a critic, RWR with the rewards to come (`policy.rl.returns.RewardToGo`).

Sources: Xue et al. 2025, AWM, arXiv:2509.25050, equations 9 to 12; Peng et al. 2019, AWR,
arXiv:1910.00177, algorithm 1; Peters and Schaal 2007, RWR, equation 4, as in the DRWR of Ren et al.
2024, DPPO, arXiv:2409.00588, appendix.

Differences from the papers: one noise level for the whole chunk, spread evenly in its logarithm
(stratified over the draws of a chunk) between `sigma_min` and `sigma_max`; w is EDM's, whatever the
network predicts, up to a cap; AWM's second divergence, from a slow average of the policy, is left
out; AWR and RWR learn from the newest rollout alone, where AWR's paper keeps a store of older ones.

Shape legend: `T` chunks in a row, `N` environments, `M` items of a minibatch, `Tp` actions of a
chunk, `Da` action size, `C` condition size.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from policy.diffusion.noise import randn
from policy.diffusion.precond import EDM, loss_weight
from policy.rl.chain import Kernel
from policy.rl.objectives.objective import Items, Prepared, Terms
from policy.rl.rollout import Rollout
from policy.types import ChunkSpace, Denoiser, Generator

ROWS = 1024  # of a call without gradients


@dataclass(frozen=True)
class Matching:
    """Noisy versions of executed chunks.

    Args:
        draws: noisy versions of a chunk.
        sigma_min: lowest level.
        sigma_max: highest level.
        max_weight: cap of the weight.

    Raises:
        ValueError: there is no draw, or the levels are not in order.
    """

    draws: int = 4
    sigma_min: float = 0.02
    sigma_max: float = 20.0
    max_weight: float = 100.0

    def __post_init__(self):
        if self.draws < 1:
            raise ValueError(f"objective.draws is {self.draws}, it must be at least 1")
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"objective.sigma_min is {self.sigma_min} and objective.sigma_max "
                f"{self.sigma_max}: need 0 < sigma_min < sigma_max"
            )

    def check(self, space: ChunkSpace) -> None:
        """Raise ValueError where it would learn at a level that was not trained."""
        space.check_start(self.sigma_max, name="objective.sigma_max")
        space.check_end(self.sigma_min, setting="objective.sigma_min")

    def draw(self, rollout: Rollout, generator: Generator) -> Prepared:
        """Levels "sigma" [T, N, draws] and noise "eps" [T, N, draws, Tp, Da] of each chunk."""
        t, n = rollout.shape
        noise = randn((n, t, self.draws, 1 + rollout.x_final[0, 0].numel()), generator)
        share = torch.special.ndtr(noise[..., 0])  # Even in 0..1.
        strata = torch.arange(self.draws, device=noise.device)
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        sigma = torch.exp(low + (strata + share) / self.draws * (high - low))
        eps = noise[..., 1:].unflatten(-1, rollout.x_final.shape[-2:])
        return {"sigma": sigma.transpose(0, 1), "eps": eps.transpose(0, 1)}

    def errors(self, denoiser: Denoiser, items: Items) -> Tensor:
        """Weighted squared error [M] of the executed actions, their mean."""
        x0_hat = self.predict(denoiser, items)
        return self.distance(x0_hat, items.x_final, items)

    def predict(self, denoiser: Denoiser, items: Items) -> Tensor:
        """x0_hat [M, Tp, Da] of the items' noisy chunks."""
        x0 = items.x_final
        sigma = items.before("sigma")[:, None].expand(x0.shape[:2])
        return denoiser(x0 + sigma[..., None] * items.before("eps"), sigma, items.cond)

    def distance(self, a: Tensor, b: Tensor, items: Items) -> Tensor:
        """Weighted squared distance [M] of chunks [M, Tp, Da], mean over the executed actions."""
        sigma = items.before("sigma")[:, None].expand(a.shape[:2])
        weight = loss_weight(EDM(), sigma).clamp(max=self.max_weight)
        square = weight * (a - b).square().mean(dim=-1) * items.executed
        return square.sum(dim=-1) / items.executed.sum(dim=-1).clamp(min=1)


@dataclass(frozen=True)
class AdvantageWeightedMatching(Matching):
    """The clipped surrogate of PPO with -error in place of the log-probability.

    Args:
        clip: range of the ratio.
        max_advantage: limit of |advantage|.
        kl_weight: of the squared distance of the predictions from those of the policy that was
            tuned from, weighted as the error.

    Raises:
        ValueError: a number is out of range.
    """

    clip: float = 0.2
    max_advantage: float = 1.0
    kl_weight: float = 0.0
    is_signed = True

    def __post_init__(self):
        super().__post_init__()
        for name in ("clip", "max_advantage"):
            if not getattr(self, name) > 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}, it must be positive")
        if not self.kl_weight >= 0:
            raise ValueError(f"objective.kl_weight is {self.kl_weight}, it must be at least 0")

    def n_items(self, rollout: Rollout) -> int:
        """Draws of a chunk."""
        return self.draws

    @torch.no_grad()
    def prepare(
        self, denoiser: Denoiser, rollout: Rollout, *, kernel: Kernel, generator: Generator
    ) -> Prepared:
        """Draws of each chunk, and their "error" [T, N, draws] before the update."""
        drawn = self.draw(rollout, generator)
        t, n = rollout.shape
        index = torch.arange(t * n * self.draws, device=rollout.x_final.device)
        parts = [
            self.errors(denoiser, Items.at(part, rollout, self.draws, drawn))
            for part in index.split(ROWS)
        ]
        return {**drawn, "error": torch.cat(parts).view(t, n, self.draws)}

    def __call__(
        self, denoiser: Denoiser, reference: Denoiser | None, items: Items, *, kernel: Kernel
    ) -> Terms:
        """Sums over a minibatch of noisy chunks."""
        x0_hat = self.predict(denoiser, items)
        error = self.distance(x0_hat, items.x_final, items)
        log_ratio = items.before("error") - error
        ratio = log_ratio.exp()
        advantage = items.advantage.clamp(-self.max_advantage, self.max_advantage)
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        surrogate = torch.minimum(ratio * advantage, clipped * advantage)
        loss = -surrogate
        metrics = {
            "kl": ratio - 1 - log_ratio,
            "clipped": ((ratio - 1).abs() > self.clip).to(ratio),
            "ratio": ratio,
            "error": error,
        }
        if self.kl_weight and reference is not None:
            with torch.no_grad():
                other = self.predict(reference, items)
            divergence = self.distance(x0_hat, other, items)
            loss = loss + self.kl_weight * divergence
            metrics["kl_to_start"] = divergence
        return Terms.of(loss, metrics)


@dataclass(frozen=True)
class WeightedRegression(Matching):
    """Pre-training on what was played, weighted by exp(advantage / temperature).

    Args:
        temperature: of the advantages, in units of the reward.
        max_ratio: cap of a weight.

    Raises:
        ValueError: a number is not positive.
    """

    temperature: float = 1.0
    max_ratio: float = 20.0
    kl_weight = 0.0
    is_signed = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("temperature", "max_ratio"):
            if not getattr(self, name) > 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}, it must be positive")

    def n_items(self, rollout: Rollout) -> int:
        """Draws of a chunk."""
        return self.draws

    def prepare(
        self, denoiser: Denoiser, rollout: Rollout, *, kernel: Kernel, generator: Generator
    ) -> Prepared:
        """Draws of each chunk."""
        return self.draw(rollout, generator)

    def __call__(
        self, denoiser: Denoiser, reference: Denoiser | None, items: Items, *, kernel: Kernel
    ) -> Terms:
        """Sums over a minibatch of noisy chunks."""
        error = self.errors(denoiser, items)
        weight = (items.advantage / self.temperature).exp().clamp(max=self.max_ratio)
        return Terms.of(weight * error, {"error": error, "weight": weight})
