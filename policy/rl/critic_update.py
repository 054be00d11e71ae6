"""A critic: what it says of a rollout, and how it learns from one.

Shape legend: `T` chunks in a row, `N` environments of this rank.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from policy.ranks import Ranks
from policy.rl.effort import Effort, minibatches
from policy.rl.rollout import Rollout

CRITIC = 103  # a stream of random numbers
ROWS = 8192  # of a call without gradients


@dataclass
class CriticUpdate:
    """A critic that learns by regression on its targets.

    Args:
        module: of observations' features.
        optimizer: of its weights.
        effort: how much is done with a rollout.
        ranks: this process among others.
        seed: of the run.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    effort: Effort
    ranks: Ranks
    seed: int

    @torch.no_grad()
    def values(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Values [T, N] of the observations before and after each chunk."""
        before, after = (
            torch.cat([self.module(part) for part in seen.flatten(0, 1).split(ROWS)])
            for seen in (rollout.features, rollout.next_features)
        )
        return before.view(rollout.shape), after.view(rollout.shape)

    def fit(
        self, rollout: Rollout, targets: Tensor, values: Tensor, *, iteration: int
    ) -> dict[str, float]:
        """Draw the values to targets; returns the metrics.

        Args:
            rollout: whose observations are judged.
            targets: [T, N].
            values: [T, N] of `values`.
            iteration: of the run; with its seed it gives the order of the minibatches.
        """
        explained = explained_variance(values, targets, rollout.is_valid, self.ranks)
        features, flat_targets = rollout.features.flatten(0, 1), targets.flatten()
        for batch in minibatches(
            rollout.is_valid,
            self.ranks,
            n_items=1,
            batch_size=self.effort.critic_batch_size,
            epochs=self.effort.critic_epochs,
            seed=self.seed,
            purpose=CRITIC,
            iteration=iteration,
        ):
            error = (self.module(features[batch.own]) - flat_targets[batch.own]).square()
            self.optimizer.zero_grad(set_to_none=True)
            (error.sum() / batch.count).backward()
            self.ranks.sum_gradients(self.module)
            self.optimizer.step()
        return {"explained_variance": explained}


def explained_variance(values: Tensor, targets: Tensor, is_valid: Tensor, ranks: Ranks) -> float:
    """Share of the targets' variance that the values explain; all [T, N]."""
    residual = targets - values
    count = ranks.sum(is_valid.sum()).clamp(min=1)

    def variance(quantity: Tensor) -> Tensor:
        mean = ranks.sum((quantity * is_valid).sum()) / count
        return ranks.sum(((quantity - mean).square() * is_valid).sum()) / count

    return float(1 - variance(residual) / variance(targets).clamp(min=1e-12))
