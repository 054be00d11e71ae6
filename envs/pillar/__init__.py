"""Pick and place around a pillar, to the left or to the right."""

import gymnasium

from envs.pillar.env import Pillar

__all__ = ["Pillar"]

gymnasium.register(
    id="cadence/Pillar-v0",
    entry_point="envs.pillar.env:Pillar",
    max_episode_steps=100,
)
