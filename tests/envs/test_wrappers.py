# pyright: reportAttributeAccessIssue=false
"""History and chunks on an env that counts its steps."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from envs.wrappers import ChunkExecution, ObservationHistory


class Counter(gym.Env):
    """Observes the number of steps; rewards are given, the episode ends with the last one."""

    metadata = {"modes": ("none", "only")}  # noqa: RUF012
    observation_space = spaces.Dict({"count": spaces.Box(0, 100, (1,), np.float32)})
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, rewards=(1.0, 3.0, -2.0, 0.5, 0.0)):
        self.rewards = rewards

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.actions = 0, []
        return self._observe(), {}

    def step(self, action):
        self.actions.append(action)
        self.count += 1
        reward = self.rewards[self.count - 1]
        info = {"is_success": reward == 3.0, "mode": int(self.count > 1)}
        return self._observe(), reward, self.count == len(self.rewards), False, info

    def _observe(self):
        return {"count": np.array([self.count], np.float32)}


def counts(observation):
    return observation["count"][:, 0].tolist()


def test_history_repeats_the_first_observation_then_slides():
    env = ObservationHistory(Counter(), 3)
    observation, _ = env.reset()
    assert counts(observation) == [0, 0, 0]
    seen = [counts(env.step(np.zeros(2))[0]) for _ in range(4)]
    assert seen == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert counts(env.reset()[0]) == [0, 0, 0]
    assert env.observation_space.contains(observation)


def test_chunk_sums_rewards_and_keeps_the_largest():
    env = ChunkExecution(ObservationHistory(Counter(), 2), 3)
    env.reset()
    actions = np.arange(6, dtype=np.float32).reshape(3, 2)
    observation, reward, terminated, truncated, info = env.step(actions)
    assert counts(observation) == [2, 3]
    assert reward == 1.0 + 3.0 - 2.0
    assert info == {
        "n_executed": 3,
        "max_reward": 3.0,
        "last_reward": -2.0,
        "is_success": True,
        "mode": 1,
    }
    assert not terminated
    assert not truncated
    np.testing.assert_array_equal(env.unwrapped.actions, actions)


def test_end_of_the_episode_cuts_the_chunk_short_and_further_steps_do_nothing():
    env = ChunkExecution(Counter(), 3)
    env.reset()
    env.step(np.zeros((3, 2)))
    last, reward, terminated, _, info = env.step(np.zeros((3, 2)))
    assert (reward, terminated, info["n_executed"]) == (0.5, True, 2)
    again, reward, terminated, _, info = env.step(np.zeros((3, 2)))
    assert (reward, terminated) == (0.0, True)
    assert info == {
        "n_executed": 0,
        "max_reward": -np.inf,
        "last_reward": 0.0,
        "is_success": False,
        "mode": 1,
    }
    np.testing.assert_array_equal(again["count"], last["count"])


def test_time_limit_is_truncation():
    env = ChunkExecution(gym.wrappers.TimeLimit(Counter(), 2), 8)
    env.reset()
    *_, terminated, truncated, info = env.step(np.zeros((8, 2)))
    assert (terminated, truncated, info["n_executed"]) == (False, True, 2)


@pytest.mark.parametrize("wrapper", [ObservationHistory, ChunkExecution])
def test_no_steps_is_an_error(wrapper):
    with pytest.raises(ValueError, match="at least 1"):
        wrapper(Counter(), 0)


def test_history_needs_named_fields():
    with pytest.raises(ValueError, match="gymnasium_adapter"):
        ObservationHistory(gym.make("CartPole-v1"), 2)
