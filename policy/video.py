"""Videos of episodes."""

from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np

from envs.wrappers import ObservationHistory
from policy.agent import Agent
from policy.play import Executor


def film(
    agent: Agent,
    make_env: Callable[..., gym.Env],
    *,
    seed: int,
    path: Path,
) -> None:
    """Play the episode of one seed and write it as an mp4 file.

    Args:
        agent: whose chunks are executed.
        make_env: makes the environment, given `render_mode`.
        seed: of the start and of the policy's noise.
        path: of the video.

    Raises:
        RenderingError: nothing renders on this machine.
    """
    env = ObservationHistory(make_env(render_mode="rgb_array"), agent.horizons.obs)
    try:
        frames = _frames(agent, env, seed, Executor(agent.horizons, agent.inference_delay))
    finally:
        env.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    # The codec's blocks are 16 pixels wide; macro_block_size=2 keeps the size of any even picture.
    fps = round(1 / agent.contract.control_dt)
    imageio.mimwrite(path, frames, fps=fps, macro_block_size=2, quality=8)  # pyright: ignore


def _frames(agent: Agent, env: gym.Env, seed: int, executor: Executor) -> list[np.ndarray]:
    observation, _ = env.reset(seed=seed)
    streams = agent.start([seed])
    frames = [_render(env)]
    while True:
        batch = {name: value[None] for name, value in observation.items()}
        for action in executor.actions(agent.chunk(streams, batch))[0]:
            observation, _, terminated, truncated, _ = env.step(action)
            frames.append(_render(env))
            if terminated or truncated:
                return frames
        agent.shift(streams, agent.horizons.action)


def _render(env: gym.Env) -> np.ndarray:
    frame = env.render()
    assert isinstance(frame, np.ndarray)
    return frame
