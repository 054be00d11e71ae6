"""One update: the critic's values, advantages, the critic's part, the policy's. One for all.

Shape legend: `T` chunks in a row, `N` environments of this rank.
"""

from dataclasses import dataclass

import torch

from policy.ranks import Ranks
from policy.rl.actor_update import ActorUpdate
from policy.rl.critic_update import CriticUpdate
from policy.rl.effort import Effort as Effort  # Older runs' configurations name it here.
from policy.rl.returns import Advantage, standardise
from policy.rl.rollout import Rollout


@dataclass
class Learner:
    """What learns, and by what measure.

    Args:
        actor: the policy.
        critic: of observations; None where advantages need none.
        advantage: what a chunk was worth.
        ranks: this process among others.
    """

    actor: ActorUpdate
    critic: CriticUpdate | None
    advantage: Advantage
    ranks: Ranks

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
        metrics: dict[str, float] = {}
        values = next_values = torch.zeros_like(rollout.rewards)
        if self.critic is not None:
            values, next_values = self.critic.values(rollout)
        advantages = self.advantage(rollout, values, next_values)
        if self.critic is not None:
            metrics |= self.critic.fit(rollout, advantages + values, values, iteration=iteration)
        if with_actor:
            if self.actor.objective.is_signed and not self.advantage.is_scaled:
                advantages = standardise(advantages, rollout.is_valid, self.ranks)
            metrics |= self.actor.fit(rollout, advantages, iteration=iteration)
        return metrics

    def state(self) -> dict[str, dict]:
        """Weights and optimisers."""
        return {
            name: {"weights": part.module.state_dict(), "optimizer": part.optimizer.state_dict()}
            for name, part in self._parts().items()
        }

    def load_state(self, state: dict[str, dict]) -> None:
        """Weights and optimisers as they were at a state of `state`."""
        for name, part in self._parts().items():
            part.module.load_state_dict(state[name]["weights"])
            part.optimizer.load_state_dict(state[name]["optimizer"])

    def _parts(self) -> dict[str, ActorUpdate | CriticUpdate]:
        """Whatever learns, by name."""
        critic = {} if self.critic is None else {"critic": self.critic}
        return {"actor": self.actor, **critic}
