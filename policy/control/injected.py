"""A planner made slower and less reliable on purpose: delays, jitter, drops and stalls.

What is injected into a request is a function of the faults' seed, the stream's seed and the tick:
two runs on a virtual clock are the same, a start suffers the same whenever it is played, and so do
all policies under comparison.
"""

from dataclasses import dataclass

import numpy as np

from policy.control.clock import Clock
from policy.types import ActionChunk, Planner, PlannerError, Request

# A chunk that is late by whole ticks is there when a tick begins, whichever way floats round;
# in ticks.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Faults:
    """What happens to requests.

    Args:
        least: shortest delay of a chunk [ticks].
        most: longest; in between all are equally likely.
        drop: probability that no chunk comes of a request.
        stall: probability that a chunk takes `stall_ticks` more.
        stall_ticks: how long a stall is [ticks].
        seed: of the draws.

    Raises:
        ValueError: a setting is out of range.
    """

    least: float = 0.0
    most: float = 0.0
    drop: float = 0.0
    stall: float = 0.0
    stall_ticks: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.least <= self.most < np.inf or not 0 <= self.stall_ticks < np.inf:
            raise ValueError(
                f"delays are {self.least} to {self.most} and {self.stall_ticks} ticks: give "
                f"0 <= least <= most and stall_ticks >= 0"
            )
        if not (0 <= self.drop < 1 and 0 <= self.stall <= 1):
            raise ValueError(
                f"drop is {self.drop} and stall {self.stall}: give probabilities, drop below 1"
            )

    def of(self, request: Request) -> tuple[float, bool]:
        """Delay of a request's chunk [ticks], and whether it is dropped."""
        rng = np.random.default_rng((self.seed, request.seed, request.tick))
        share, stall, drop = rng.random(3).tolist()
        delay = self.least + share * (self.most - self.least)
        return delay + self.stall_ticks * (stall < self.stall), drop < self.drop


class Injected:
    """A planner whose chunks come late, or not at all.

    The first request of an epoch is spared: the robot stands still and waits for it.

    Args:
        planner: that plans.
        faults: what happens to requests.
        clock: that the planner is called on.
    """

    def __init__(self, planner: Planner, faults: Faults, *, clock: Clock):
        self._planner, self._faults, self._clock = planner, faults, clock
        self.contract, self.horizons = planner.contract, planner.horizons
        self._epoch: int | None = None

    def __call__(self, request: Request) -> ActionChunk:
        """The chunk for `request.tick`.

        Raises:
            PlannerError: it was dropped.
        """
        begun = self._clock.now()
        chunk = self._planner(request)
        if request.epoch != self._epoch:
            self._epoch = request.epoch
            return chunk
        delay, is_dropped = self._faults.of(request)
        self._clock.sleep_until(begun + (delay - ROUNDING) * self.contract.control_dt)
        if is_dropped:
            raise PlannerError(f"the chunk for tick {request.tick} was dropped on purpose")
        return chunk
