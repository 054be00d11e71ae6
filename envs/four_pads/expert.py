"""Scripted experts for the four pads: one that plays, one that does as it is told."""

from collections.abc import Mapping

import numpy as np

from envs.pick_place.expert import HOVER, LOW, NEAR, Expert

PADS = np.array([[0.16, 0.14], [0.16, -0.14], [-0.16, 0.14], [-0.16, -0.14]])  # m
SHARES = np.array([0.4, 0.3, 0.2, 0.1])  # how often somebody at play chooses each pad
AWAY = 0.02  # m, height below HOVER from which on the gripper has left the cube


class Player:
    """Puts the cube on a pad, on another one, on the next, as it likes.

    Which pad comes next is drawn by `SHARES`, less the one that the cube lies on.

    Args:
        rng: draws the pads.
    """

    def __init__(self, rng: np.random.Generator):
        self._rng = rng
        self._expert = Expert()
        self._target: np.ndarray | None = None

    def __call__(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """The action [4] for an observation of `FourPads`."""
        cube = np.asarray(observation["cube"], float)
        if self._target is None or self._is_done(float(observation["gripper"][2]), cube):
            self._target = self._draw(cube[:2])
        return self._expert({**observation, "target": self._target})

    def _is_done(self, height: float, cube: np.ndarray) -> bool:
        """Whether the cube lies on its pad and the gripper has left it."""
        is_placed = cube[2] < LOW and np.linalg.norm(cube[:2] - self._target) < NEAR
        return bool(is_placed and height > HOVER - AWAY)

    def _draw(self, cube: np.ndarray) -> np.ndarray:
        shares = np.where(np.linalg.norm(PADS - cube, axis=1) < NEAR, 0.0, SHARES)
        return PADS[self._rng.choice(len(PADS), p=shares / shares.sum())]


class Obedient:
    """Puts the cube where the goal is."""

    def __init__(self):
        self._expert = Expert()

    def __call__(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """The action [4] for an observation of `FourPadsGoal`."""
        return self._expert({**observation, "target": observation["goal"]})
