"""The policy's part of an update: minibatches of items, until it has moved as far as it may.

Gradients are sums over the ranks, divided by the number of items of all of them; only then are they
shortened, so that every rank takes the same step.

Shape legend: `T` chunks in a row, `N` environments of this rank.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from policy.diffusion.noise import seeded
from policy.ranks import Ranks
from policy.rl.chain import Kernel
from policy.rl.effort import Effort, minibatches
from policy.rl.objectives.objective import Items, Objective
from policy.rl.rollout import Rollout
from policy.types import Denoiser

# Streams of random numbers.
ACTOR, DRAWS = 102, 104


@dataclass
class ActorUpdate:
    """A policy that descends an objective.

    Args:
        denoiser: the policy.
        module: its part with the weights that learn.
        optimizer: of these.
        objective: to be descended.
        kernel: of the chains.
        effort: how much is done with a rollout.
        ranks: this process among others.
        seed: of the run.
        reference: the policy that it was tuned from; None where the objective does not ask.
    """

    denoiser: Denoiser
    module: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    kernel: Kernel
    effort: Effort
    ranks: Ranks
    seed: int
    reference: Denoiser | None = None

    def fit(self, rollout: Rollout, advantages: Tensor, *, iteration: int) -> dict[str, float]:
        """Learn from a rollout; returns the metrics, means over the items that were learned from.

        Args:
            rollout: just played by the policy.
            advantages: [T, N] of its chunks.
            iteration: of the run; with its seed it gives all chance of the update.

        Raises:
            FloatingPointError: a gradient or a metric is not finite; the weights may be lost.
        """
        prepared = self.objective.prepare(
            self.denoiser,
            rollout,
            kernel=self.kernel,
            generator=self._generators(rollout, iteration),
        )
        n_items = self.objective.n_items(rollout)
        sums: dict[str, Tensor] = {}
        n_learned = n_batches = 0
        for batch in minibatches(
            rollout.is_valid,
            self.ranks,
            n_items=n_items,
            batch_size=self.effort.batch_size,
            epochs=self.effort.epochs,
            seed=self.seed,
            purpose=ACTOR,
            iteration=iteration,
        ):
            items = Items.at(batch.own, rollout, n_items, prepared, advantages)
            metrics, norm = self._gradient(items, batch.count)
            if not bool(norm.isfinite()):
                raise FloatingPointError(f"the gradient is {float(norm)} in iteration {iteration}")
            n_batches += 1
            max_kl = self.effort.max_kl
            if max_kl is not None and "kl" in metrics and metrics["kl"] > max_kl * batch.count:
                break
            self.optimizer.step()
            n_learned += batch.count
            for name, value in {**metrics, "gradient": norm * batch.count}.items():
                sums[name] = sums.get(name, 0.0) + value
        means = {name: float(value / n_learned) for name, value in sums.items()}
        broken = {name: value for name, value in means.items() if not math.isfinite(value)}
        if broken:
            raise FloatingPointError(f"in iteration {iteration} the update gave {broken}")
        return {**means, "batches": float(n_batches)}

    def _gradient(self, items: Items, count: int) -> tuple[dict[str, Tensor], Tensor]:
        """Leave the gradient of a minibatch in the weights; its metrics, summed, and its length."""
        terms = self.objective(self.denoiser, self.reference, items, kernel=self.kernel)
        self.optimizer.zero_grad(set_to_none=True)
        (terms.loss / count).backward()
        self.ranks.sum_gradients(self.module)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.effort.max_grad_norm)
        return {name: self.ranks.sum(value) for name, value in terms.metrics.items()}, norm

    def _generators(self, rollout: Rollout, iteration: int) -> list[torch.Generator]:
        """Of each environment's noise, which does not depend on the rank that it is on."""
        n, device = rollout.shape[1], rollout.cond.device
        return [
            seeded(self.seed, purpose=DRAWS, count=(iteration << 20) | slot, device=device)
            for slot in range(self.ranks.rank * n, (self.ranks.rank + 1) * n)
        ]
