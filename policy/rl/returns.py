"""Advantages of chunks: by a critic (GAE), by comparison within a group, or the rewards to come.

Sources: Schulman et al. 2016, GAE, arXiv:1506.02438, equation 16; Shao et al. 2024, GRPO,
arXiv:2402.03300, section 4.1.

Differences from the papers: a truncated episode is continued by the value of its last observation,
and no trace runs over the end of an episode; transitions that are not valid (an observation or a
reward that was no number) neither get an advantage nor hand one on; an episode that was broken off
by such a number is left out of its group's comparison.

Shape legend: `T` chunks in a row, `N` environments.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from policy.ranks import Ranks
from policy.rl.rollout import Rollout


class Advantage(Protocol):
    """What a chunk was worth."""

    @property
    def needs_critic(self) -> bool:
        """Whether the values are looked at."""
        ...

    @property
    def is_episodic(self) -> bool:
        """Whether a rollout is one episode in each environment."""
        ...

    @property
    def is_scaled(self) -> bool:
        """Whether 0 means that a chunk teaches nothing, so that they are not to be standardised."""
        ...

    @property
    def group_size(self) -> int:
        """Environments side by side that start alike."""
        ...

    def __call__(self, rollout: Rollout, values: Tensor, next_values: Tensor) -> Tensor:
        """Advantages [T, N], given the critic's values [T, N] before and after each chunk."""
        ...


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    *,
    terminated: Tensor,
    truncated: Tensor,
    is_valid: Tensor,
    gamma: float,
    lam: float,
) -> Tensor:
    """Advantages [T, N] by generalised advantage estimation.

    Args:
        rewards: [T, N] of each chunk.
        values: [T, N] of the observation before it.
        next_values: [T, N] of the observation after it, before any reset.
        terminated: [T, N] bool, the episode ended there for good.
        truncated: [T, N] bool, the episode was cut there.
        is_valid: [T, N] bool.
        gamma: discount of a chunk.
        lam: decay of the trace.
    """
    is_last = terminated | truncated
    delta = rewards + gamma * next_values * ~terminated - values
    advantages = torch.zeros_like(rewards)
    trace = torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        trace = delta[t] + gamma * lam * torch.where(is_last[t], 0.0, trace)
        trace = torch.where(is_valid[t], trace, 0.0)
        advantages[t] = trace
    return advantages


def rewards_to_go(rewards: Tensor, *, is_last: Tensor, gamma: float) -> Tensor:
    """Discounted sums [T, N] of the rewards from each chunk to the end of its episode.

    Args:
        rewards: [T, N].
        is_last: [T, N] bool, the last chunk of an episode.
        gamma: discount of a chunk.
    """
    out = torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        later = rewards[t] + gamma * torch.where(is_last[t], 0.0, later)
        out[t] = later
    return out


def group_relative(returns: Tensor, is_whole: Tensor, *, group_size: int) -> Tensor:
    """Returns [N] less the mean of their group, in units of its standard deviation.

    A group whose returns are all alike teaches nothing and gets 0.

    Args:
        returns: [N], groups side by side.
        is_whole: [N] bool, the others are not compared and get 0.
        group_size: of each.
    """
    groups, is_whole = returns.view(-1, group_size), is_whole.view(-1, group_size)
    count = is_whole.sum(dim=1, keepdim=True).clamp(min=1)
    mean = (groups * is_whole).sum(dim=1, keepdim=True) / count
    centred = (groups - mean) * is_whole
    std = (centred.square().sum(dim=1, keepdim=True) / count).sqrt()
    is_alike = std <= 1e-6 * (groups * is_whole).abs().amax(dim=1, keepdim=True).clamp(min=1.0)
    return torch.where(is_alike, 0.0, centred / torch.where(is_alike, 1.0, std)).flatten()


@dataclass(frozen=True)
class Critical:
    """Advantages by a critic: GAE.

    Args:
        gamma: discount of a chunk.
        lam: decay of the trace.

    Raises:
        ValueError: one of them is outside 0..1.
    """

    gamma: float = 0.99
    lam: float = 0.95
    needs_critic = True
    is_episodic = False
    is_scaled = False
    group_size = 1

    def __post_init__(self):
        _check_share("gamma", self.gamma)
        _check_share("lam", self.lam)

    def __call__(self, rollout: Rollout, values: Tensor, next_values: Tensor) -> Tensor:
        """Advantages [T, N], given the critic's values [T, N]."""
        return gae(
            rollout.rewards,
            values,
            next_values,
            terminated=rollout.terminated,
            truncated=rollout.truncated,
            is_valid=rollout.is_valid,
            gamma=self.gamma,
            lam=self.lam,
        )


@dataclass(frozen=True)
class GroupRelative:
    """Advantages by comparison of whole episodes from one start, without a critic.

    Args:
        group_size: episodes of one start.
        gamma: discount of a chunk; below 1, of two successes the quicker one is the better.

    Raises:
        ValueError: a group has fewer than two episodes, or gamma is outside 0..1.
    """

    group_size: int = 8
    gamma: float = 0.99
    needs_critic = False
    is_episodic = True
    is_scaled = True

    def __post_init__(self):
        _check_share("gamma", self.gamma)
        if self.group_size < 2:
            raise ValueError(
                f"advantage.group_size is {self.group_size}: a comparison needs at least 2 episodes"
            )

    def __call__(self, rollout: Rollout, values: Tensor, next_values: Tensor) -> Tensor:
        """Advantages [T, N], the same for all chunks of an episode; no values are looked at."""
        returns = rewards_to_go(rollout.rewards, is_last=rollout.is_last, gamma=self.gamma)[0]
        # An episode that neither ended nor went on to the last chunk was broken off.
        is_whole = rollout.is_last.any(dim=0) | rollout.is_valid[-1]
        advantages = group_relative(returns, is_whole, group_size=self.group_size)
        return advantages.expand_as(rollout.rewards) * rollout.is_valid


@dataclass(frozen=True)
class RewardToGo:
    """The discounted rewards from a chunk to the end of its episode, without a critic.

    Args:
        gamma: discount of a chunk.

    Raises:
        ValueError: it is outside 0..1.
    """

    gamma: float = 0.99
    needs_critic = False
    is_episodic = True
    is_scaled = False
    group_size = 1

    def __post_init__(self):
        _check_share("gamma", self.gamma)

    def __call__(self, rollout: Rollout, values: Tensor, next_values: Tensor) -> Tensor:
        """Rewards to come [T, N]; no values are looked at."""
        return rewards_to_go(rollout.rewards, is_last=rollout.is_last, gamma=self.gamma)


def standardise(advantages: Tensor, is_valid: Tensor, ranks: Ranks) -> Tensor:
    """Advantages [T, N] with mean 0 and variance 1 over the valid ones of all ranks."""
    count = ranks.sum(is_valid.sum().to(advantages)).clamp(min=1)
    mean = ranks.sum((advantages * is_valid).sum()) / count
    centred = (advantages - mean) * is_valid
    variance = ranks.sum(centred.square().sum()) / count
    return centred / (variance.sqrt() + 1e-8)


def _check_share(name: str, value: float) -> None:
    """Raise ValueError unless a factor is in 0..1."""
    if not 0 <= value <= 1:
        raise ValueError(f"advantage.{name} is {value}, it must be in 0..1")
