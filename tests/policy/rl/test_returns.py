"""Advantages against hand-made arithmetic."""

import pytest
import torch

from policy.ranks import Ranks
from policy.rl.returns import (
    Critical,
    GroupRelative,
    RewardToGo,
    gae,
    group_relative,
    rewards_to_go,
    standardise,
)
from policy.rl.rollout import Rollout

NO = torch.zeros(3, 1, dtype=torch.bool)


def column(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)[:, None]


def test_gae_with_a_termination_and_a_truncation_is_the_arithmetic():
    # Chunks 0 and 1 end in a termination, 2 is cut off, 3 goes on.
    rewards, values = column(1.0, 2.0, 3.0, 4.0), column(0.5, 0.6, 0.7, 0.8)
    next_values = column(0.6, 9.0, 0.9, 1.0)  # 9: after a termination nothing counts.
    gamma, lam = 0.9, 0.8
    a3 = 4.0 + 0.9 * 1.0 - 0.8
    a2 = 3.0 + 0.9 * 0.9 - 0.7  # Continued by the value of the last observation, no trace.
    a1 = 2.0 - 0.6
    a0 = 1.0 + 0.9 * 0.6 - 0.5 + 0.9 * 0.8 * a1
    advantages = gae(
        rewards,
        values,
        next_values,
        terminated=column(False, True, False, False, dtype=torch.bool),
        truncated=column(False, False, True, False, dtype=torch.bool),
        is_valid=torch.ones(4, 1, dtype=torch.bool),
        gamma=gamma,
        lam=lam,
    )
    torch.testing.assert_close(advantages, column(a0, a1, a2, a3))


def test_what_is_not_valid_neither_has_an_advantage_nor_hands_one_on():
    is_valid = column(True, False, True, dtype=torch.bool)
    advantages = gae(
        column(1.0, 100.0, 2.0),
        column(0.0, 50.0, 0.0),
        column(0.0, 0.0, 0.0),
        terminated=NO,
        truncated=NO,
        is_valid=is_valid,
        gamma=0.9,
        lam=1.0,
    )
    torch.testing.assert_close(advantages, column(1.0, 0.0, 2.0))


def test_rewards_to_go_stop_at_the_end_of_an_episode():
    out = rewards_to_go(
        column(1.0, 2.0, 4.0), is_last=column(False, True, False, dtype=torch.bool), gamma=0.5
    )
    torch.testing.assert_close(out, column(1.0 + 0.5 * 2.0, 2.0, 4.0))


def test_a_group_is_compared_with_itself_alone():
    returns = torch.tensor([1.0, 3.0, 10.0, 10.0])
    relative = group_relative(returns, torch.ones(4, dtype=torch.bool), group_size=2)
    torch.testing.assert_close(relative, torch.tensor([-1.0, 1.0, 0.0, 0.0]))


def rollout_of(rewards, is_valid, terminated):
    """A rollout of which nothing matters but what became of its chunks, each [T, N]."""
    rewards, is_valid, terminated = map(torch.tensor, (rewards, is_valid, terminated))
    nothing = torch.zeros(0)
    return Rollout(
        cond=nothing,
        features=nothing,
        next_features=nothing,
        x=nothing,
        log_prob=nothing,
        x_final=nothing,
        executed=nothing,
        rewards=rewards,
        terminated=terminated.bool(),
        truncated=torch.zeros_like(terminated).bool(),
        is_valid=is_valid.bool(),
        decided=nothing,
    )


def test_an_episode_that_was_broken_off_is_left_out_of_its_group():
    # A group of three: one ended at once with 1, one goes on without, one broke in chunk 1.
    rollout = rollout_of(
        rewards=[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
        is_valid=[[1, 1, 1], [0, 1, 0]],
        terminated=[[1, 0, 0], [0, 0, 0]],
    )
    advantages = GroupRelative(group_size=3, gamma=1.0)(rollout, NO, NO)
    torch.testing.assert_close(advantages, torch.tensor([[1.0, -1.0, 0.0], [0.0, -1.0, 0.0]]))


def test_rewards_to_come_are_those_of_each_chunk():
    rollout = rollout_of(
        rewards=[[0.0, 1.0], [4.0, 0.0]], is_valid=[[1, 1], [1, 0]], terminated=[[0, 1], [1, 0]]
    )
    advantages = RewardToGo(gamma=0.5)(rollout, NO, NO)
    torch.testing.assert_close(advantages, torch.tensor([[2.0, 1.0], [4.0, 0.0]]))


@pytest.mark.parametrize("make", [Critical, GroupRelative, RewardToGo])
def test_a_discount_above_one_is_refused(make):
    with pytest.raises(ValueError, match=r"advantage.gamma is 1.5"):
        make(gamma=1.5)


def test_a_decay_below_zero_is_refused():
    with pytest.raises(ValueError, match=r"advantage.lam is -1"):
        Critical(lam=-1)


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="group_size is 1"):
        GroupRelative(group_size=1)


def test_standardised_advantages_have_unit_variance_over_the_valid_ones():
    generator = torch.Generator().manual_seed(0)
    advantages = 3 + 2 * torch.randn(50, 4, generator=generator, dtype=torch.float64)
    is_valid = torch.rand(50, 4, generator=generator) < 0.7
    out = standardise(advantages, is_valid, Ranks())
    chosen = out[is_valid]
    assert float(chosen.mean()) == pytest.approx(0, abs=1e-9)
    assert float(chosen.square().mean()) == pytest.approx(1, rel=1e-6)
    assert not out[~is_valid].any()
