"""Scripted expert for push_t: plan a push, walk round the block to its start, push, plan again."""

from collections import deque
from collections.abc import Mapping

import numpy as np

from envs.push_t.planner import Planner

SPEED = 0.035  # m per control step, at most, on the way
PASSED = 0.012  # m, distance at which a corner of the way is passed
ARRIVED = 0.002  # m, distance from its start at which a push begins


class Expert:
    """Executes one planned push after the other; made for one episode.

    Args:
        planner: shared by the experts of one environment.
        rng: draws the pushes.
    """

    def __init__(self, planner: Planner, rng: np.random.Generator):
        self._plan, self._rng = planner, rng
        self._way: deque[np.ndarray] = deque()
        self._targets: deque[np.ndarray] = deque()

    def __call__(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """The action [2] for an observation of `PushT`."""
        pusher = np.asarray(observation["pusher"], float)
        if not self._way and not self._targets:
            push = self._plan(pusher, np.asarray(observation["block"], float), self._rng)
            if push is None:
                return pusher.astype(np.float32)  # Hold still, and draw others in the next step.
            self._way.extend(push.way)
            self._targets.extend(push.targets)
        while self._way and self._is_reached(pusher):
            self._way.popleft()
        action = toward(pusher, self._way[0]) if self._way else self._targets.popleft()
        return action.astype(np.float32)

    def _is_reached(self, pusher: np.ndarray) -> bool:
        near = PASSED if len(self._way) > 1 else ARRIVED
        return bool(np.linalg.norm(self._way[0] - pusher) < near)


def toward(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """A point [2] on the way to the goal [2], at most SPEED [m] ahead."""
    way = goal - position
    return position + way * min(1.0, SPEED / max(float(np.linalg.norm(way)), 1e-9))
