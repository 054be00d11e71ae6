"""Advantages of chunks: by a critic (GAE), or by comparison within a group.

Sources: Schulman et al. 2016, GAE, arXiv:1506.02438, equation 16; Shao et al. 2024, GRPO,
arXiv:2402.03300, section 4.1.

Differences from the papers: a truncated episode is continued by the value of its last observation,
and no trace runs over the end of an episode; transitions that are not valid (an observation or a
reward that was no number) neither get an advantage nor hand one on.

Shape legend: `T` chunks in a row, `N` environments.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from policy.rl.ranks import Ranks
from policy.rl.rollout import Rollout


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


def group_relative(returns: Tensor, *, group_size: int) -> Tensor:
    """Returns [N] less the mean of their group, in units of its standard deviation.

    A group whose returns are all alike teaches nothing and gets 0.

    Args:
        returns: [N], groups side by side.
        group_size: of each.
    """
    groups = returns.view(-1, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    std = groups.std(dim=1, keepdim=True, correction=0)
    is_alike = std <= 1e-6 * groups.abs().amax(dim=1, keepdim=True).clamp(min=1.0)
    return torch.where(is_alike, 0.0, centred / torch.where(is_alike, 1.0, std)).flatten()


@dataclass(frozen=True)
class Critical:
    """Advantages by a critic: GAE.

    Args:
        gamma: discount of a chunk.
        lam: decay of the trace.
    """

    gamma: float = 0.99
    lam: float = 0.95
    needs_critic = True
    group_size = 1

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
        ValueError: a group has fewer than two episodes.
    """

    group_size: int = 8
    gamma: float = 0.99
    needs_critic = False

    def __post_init__(self):
        if self.group_size < 2:
            raise ValueError(
                f"advantage.group_size is {self.group_size}: a comparison needs at least 2 episodes"
            )

    def __call__(self, rollout: Rollout, values: Tensor, next_values: Tensor) -> Tensor:
        """Advantages [T, N]; the values are not looked at."""
        is_last = rollout.terminated | rollout.truncated
        returns = rewards_to_go(rollout.rewards, is_last=is_last, gamma=self.gamma)[0]
        advantages = group_relative(returns, group_size=self.group_size)
        return advantages.expand_as(rollout.rewards) * rollout.is_valid


def standardise(advantages: Tensor, is_valid: Tensor, ranks: Ranks) -> Tensor:
    """Advantages [T, N] with mean 0 and variance 1 over the valid ones of all ranks."""
    count = ranks.sum(is_valid.sum().to(advantages))
    mean = ranks.sum((advantages * is_valid).sum()) / count
    centred = (advantages - mean) * is_valid
    variance = ranks.sum(centred.square().sum()) / count
    return centred / (variance.sqrt() + 1e-8)
