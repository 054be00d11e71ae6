"""Bring the tool of a six-joint arm to a point, at 100 Hz."""

import gymnasium

from envs.arm.env import Arm
from envs.arm.expert import Expert

__all__ = ["Arm", "Expert"]

gymnasium.register(
    id="cadence/Arm-v0",
    entry_point="envs.arm.env:Arm",
    max_episode_steps=300,
)
