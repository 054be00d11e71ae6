"""A cube and four pads: one may play, or be told which pad is wanted."""

import gymnasium

from envs.four_pads.env import FourPads, FourPadsGoal

__all__ = ["FourPads", "FourPadsGoal"]

gymnasium.register(
    id="cadence/FourPads-v0",
    entry_point="envs.four_pads.env:FourPads",
    max_episode_steps=80,
)
gymnasium.register(
    id="cadence/FourPadsGoal-v0",
    entry_point="envs.four_pads.env:FourPadsGoal",
    max_episode_steps=60,
)
