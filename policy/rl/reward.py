"""What a chunk is worth, from what the environment reports of it.

A dense reward that is highest near the goal, with an episode that ends at the goal, teaches not to
reach it. Its increments do not: over an episode they add up to what was gained, whatever the way
(Ng et al. 1999, "Policy invariance under reward transformations").

Shape legend: `N` environments.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ChunkReward:
    """A weighted sum of what an environment reports.

    Args:
        total: weight of the environment's own reward, summed over the chunk.
        progress: weight of the rise of its reward, from the chunk before to this one; an episode's
            first chunk has none.
        success: worth of a success, in every chunk that has one; most environments end with it.

    Raises:
        ValueError: nothing is rewarded, or a weight is no number.
    """

    total: float = 0.0
    progress: float = 0.0
    success: float = 1.0

    def __post_init__(self):
        for name in ("total", "progress", "success"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"reward.{name} is {getattr(self, name)}, it must be finite")
        if not (self.total or self.progress or self.success):
            raise ValueError(
                "reward.total, reward.progress and reward.success are all 0: there is nothing to "
                "learn from, give one of them"
            )

    def __call__(
        self,
        rewards: np.ndarray,
        infos: Mapping[str, np.ndarray],
        *,
        previous: np.ndarray,
        is_first: np.ndarray,
    ) -> np.ndarray:
        """Rewards [N] of a chunk.

        Args:
            rewards: [N] of the environment.
            infos: of the environment, see `envs.wrappers.ChunkExecution`.
            previous: [N] the environment's last reward in the chunk before.
            is_first: [N] bool, the first chunk of an episode.
        """
        rise = np.where(is_first, 0.0, infos["last_reward"] - previous)
        return self.total * rewards + self.progress * rise + self.success * infos["is_success"]
