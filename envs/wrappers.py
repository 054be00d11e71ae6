"""From steps to chunks: a history of observations in, a chunk of actions out.

Shape legend: `To` observed steps, `Ta` executed steps, `Da` action size.
"""

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space


class ObservationHistory(gym.Wrapper):
    """Observations of the last To steps, field by field [To, ...], the last being "now".

    At the start of an episode the first observation is repeated.

    Args:
        env: with an observation space of the kind `Dict`.
        n_steps: To.

    Raises:
        ValueError: n_steps < 1, or another kind of observation space.
    """

    def __init__(self, env: gym.Env, n_steps: int):
        if n_steps < 1:
            raise ValueError(f"a history of {n_steps} observations, it must be at least 1")
        if not isinstance(env.observation_space, spaces.Dict):
            raise ValueError(
                f"the observation space is {env.observation_space}, a Dict of fields is needed: "
                f"make the env with envs.gymnasium_adapter.make"
            )
        super().__init__(env)
        self.observation_space = history_space(env.observation_space, n_steps)
        self._history: deque[dict[str, np.ndarray]] = deque(maxlen=n_steps)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode; its first observation fills the history."""
        observation, infos = self.env.reset(seed=seed, options=options)
        self._history.extend([observation] * (self._history.maxlen or 1))
        return self._stacked(), infos

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """One step of the env."""
        observation, reward, terminated, truncated, infos = self.env.step(action)
        self._history.append(observation)
        return self._stacked(), float(reward), terminated, truncated, infos

    def _stacked(self) -> dict[str, np.ndarray]:
        return {name: np.stack([o[name] for o in self._history]) for name in self._history[0]}


class ChunkExecution(gym.Wrapper):
    """Executes a chunk of up to Ta actions as one step; the episode's end cuts a chunk short.

    The reward is the sum over the executed steps. `info` has `n_executed`, `max_reward` (the
    largest reward of an executed step, -inf if there was none), `last_reward` (of the last one, 0
    if there was none), `is_success` (in any executed step) and, where the env has several ways,
    `mode` as of the last step. A finished episode may be stepped further: nothing is executed and
    the last observation returned.

    Args:
        env: the env.
        n_steps: Ta.

    Raises:
        ValueError: n_steps < 1.
    """

    def __init__(self, env: gym.Env, n_steps: int):
        if n_steps < 1:
            raise ValueError(f"a chunk of {n_steps} actions, it must be at least 1")
        super().__init__(env)
        self.action_space = batch_space(env.action_space, n_steps)
        self._observation: Any = None
        self._terminated = self._truncated = False
        self._modes: dict[str, int] = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        self._terminated = self._truncated = False
        self._modes = {"mode": 0} if "modes" in self.env.metadata else {}
        self._observation, infos = self.env.reset(seed=seed, options=options)
        return self._observation, infos

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Execute actions [Ta, Da] until they or the episode end."""
        rewards, is_success = [], False
        for each in action:
            if self._terminated or self._truncated:
                break
            self._observation, reward, self._terminated, self._truncated, infos = self.env.step(
                each
            )
            rewards.append(float(reward))
            is_success |= bool(infos.get("is_success", False))
            self._modes = {name: infos.get(name, mode) for name, mode in self._modes.items()}
        summary = {
            "n_executed": len(rewards),
            "max_reward": max(rewards, default=-np.inf),
            "last_reward": rewards[-1] if rewards else 0.0,
            "is_success": is_success,
            **self._modes,
        }
        return self._observation, sum(rewards), self._terminated, self._truncated, summary


def history_space(space: spaces.Dict, n_steps: int) -> spaces.Dict:
    """The space of To consecutive observations: every field [To, ...]."""
    return spaces.Dict({name: batch_space(field, n_steps) for name, field in space.items()})
