"""Push a T-shaped block onto its target."""

import gymnasium

from envs.push_t.env import PushT
from envs.push_t.expert import Expert

__all__ = ["Expert", "PushT"]

gymnasium.register(
    id="cadence/PushT-v0", entry_point="envs.push_t.env:PushT", max_episode_steps=300
)
