"""Many copies of an env, stepped chunk by chunk.

Our own tasks share one `mujoco.batch.Batch`, other envs go through Gymnasium's vector classes. Both
speak the same: observations are field -> [N, To, ...], actions [N, Ta, Da], and what a copy does
does not depend on N.

Shape legend: `N` envs, `To` observed steps, `Ta` executed steps, `Da` action size.
"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from envs.mujoco_env import MujocoEnv
from envs.mujoco_vector import MujocoVectorEnv
from envs.wrappers import ChunkExecution, ObservationHistory

MakeEnv = Callable[..., gym.Env]
# What gymnasium.make puts round a task; MujocoVectorEnv does the same itself.
TRANSPARENT = (TimeLimit, OrderEnforcing, PassiveEnvChecker)


def make_vec(
    make_env: MakeEnv,
    num_envs: int,
    *,
    horizons_obs: int,
    horizons_action: int,
    asynchronous: bool = False,
    nthread: int = 0,
) -> VectorEnv:
    """A vector env at the level of chunks; nothing is reset unless `reset` is called.

    `step(actions [N, Ta, Da])` executes up to Ta actions in each env and sums their rewards; infos
    hold the arrays [N] described at `ChunkExecution`. An env that has finished idles when stepped.
    `reset(seed=int | list | None, options={"reset_mask": mask [N]})` starts new episodes in some.

    Args:
        make_env: makes one env; keyword arguments such as render_mode are bound to it beforehand.
        num_envs: N.
        horizons_obs: To.
        horizons_action: Ta.
        asynchronous: foreign envs run in a process each.
        nthread: threads for our own tasks, 0 for one per CPU.

    Raises:
        ValueError: num_envs < 1.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}, it must be at least 1")
    env = make_env()
    task = env.unwrapped
    if isinstance(task, MujocoEnv) and _is_plain(env):
        return MujocoVectorEnv(
            task,
            num_envs,
            horizons_obs=horizons_obs,
            horizons_action=horizons_action,
            max_episode_steps=env.spec.max_episode_steps if env.spec else None,
            nthread=nthread,
        )
    env.close()

    def make_chunked() -> gym.Env:
        history = ObservationHistory(make_env(), horizons_obs)
        return _FlagsToInfo(ChunkExecution(history, horizons_action))

    vectorise = AsyncVectorEnv if asynchronous else SyncVectorEnv
    envs = vectorise([make_chunked] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
    return _FlagsFromInfo(envs)


def _is_plain(env: gym.Env) -> bool:
    """Whether nothing but the usual wrappers surround the task."""
    while isinstance(env, gym.Wrapper):
        if not isinstance(env, TRANSPARENT):
            return False
        env = env.env
    return True


class _FlagsToInfo(gym.Wrapper):
    """Hides the end of an episode: Gymnasium's vector envs refuse to step what has ended."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, infos = self.env.step(action)
        flags = {"terminated": terminated, "truncated": truncated}
        return observation, float(reward), False, False, {**infos, **flags}


class _FlagsFromInfo(VectorWrapper):
    """Undoes `_FlagsToInfo` for the whole vector."""

    def step(self, actions: np.ndarray) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observations, rewards, _, _, infos = self.env.step(actions)
        # Every env reports every step, so Gymnasium's masks `_name` say nothing.
        infos = {name: values for name, values in infos.items() if not name.startswith("_")}
        terminated, truncated = infos.pop("terminated"), infos.pop("truncated")
        return observations, rewards, terminated, truncated, infos
