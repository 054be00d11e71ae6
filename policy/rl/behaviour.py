"""The policy as it plays in training: a chain for each observation, some steps of it decisions.

Shape legend: `N` environments, `To` observed steps, `K` decisions of a chain, `Tp Ta Da` predicted
steps, executed steps and action size, `C` condition size, `F` features of the critic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.types import Horizons
from policy.model import DiffusionPolicy
from policy.rl.chain import Chain, Kernel
from policy.types import Denoiser, Generator


@dataclass(frozen=True)
class Behaviour:
    """How chunks are drawn.

    Args:
        policy: encodes observations and scales actions; its network is not called.
        kernel: of the chains.
        denoisers: of each step of the chain.
        decided: which steps are kept, as decisions.
        horizons: predicted and executed steps.
    """

    policy: DiffusionPolicy
    kernel: Kernel
    denoisers: Sequence[Denoiser]
    decided: range
    horizons: Horizons

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.policy.parameters()).device

    @property
    def steps(self) -> Tensor:
        """The decisions' steps [K]."""
        return torch.tensor(list(self.decided), device=self.device)

    def draw(self, cond: Tensor, generator: Generator) -> Chain:
        """A chain for each condition [N, C]."""
        shape = self.horizons.pred, self.policy.contract.action.size
        return self.kernel.draw(self.denoisers, cond, shape=shape, generator=generator)

    def actions(self, chain: Chain, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """What is to be executed of chains, [N, Ta, Da] in physical units.

        Args:
            chain: of N environments.
            observation: field name -> [N, To, ...] that the chains were drawn for.

        Raises:
            FloatingPointError: they are no numbers.
        """
        start = self.horizons.past
        told = {k: torch.from_numpy(v) for k, v in self.policy.told(observation).items()}
        x = self.policy.actions(chain.x[:, -1], told)
        actions = x[:, start : start + self.horizons.action].cpu().numpy()
        if not np.isfinite(actions).all():
            raise FloatingPointError("the policy's actions are no numbers")
        return actions

    def executed(self, n_executed: np.ndarray) -> Tensor:
        """Which actions of chunks [N, Tp] were executed, if so many [N] were."""
        index = torch.arange(self.horizons.pred, device=self.device) - self.horizons.past
        return (index >= 0) & (index < torch.from_numpy(n_executed).to(self.device)[:, None])

    def decisions(self, chain: Chain, executed: Tensor) -> dict[str, Tensor]:
        """Columns "x", "log_prob" and "x_final" of a `Rollout`, of executed [N, Tp] actions."""
        first, stop = self.decided.start, self.decided.stop
        counted = self.kernel.counted(executed[:, None], self.steps)
        return {
            "x": chain.x[:, first : stop + 1],
            "log_prob": (chain.log_prob[:, first:stop] * counted).sum(dim=-1),
            "x_final": chain.x[:, -1],
        }


@torch.no_grad()
def encode(policy: DiffusionPolicy, observation: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    """Condition [N, C] of observations, and what a critic sees of them [N, F].

    That is all that is low-dimensional, scaled; and where there are pictures the condition, too.

    Args:
        policy: whose encoder and statistics are used.
        observation: field name -> [N, To, ...]; further fields are ignored.
    """
    device = next(policy.parameters()).device
    known = policy.contract.observation
    rows = {name: torch.from_numpy(observation[name]).to(device) for name in known}
    features = policy.features(rows)
    cond = policy.encoder(features)
    seen = [values.flatten(1) for name, values in features.items() if not known[name].is_image]
    if any(field.is_image for field in known.values()):
        seen.append(cond)
    return cond, torch.cat(seen, dim=-1)
