"""What a control loop sent in the last ticks, and what its plan has for the next ones.

The control thread writes, at most one waypoint a tick, into memory that is taken at once; any other
thread may read. A reader takes no lock: it may see a tick more or less than another reader, never
half a waypoint.
"""

from typing import NamedTuple

import numpy as np

from policy.control.plan import Plan


class Waypoint(NamedTuple):
    """The action of a tick.

    Args:
        tick: control tick of the episode.
        action: [Da], physical units; not to be written to.
        is_seam: whether it is the first of a new chunk.
    """

    tick: int
    action: np.ndarray
    is_seam: bool


class Course:
    """Where control came from and where it goes, in this episode.

    Args:
        n_kept: ticks that are remembered.
    """

    def __init__(self, n_kept: int = 128):
        self._ring: list[Waypoint | None] = [None] * n_kept
        self._newest = -1  # Tick that was sent last.
        self._plan: Plan | None = None

    def start(self, plan: Plan) -> None:
        """A new episode begins; what was sent in others is forgotten.

        Args:
            plan: that the loop is going to follow.
        """
        self._ring = [None] * len(self._ring)
        self._newest, self._plan = -1, plan

    def add(self, tick: int, action: np.ndarray, *, is_seam: bool) -> None:
        """An action [Da] was sent; the array is kept and must not change any more."""
        self._ring[tick % len(self._ring)] = Waypoint(tick, action, is_seam)
        self._newest = tick

    def sent(self, n_ticks: int) -> list[Waypoint]:
        """What was sent in the last `n_ticks` ticks, oldest first; missed ticks are left out."""
        ring, newest = list(self._ring), self._newest
        kept = [point for point in ring if point is not None and point.tick > newest - n_ticks]
        return sorted(kept, key=lambda point: point.tick)

    def planned(self, n_ticks: int) -> list[Waypoint]:
        """What is planned for the next `n_ticks` ticks, as far as the plan reaches."""
        points: list[Waypoint] = []
        plan, first = self._plan, self._newest + 1
        for tick in range(first, first + n_ticks):
            step = None if plan is None else plan.step(tick)
            if step is None:
                break
            points.append(Waypoint(tick, step.action, step.is_seam))
        return points
