"""Any registered Gymnasium environment with continuous actions; MuJoCo tasks get an expert."""

import gymnasium
from gymnasium.envs.mujoco import MujocoEnv

from envs.adapter import Adapter
from envs.planned import Planned


def make(
    id: str,
    render_mode: str | None = None,
    *,
    control_dt: float | None = None,
    **kwargs,
) -> gymnasium.Env:
    """A registered environment with named observations, a contract and `info["is_success"]`.

    Args:
        id: as for `gymnasium.make`, such as "Hopper-v5" or "module:Name-v0".
        render_mode: "rgb_array" or None.
        control_dt: time between two steps [s]; None reads the environment's own `dt`, or the
            inverse of its `render_fps`.
        **kwargs: arguments of the environment.

    Raises:
        ValueError: there is no such id (near matches are named), the spaces are not supported, or
            the environment does not tell its `control_dt`.
    """
    try:
        env = gymnasium.make(id, render_mode=render_mode, **kwargs)
    except gymnasium.error.Error as error:
        raise ValueError(f"env.id={id} cannot be made: {error}") from error
    adapted = Adapter(env, control_dt=control_dt or _control_dt(env, id), task=id)
    return Planned(adapted) if isinstance(env.unwrapped, MujocoEnv) else adapted


def _control_dt(env: gymnasium.Env, id: str) -> float:
    dt = getattr(env.unwrapped, "dt", None)
    if isinstance(dt, (int, float)) and dt > 0:
        return float(dt)
    fps = env.metadata.get("render_fps")
    if fps:
        return 1 / fps
    raise ValueError(
        f"{id} has neither dt nor render_fps: give the time between two of its steps [s] "
        f"as +env.control_dt=..."
    )
