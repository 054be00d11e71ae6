"""Tells a policy which of several tasks it is in: the observation field `task`, one-hot.

A policy that learned several tasks needs to know which is wanted where a start does not show it.
The order of the tasks is part of the field's meaning, so it stands in the contract (`frame`), and
a checkpoint that counts the tasks otherwise is refused.
"""

from collections.abc import Callable, Sequence

import gymnasium
import numpy as np
from gymnasium import spaces

FIELD = "task"


class TellTask(gymnasium.ObservationWrapper):
    """An environment whose observations say which of some tasks it is.

    Args:
        env: with a Dict observation and a contract in its metadata.
        task: of this environment.
        tasks: all of them, in the order of the elements.

    Raises:
        ValueError: the task is not one of them, one comes twice, or the environment observes a
            field of this name already.
    """

    def __init__(self, env: gymnasium.Env, *, task: str, tasks: Sequence[str]):
        super().__init__(env)
        if task not in tasks:
            raise ValueError(f"task is {task!r}, choose one of {', '.join(tasks)}")
        if len(set(tasks)) < len(tasks):
            twice = sorted({name for name in tasks if list(tasks).count(name) > 1})
            raise ValueError(f"tasks holds {twice} more than once: give each once")
        fields = env.observation_space
        assert isinstance(fields, spaces.Dict)
        if FIELD in fields.spaces:
            raise ValueError(f"the environment observes a field {FIELD!r} of its own: rename it")
        box = spaces.Box(0.0, 1.0, (len(tasks),), np.float32)
        self.observation_space = spaces.Dict([*fields.items(), (FIELD, box)])
        self._one_hot = np.array([name == task for name in tasks], np.float32)
        contract = env.metadata["contract"]
        told = {**contract["observation"], FIELD: task_field(tasks)}
        self.metadata = {**env.metadata, "contract": {**contract, "observation": told}}

    def observation(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The observation and the task; a copy, so that nobody changes the next one."""
        return {**observation, FIELD: self._one_hot.copy()}


def make(
    env: Callable[..., gymnasium.Env],
    render_mode: str | None = None,
    *,
    task: str | None,
    tasks: Sequence[str],
) -> gymnasium.Env:
    """An environment of one task, for a policy that is told which of several it is in.

    Args:
        env: makes the environment.
        render_mode: "rgb_array" or None.
        task: of this environment.
        tasks: all of the policy's, in its order.

    Raises:
        ValueError: no task is given, or for the rest see `TellTask`.
    """
    if isinstance(tasks, str):
        raise ValueError(f"env.tasks is {tasks!r}, it must be a list: 'env.tasks=[{tasks}]'")
    if task is None:
        raise ValueError(f"give task=NAME, one of {', '.join(tasks)}")
    return TellTask(env(render_mode=render_mode), task=task, tasks=list(tasks))


def task_field(tasks: Sequence[str]) -> dict:
    """JSON form of the contract's field for these tasks."""
    return {
        "shape": [len(tasks)],
        "dtype": "float32",
        "unit": "1",
        "frame": ", ".join(tasks),
        "low": [0.0] * len(tasks),
        "high": [1.0] * len(tasks),
        "normalization": "identity",
    }
