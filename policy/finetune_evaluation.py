"""How good a policy is that is being fine-tuned: from starts that training never sees."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from policy.agent import Agent
from policy.diffusion.step import ancestral
from policy.model import DiffusionPolicy
from policy.play import Episode, play
from policy.rl.chain import Kernel
from policy.rl.slots import FIRST_SEED
from policy.sampling.descent import Descent
from policy.sampling.sequential import Sequential
from policy.statistics import bootstrap_interval, wilson_interval
from policy.types import ChunkSpace

MEASURES = ("success", "return")


@dataclass(frozen=True)
class Measured:
    """Of the episodes of an evaluation.

    Args:
        success: share of those that succeeded.
        success_interval: of it, 95 %.
        score: mean of their best rewards.
        total: mean of the sums of their rewards.
        total_interval: of it, 95 %.
    """

    success: float
    success_interval: tuple[float, float]
    score: float
    total: float
    total_interval: tuple[float, float]

    @classmethod
    def of(cls, episodes: list[Episode]) -> "Measured":
        """What at least one episode comes to."""
        n_successes = sum(episode.success for episode in episodes)
        totals = [episode.total for episode in episodes]
        return cls(
            success=n_successes / len(episodes),
            success_interval=wilson_interval(n_successes, len(episodes)),
            score=float(np.mean([episode.score for episode in episodes])),
            total=float(np.mean(totals)),
            total_interval=bootstrap_interval(totals),
        )


@dataclass(frozen=True)
class Evaluation:
    """Plays a policy without the noise of exploration.

    Args:
        make_envs: makes so many environments at the level of chunks.
        space: of the chunks.
        kernel: of the chain, whose levels are taken without noise.
        seed: of the first start.
        episodes: starts.
        num_envs: side by side.
        rows: of a network call.
        measure: by which policies are compared, "success" or "return", the sum of rewards.

    Raises:
        ValueError: a number is out of range, or there is no such measure.
    """

    make_envs: Callable[[int], VectorEnv]
    space: ChunkSpace
    kernel: Kernel
    seed: int
    episodes: int
    num_envs: int
    rows: int
    measure: str = "success"

    def __post_init__(self):
        for name in ("episodes", "num_envs", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} is {getattr(self, name)}, it must be positive")
        last = FIRST_SEED - self.episodes
        if not 0 <= self.seed <= last:
            raise ValueError(
                f"evaluation.seed is {self.seed}, it must be in 0..{last}: beyond are the starts "
                f"of training"
            )
        if self.measure not in MEASURES:
            raise ValueError(
                f"evaluation.measure is {self.measure!r}, choose {' or '.join(MEASURES)}"
            )

    def __call__(self, policy: DiffusionPolicy) -> Measured:
        """What a policy reaches.

        Raises:
            NotFiniteError: it predicted something that is not a number.
            ValueError: the environment's rewards are no numbers.
        """
        descent = Descent(partial(ancestral, eta=0.0), clip=self.kernel.clip)
        grid = torch.tensor(self.kernel.sigmas)
        sampler = Sequential(space=self.space, grid=grid, descent=descent)
        device = next(policy.parameters()).device
        agent = Agent(policy, sampler, device=device, rows=self.rows)
        episodes: list[Episode] = []
        envs = self.make_envs(min(self.num_envs, self.episodes))
        try:
            play(agent, envs, range(self.seed, self.seed + self.episodes), finished=episodes)
        finally:
            envs.close()
        measured = Measured.of(sorted(episodes, key=lambda episode: episode.seed))
        if not np.isfinite([measured.score, measured.total]).all():
            raise ValueError(
                f"the rewards of the evaluated episodes add up to {measured.total} on average: the "
                f"environment gives rewards that are no numbers, mend it first"
            )
        return measured

    def judged(self, measured: Measured) -> float:
        """The number by which policies are compared."""
        return measured.success if self.measure == "success" else measured.total
