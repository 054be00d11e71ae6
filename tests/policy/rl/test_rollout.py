"""Rollouts: what they hold, how episodes are counted, what is quarantined."""

import numpy as np
import pytest
import torch
from gymnasium.vector import VectorEnv
from rl_walk import make_behaviour, make_policy, make_slots

from policy.rl.accounting import Accounting
from policy.rl.chain import Kernel
from policy.rl.reward import ChunkReward
from policy.rl.rollout import collect
from policy.rl.slots import ATTEMPTS, FIRST_SEED, Slots

KERNEL = Kernel([2.0, 0.5, 0.1, 0.0], explore_std=0.05)


@pytest.fixture
def policy():
    return make_policy()


def play(policy, slots, *, n_chunks=6, iteration=0, decided=range(3), kernel=KERNEL):
    behaviour = make_behaviour(policy, kernel, decided=decided)
    return collect(slots, behaviour, n_chunks=n_chunks, iteration=iteration)


def test_an_environment_of_constant_reward_gives_its_exact_mean_return(policy):
    # Episodes of 5 steps in chunks of 2: 3 chunks, of which the last executes one action.
    rollout, tally = play(policy, make_slots())
    assert rollout.rewards.T.tolist() == [[2.0, 2.0, 1.0] * 2] * 3
    assert rollout.terminated.T.tolist() == [[False, False, True] * 2] * 3
    assert rollout.executed.sum(-1).T.tolist() == [[2, 2, 1] * 2] * 3
    assert tally.env_steps == 30
    assert [episode.reward for episode in tally.episodes] == [5.0] * 6
    assert [episode.length for episode in tally.episodes] == [5] * 6


def test_short_episodes_are_not_preferred():
    accounting = Accounting()
    long, *short = [accounting.begin() for _ in range(4)]
    for episode in short:
        episode.has_ended = True
    assert accounting.report() == []  # The first to begin has not ended.
    long.has_ended = True
    assert len(accounting.report()) == 4
    assert accounting.report() == []


def test_the_observation_after_an_end_is_the_last_of_its_episode(policy):
    rollout, _ = play(policy, make_slots())
    within = ~(rollout.terminated | rollout.truncated)[:-1]
    followed, begun = rollout.next_features[:-1], rollout.features[1:]
    assert torch.equal(followed[within], begun[within])
    assert not torch.isclose(followed[~within], begun[~within]).any()


@pytest.mark.parametrize("fault", ["broken_at", "unpaid_at"])
def test_numbers_that_are_none_are_quarantined_and_counted(policy, fault):
    slots = make_slots(n_steps=50, **{fault: 3})
    rollout, tally = play(policy, slots, n_chunks=4)
    # The second chunk of each episode breaks: it teaches nothing, and a new episode begins.
    assert rollout.is_valid.T.tolist() == [[True, False] * 2] * 3
    assert tally.n_quarantined == 6
    assert tally.episodes == []
    assert slots.accounting.pending == []  # Nothing is waited for that will never end.
    for column in (rollout.features, rollout.next_features, rollout.rewards, rollout.x):
        assert torch.isfinite(column).all()


def test_an_environment_that_never_starts_is_refused(policy):
    class Broken(VectorEnv):
        num_envs = 1

        def reset(self, **_):
            return {"state": np.full((1, 1, 1), np.nan, np.float32)}, {}

    slots = make_slots(1)
    slots.envs = Broken()
    with pytest.raises(ValueError, match="10 times in a row"):
        slots.begin()


def test_a_rollout_is_a_function_of_seed_and_iteration(policy):
    first, _ = play(policy, make_slots(), iteration=7)
    again, _ = play(policy, make_slots(), iteration=7)
    other, _ = play(policy, make_slots(), iteration=8)
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)


def test_starts_are_far_from_those_that_anybody_evaluates_on():
    seeds = []

    class Seeds(VectorEnv):
        def reset(self, *, seed=None, options=None):
            assert isinstance(seed, list)
            seeds.extend(s for s in seed if s is not None)
            return {"state": np.zeros((3, 1, 1), np.float32)}, {}

    slots = make_slots()
    slots.envs = Seeds()
    slots.begin()
    assert len(set(seeds)) == 3
    assert min(seeds) >= FIRST_SEED


def test_episodes_of_a_group_start_alike_and_are_played_once(policy):
    slots = make_slots(4, group_size=2)
    rollout, tally = play(policy, slots)
    starts = rollout.features[0, :, 0]
    assert starts[0] == starts[1]
    assert starts[2] == starts[3]
    assert starts[0] != starts[2]
    assert rollout.is_valid.T.tolist() == [[True] * 3 + [False] * 3] * 4
    assert len(tally.episodes) == 4
    # The same start, but noise of its own.
    assert not torch.equal(rollout.x[0, 0], rollout.x[0, 1])


def test_an_episode_that_is_cut_counts_as_one_that_ended(policy):
    # Else, of episodes that begin together, those that end early would be counted alone.
    rollout, tally = play(policy, make_slots(4, group_size=2, n_steps=50), n_chunks=3)
    assert rollout.is_valid.all()
    assert tally.n_cut == 4
    assert [episode.length for episode in tally.episodes] == [6] * 4


def test_a_quarantined_episode_of_a_group_is_not_begun_anew(policy):
    slots = make_slots(4, group_size=2, n_steps=50, broken_at=3)
    rollout, tally = play(policy, slots, n_chunks=3)
    assert rollout.is_valid.T.tolist() == [[True, False, False]] * 4
    assert tally.n_quarantined == 4
    assert tally.episodes == []


def test_an_environment_that_starts_at_the_last_attempt_is_taken():
    class Late(VectorEnv):
        def __init__(self):
            self.attempts = 0

        def reset(self, **_):
            self.attempts += 1
            value = 0.0 if self.attempts == ATTEMPTS else np.nan
            return {"state": np.full((1, 1, 1), value, np.float32)}, {}

    slots = make_slots(1)
    slots.envs = Late()
    assert slots.begin()
    assert slots.n_quarantined == ATTEMPTS - 1
    assert not slots.begin()  # There is nothing left to begin.


def test_slots_that_do_not_divide_into_groups_are_refused():
    with pytest.raises(ValueError, match="num_envs is 3"):
        make_slots(3, group_size=2)


def test_policy_actions_that_are_no_numbers_end_the_rollout(policy):
    with torch.no_grad():
        policy.net.get_parameter("out.bias").fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="no numbers"):
        play(policy, make_slots())


def test_only_decisions_are_kept(policy):
    rollout, _ = play(policy, make_slots(), decided=range(1, 3))
    assert rollout.decided.tolist() == [1, 2]
    assert rollout.x.shape[2:] == (3, 4, 1)
    assert rollout.log_prob.shape[2] == 2


@pytest.mark.parametrize(
    ("kernel", "decided"),
    [(KERNEL, range(0, 1)), (Kernel([2.0, 0.5, 0.1, 0.0], explore_std=0.0), range(2))],
    ids=["window", "no floor"],
)
def test_what_was_executed_is_kept_where_the_last_step_is_no_decision(policy, kernel, decided):
    executed = []
    slots = make_slots()
    step = slots.envs.step
    slots.envs.step = lambda actions: (executed.append(actions), step(actions))[1]
    rollout, _ = play(policy, slots, kernel=kernel, decided=decided)
    for t, actions in enumerate(executed):
        np.testing.assert_array_equal(rollout.x_final[t, :, :2].numpy(), actions)
    assert not torch.isclose(rollout.x_final, rollout.x[:, :, -1]).all()


def test_a_weight_of_a_reward_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"reward.success is nan"):
        ChunkReward(success=float("nan"))


def test_progress_pays_the_rise_of_the_reward_and_nothing_for_the_first_chunk(policy):
    slots: Slots = make_slots(
        1, reward=ChunkReward(progress=10.0, success=0.0), is_constant=False, n_steps=4
    )
    rollout, _ = play(policy, slots, n_chunks=2)
    x = [float(rollout.next_features[i, 0, 0]) for i in range(2)]
    gained = 10 * (-abs(x[1] - 1) + abs(x[0] - 1))
    assert rollout.rewards[:, 0].tolist() == pytest.approx([0.0, gained], abs=1e-5)
