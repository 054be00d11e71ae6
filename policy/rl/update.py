"""One update: the critic's targets, advantages, then minibatches of items. One loop for all.

A minibatch is drawn from the items of all ranks, and each rank sees to its own of it: gradients are
sums over the ranks, divided by the number of valid items of all of them.

Shape legend: `T` chunks in a row, `N` environments of this rank.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from policy.diffusion.noise import seeded
from policy.rl.chain import Kernel
from policy.rl.objectives.objective import Items, Objective
from policy.rl.ranks import Ranks
from policy.rl.returns import standardise
from policy.rl.rollout import Rollout
from policy.types import Denoiser

# Streams of random numbers.
ACTOR, CRITIC, DRAWS = range(102, 105)
ROWS = 8192  # of a critic's call without gradients


@dataclass(frozen=True)
class Effort:
    """How much is done with a rollout.

    Args:
        batch_size: items of a minibatch, of all ranks.
        epochs: how often an item is seen; 0.5: every second one is.
        critic_batch_size: chunks of a minibatch of the critic.
        critic_epochs: how often it sees a chunk.
        max_kl: divergence per item at which the actor's part of an update ends; None for never.
        max_grad_norm: of the actor's gradient; longer ones are shortened.

    Raises:
        ValueError: a number is not positive.
    """

    batch_size: int = 512
    epochs: float = 1.0
    critic_batch_size: int = 512
    critic_epochs: int = 4
    max_kl: float | None = None
    max_grad_norm: float = 1.0

    def __post_init__(self):
        for name in ("batch_size", "epochs", "critic_batch_size", "critic_epochs", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"effort.{name} is {getattr(self, name)}, it must be positive")
        if self.max_kl is not None and not self.max_kl > 0:
            raise ValueError(f"effort.max_kl is {self.max_kl}, it must be positive, or null")


@dataclass
class Learner:
    """What learns, and from what it learns how.

    Args:
        denoiser: the policy that learns.
        actor: its module with the weights that learn.
        critic: of observations' features; None where advantages need none.
        actor_optimizer: of the actor's weights.
        critic_optimizer: of the critic's.
        objective: to be descended.
        advantage: (rollout, values, next_values) -> [T, N].
        kernel: of the chains.
        effort: how much is done with a rollout.
        ranks: this process among others.
        seed: of the run.
        reference: the policy that it was tuned from; None where the objective does not ask.
    """

    denoiser: Denoiser
    actor: nn.Module
    critic: nn.Module | None
    actor_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer | None
    objective: Objective
    advantage: Callable[[Rollout, Tensor, Tensor], Tensor]
    kernel: Kernel
    effort: Effort
    ranks: Ranks
    seed: int
    reference: Denoiser | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    def update(
        self, rollout: Rollout, *, iteration: int, with_actor: bool = True
    ) -> dict[str, float]:
        """Learn from a rollout; returns the metrics.

        Args:
            rollout: just played by the policy that learns.
            iteration: of the run; with its seed it gives all chance of the update.
            with_actor: whether the policy changes, or the critic alone.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        self.metrics = {}
        values, next_values = self._values(rollout)
        advantages = self.advantage(rollout, values, next_values)
        if self.critic is not None:
            self._fit_critic(rollout, advantages + values, values, iteration)
        if with_actor:
            if self.objective.is_signed:
                advantages = standardise(advantages, rollout.is_valid, self.ranks)
            self._improve(rollout, advantages, iteration)
        return self.metrics

    @torch.no_grad()
    def _values(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """The critic's values [T, N] before and after each chunk; zeros without a critic."""
        if self.critic is None:
            return torch.zeros_like(rollout.rewards), torch.zeros_like(rollout.rewards)
        before, after = (
            torch.cat([self.critic(part) for part in seen.flatten(0, 1).split(ROWS)])
            for seen in (rollout.features, rollout.next_features)
        )
        return before.view(rollout.shape), after.view(rollout.shape)

    def _fit_critic(
        self, rollout: Rollout, targets: Tensor, values: Tensor, iteration: int
    ) -> None:
        """Draw the critic's values to targets [T, N]."""
        assert self.critic is not None
        assert self.critic_optimizer is not None
        effort, is_valid = self.effort, rollout.is_valid
        self.metrics["explained_variance"] = explained_variance(
            values, targets, is_valid, self.ranks
        )
        features, targets, is_valid = (
            part.flatten(0, 1) for part in (rollout.features, targets, is_valid)
        )
        for chunks in self._minibatches(
            rollout,
            1,
            effort.critic_batch_size,
            effort.critic_epochs,
            purpose=CRITIC,
            count=iteration,
        ):
            error = (self.critic(features[chunks]) - targets[chunks]).square()
            total = (error * is_valid[chunks]).sum()
            count = self.ranks.sum(is_valid[chunks].sum()).clamp(min=1)
            self.critic_optimizer.zero_grad(set_to_none=True)
            (total / count).backward()
            self.ranks.sum_gradients(self.critic)
            self.critic_optimizer.step()

    def _improve(self, rollout: Rollout, advantages: Tensor, iteration: int) -> None:
        """Descend the objective over minibatches, until the policy has moved as far as it may."""
        effort, objective = self.effort, self.objective
        first = self.ranks.rank * rollout.shape[1]
        generators = [
            seeded(
                self.seed, purpose=DRAWS, count=(iteration << 20) | slot, device=advantages.device
            )
            for slot in range(first, first + rollout.shape[1])
        ]
        prepared = objective.prepare(
            self.denoiser, rollout, kernel=self.kernel, generator=generators
        )
        n_items = objective.n_items(rollout)
        sums: dict[str, Tensor] = {}
        total = torch.zeros((), device=advantages.device)
        n_batches = 0
        for index in self._minibatches(
            rollout, n_items, effort.batch_size, effort.epochs, purpose=ACTOR, count=iteration
        ):
            items = Items.at(index, rollout, n_items, prepared, advantages)
            terms = objective(self.denoiser, self.reference, items, kernel=self.kernel)
            count = self.ranks.sum(terms.count).clamp(min=1)
            self.actor_optimizer.zero_grad(set_to_none=True)
            (terms.loss / count).backward()
            self.ranks.sum_gradients(self.actor)
            norm = nn.utils.clip_grad_norm_(self.actor.parameters(), effort.max_grad_norm)
            metrics = {name: self.ranks.sum(value) for name, value in terms.metrics.items()}
            n_batches += 1
            if not bool(norm.isfinite()):
                raise FloatingPointError(f"the gradient is {float(norm)} in iteration {iteration}")
            kl = float(metrics["kl"] / count) if "kl" in metrics else 0.0
            if effort.max_kl is not None and kl > effort.max_kl:
                break
            self.actor_optimizer.step()
            total += count
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value
            sums["gradient"] = sums.get("gradient", 0.0) + norm * count
        self.metrics |= {name: float(value / total.clamp(min=1)) for name, value in sums.items()}
        broken = {name: value for name, value in self.metrics.items() if not math.isfinite(value)}
        if broken:
            raise FloatingPointError(f"in iteration {iteration} the update gave {broken}")
        self.metrics["batches"] = float(n_batches)

    def _minibatches(
        self,
        rollout: Rollout,
        n_items: int,
        batch_size: int,
        epochs: float,
        *,
        purpose: int,
        count: int,
    ) -> Iterator[Tensor]:
        """Indices into this rank's T N n_items items, minibatch after minibatch.

        The order is that of the items of all ranks, in which n counts on from rank to rank.
        """
        t, n = rollout.shape
        n_all = n * self.ranks.size
        first = self.ranks.rank * n
        total = t * n_all * n_items
        wanted = max(1, round(epochs * total))
        generator = seeded(self.seed, purpose=purpose, count=count, device="cpu")
        rounds = -(-wanted // total)
        order = torch.cat([torch.randperm(total, generator=generator) for _ in range(rounds)])
        for part in order[:wanted].split(batch_size):
            number, chunk = part % n_items, part // n_items
            row, slot = chunk // n_all, chunk % n_all - first
            is_own = (slot >= 0) & (slot < n)
            own = ((row * n + slot) * n_items + number)[is_own]
            yield own.to(rollout.cond.device)


def explained_variance(values: Tensor, targets: Tensor, is_valid: Tensor, ranks: Ranks) -> float:
    """Share of the targets' variance that the values explain; all [T, N]."""
    residual = targets - values
    count = ranks.sum(is_valid.sum()).clamp(min=1)

    def variance(quantity: Tensor) -> Tensor:
        mean = ranks.sum((quantity * is_valid).sum()) / count
        return ranks.sum(((quantity - mean).square() * is_valid).sum()) / count

    return float(1 - variance(residual) / variance(targets).clamp(min=1e-12))
