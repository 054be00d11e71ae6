"""Pick up a cube and put it on a target."""

import gymnasium

from envs.pick_place.env import PickPlace
from envs.pick_place.expert import Expert

__all__ = ["Expert", "PickPlace"]

gymnasium.register(
    id="cadence/PickPlace-v0",
    entry_point="envs.pick_place.env:PickPlace",
    max_episode_steps=100,
)
