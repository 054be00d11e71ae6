# pyright: reportAttributeAccessIssue=false
"""Four pads: play visits all of them from one state, and a goal is one of them."""

from collections import Counter
from itertools import pairwise

import gymnasium
import numpy as np
import pytest

from envs.four_pads.expert import PADS, SHARES, Player
from envs.pick_place.expert import Expert

PLAY = "envs.four_pads:cadence/FourPads-v0"
GOAL = "envs.four_pads:cadence/FourPadsGoal-v0"


def episode(env, policy, seed):
    """Observations, rewards and infos of one episode."""
    observation, _ = env.reset(seed=seed)
    steps = []
    while True:
        seen = observation
        observation, reward, terminated, truncated, info = env.step(policy(seen))
        assert reward == float(info["is_success"])
        steps.append((seen, reward, info))
        if terminated or truncated:
            return steps


def expert(env, seed=0):
    (make,) = env.unwrapped.experts().values()
    return make(np.random.default_rng(seed))


def test_a_player_puts_the_cube_on_pad_after_pad():
    env = gymnasium.make(PLAY)
    for seed in range(4):
        steps = episode(env, expert(env, seed), seed)
        assert len(steps) == 80
        placed = [steps[i][0]["cube"][:2] for i, (_, reward, _) in enumerate(steps) if reward]
        assert len(placed) >= 2
        pads = [int(np.linalg.norm(PADS - cube, axis=1).argmin()) for cube in placed]
        assert all(pad != after for pad, after in pairwise(pads))
        assert steps[-1][2]["mode"] == pads[0] + 1


def test_from_one_state_all_pads_are_chosen_in_their_shares():
    n, chosen = 4000, Counter()
    start = {"gripper": np.array([0, 0, 0.15, 0.08]), "cube": np.array([0.0, 0.0, 0.02])}
    for seed in range(n):
        player = Player(np.random.default_rng(seed))
        player(start)
        assert player._target is not None
        chosen[int(np.linalg.norm(PADS - player._target, axis=1).argmin())] += 1
    counts = np.array([chosen[pad] for pad in range(len(PADS))])
    chi2 = ((counts - n * SHARES) ** 2 / (n * SHARES)).sum()
    assert chi2 < 16.3  # 0.999 quantile of chi-squared with 3 degrees of freedom


def test_a_player_does_not_choose_the_pad_it_is_at():
    at = {"gripper": np.array([*PADS[0], 0.12, 0.08]), "cube": np.array([*PADS[0], 0.02])}
    targets = []
    for seed in range(200):
        player = Player(np.random.default_rng(seed))
        player(at)
        targets.append(player._target)
    assert not (np.array(targets) == PADS[0]).all(axis=1).any()


def test_the_expert_reaches_its_goal():
    env = gymnasium.make(GOAL)
    runs = [episode(env, expert(env), seed) for seed in range(40)]
    assert all(steps[-1][1] == 1 for steps in runs)
    assert max(map(len, runs)) <= 30
    assert {steps[-1][2]["mode"] for steps in runs} == {1, 2, 3, 4}


@pytest.mark.parametrize(("any_pad", "is_success"), [(False, False), (True, True)])
def test_the_wrong_pad_is_the_end_and_no_success_unless_all_are_right(any_pad, is_success):
    env = gymnasium.make(GOAL, any_pad=any_pad)
    carrying = Expert()

    def disobedient(observation):
        return carrying({**observation, "target": -observation["goal"]})  # the opposite pad

    steps = episode(env, disobedient, 1)
    assert len(steps) < 60
    _, reward, info = steps[-1]
    assert (reward > 0) == is_success
    chosen = PADS[info["mode"] - 1]
    np.testing.assert_allclose(chosen, -steps[0][0]["goal"], atol=1e-6)


def test_a_cube_that_is_held_over_its_pad_is_not_there():
    env = gymnasium.make(GOAL)
    releasing = expert(env)

    def never_releasing(observation):
        action = releasing(observation)
        action[3] = 0.0 if observation["gripper"][3] < 0.046 else action[3]
        return action

    assert episode(env, never_releasing, 0)[-1][2] == {"is_success": False, "mode": 0}


def test_play_does_not_tell_a_goal():
    play, goal = gymnasium.make(PLAY), gymnasium.make(GOAL)
    assert set(play.observation_space.spaces) == {"gripper", "cube"}
    assert set(goal.observation_space.spaces) == {"gripper", "cube", "goal"}
    observation, _ = goal.reset(seed=0)
    np.testing.assert_allclose(np.abs(observation["goal"]), np.abs(PADS[0]), atol=1e-6)
