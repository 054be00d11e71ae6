"""The published Push-T benchmark, from the package gym-pusht (extra `pusht`).

A disc pushes a T-shaped block onto a target in a 512 x 512 pixel world at 10 Hz. The reward is the
covered fraction of the target, clipped at 0.95 and divided by 0.95; an episode has 300 steps. The
contract is that of the published human demonstrations: replaying their actions from their first
state gives their positions.

Source: Chi et al., "Diffusion Policy", RSS 2023, section V-C.
"""

import os
from dataclasses import replace

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from envs.adapter import Adapter

CONTROL_DT = 0.1  # [s]
DISPLACEMENT = 40.0  # [px], of the block by a hand from outside ...
LOWEST, HIGHEST, MIDDLE = 100.0, 400.0, 256.0  # [px] ... which leaves it within reach
TASK = "push the T-shaped block onto its target"
FIELDS = {
    "state": {"unit": ["px", "px", "px", "px", "rad"], "angles": [4]},
    "action": {"unit": "px"},
}
PICTURE_FIELDS = {"agent": {"unit": "px"}, "action": {"unit": "px"}}


def make(render_mode: str | None = None, *, pictures: bool = False) -> gymnasium.Env:
    """The published Push-T benchmark, observed as its state or in pictures.

    Observation `state` (5,): agent x y, block x y [px], block angle in 0..2 pi [rad]. In pictures:
    `img` (96, 96, 3) uint8 and `agent` (2,), agent x y [px], and nothing of the block. Action (2,):
    absolute target of the agent, x y [px]. A start is a pure function of `reset(seed=...)`.

    The pictures are those of the published demonstrations but for the edges of shapes, which other
    versions of the drawing library put elsewhere by a fraction of a pixel: of 255 levels, 0.1 on
    average over a picture.

    Args:
        render_mode: "rgb_array" (needs no display) or None.
        pictures: whether pictures and the agent's position are observed in place of the state.

    Raises:
        ImportError: gym-pusht is not installed.
    """
    # pygame greets on stdout unless told otherwise, and needs no display for images.
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    try:
        import gym_pusht  # noqa: F401  (registers the environment)
    except ImportError as error:
        raise ImportError(
            "env=gym_pusht needs the package gym-pusht: pip install -e '.[pusht]'"
        ) from error
    spec = replace(gymnasium.spec("gym_pusht/PushT-v0"), entry_point="envs.gym_pusht_game:Game")
    if pictures:
        return Displaceable(_observed_in_pictures(spec))
    env = gymnasium.make(spec, render_mode=render_mode, disable_env_checker=True)
    # The package promises 0..512, but a hard push takes agent and block a few pixels outside.
    unbounded = gymnasium.spaces.Box(-np.inf, np.inf, (5,), np.float64)
    env = gymnasium.wrappers.TransformObservation(env, _unchanged, unbounded)
    env = Adapter(env, control_dt=CONTROL_DT, task=TASK, fields=FIELDS, success_reward=1.0)
    return Displaceable(env)


def _observed_in_pictures(spec: EnvSpec) -> gymnasium.Env:
    """The game, of which a picture and the agent's position are seen."""
    # The package draws what is observed in this mode only, so it is on even if nobody films.
    env = gymnasium.make(
        spec, obs_type="pixels_agent_pos", render_mode="rgb_array", disable_env_checker=True
    )
    picture = gymnasium.spaces.Box(0, 255, (96, 96, 3), np.uint8)
    agent = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    seen = gymnasium.spaces.Dict({"img": picture, "agent": agent})
    env = gymnasium.wrappers.TransformObservation(env, _named, seen)
    return Adapter(env, control_dt=CONTROL_DT, task=TASK, fields=PICTURE_FIELDS, success_reward=1.0)


class Displaceable(gymnasium.Wrapper, gymnasium.utils.RecordConstructorArgs):
    """Push-T whose block can be moved by a hand from outside."""

    def __init__(self, env: gymnasium.Env):
        gymnasium.utils.RecordConstructorArgs.__init__(self)
        gymnasium.Wrapper.__init__(self, env)

    def displace(self) -> None:
        """Move the block by 40 px away from the agent, or to the middle where that is outside."""
        game = self.get_wrapper_attr("block"), self.get_wrapper_attr("agent")
        block, agent = (np.array(body.position) for body in game)
        direction = (block - agent) / max(1.0, float(np.linalg.norm(block - agent)))
        place = block + DISPLACEMENT * direction
        if ((place < LOWEST) | (place > HIGHEST)).any():
            place = block + DISPLACEMENT * (MIDDLE - block) / np.linalg.norm(MIDDLE - block)
        game[0].position = place.tolist()


def _named(observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"img": observation["pixels"], "agent": observation["agent_pos"]}


def _unchanged(observation: np.ndarray) -> np.ndarray:
    return observation
