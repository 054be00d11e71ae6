"""Scripted expert for pick_place and its relatives: a state machine read off the observations."""

from collections.abc import Mapping, Sequence

import numpy as np

SPEED = 0.035  # m per step, at most
HOVER = 0.12  # m, height of moves above the table
GRASP = 0.02  # m, height at which the cube is taken and left
LOW = 0.028  # m, height below which the gripper is down
ALIGNED = 0.012  # m, horizontal error at which to go down
HELD = 0.046  # m, opening below which the fingers have the cube
MISSED = 0.03  # m, opening below which there is no cube between the fingers
NEAR = 0.025  # m, distance within which the cube is in the gripper or on the target

CLOSE, OPEN = 0.0, 1.0


class Expert:
    """Moves at constant speed: over the cube, down, close, up, over the target, down, open, up.

    The phase follows from the last two observations, so that a dropped cube is picked up again and
    a learner can tell from what it sees what comes next. After taking or leaving the cube it stays
    for a step, so that nothing hangs on the very step in which the fingers move.

    Args:
        via: corners (x, y) [m] that the carry passes on its way, by increasing x.
    """

    def __init__(self, via: Sequence[tuple[float, float]] = ()):
        self._via = via
        self._was_held = False

    def __call__(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """The action [4] for an observation of `PickPlace`."""
        gripper, gap = np.asarray(observation["gripper"][:3], float), observation["gripper"][3]
        cube = np.asarray(observation["cube"], float)
        target = np.asarray(observation["target"], float)
        is_held = gap < HELD and np.linalg.norm(gripper - cube) < NEAR
        is_placed = cube[2] < LOW and np.linalg.norm(cube[:2] - target) < NEAR
        if is_held != self._was_held:
            goal, command = gripper, CLOSE if is_held else OPEN
        elif is_held:
            goal, command = self._carry(gripper, target)
        elif is_placed:
            goal, command = np.array([*gripper[:2], HOVER]), OPEN
        else:
            goal, command = fetch(gripper, gap, cube)
        self._was_held = is_held
        return np.append(toward(gripper, goal), command).astype(np.float32)

    def _carry(self, gripper: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
        """Up, past the corners, over the target, down, open."""
        if np.linalg.norm(gripper[:2] - target) < ALIGNED:
            return np.array([*target, GRASP]), OPEN if gripper[2] < LOW else CLOSE
        if gripper[2] < HOVER - SPEED:
            return np.array([*gripper[:2], HOVER]), CLOSE
        ahead = [corner for corner in self._via if corner[0] > gripper[0] + ALIGNED]
        corner = ahead[0] if ahead else target
        return np.array([*corner, HOVER]), CLOSE


def fetch(gripper: np.ndarray, gap: float, cube: np.ndarray) -> tuple[np.ndarray, float]:
    """Goal [3] and opening: over the cube, down, close."""
    if gap < MISSED or np.linalg.norm(gripper[:2] - cube[:2]) > ALIGNED:
        return np.array([*cube[:2], HOVER]), OPEN
    return np.array([*cube[:2], GRASP]), CLOSE if gripper[2] < LOW else OPEN


def toward(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """A point [3] on the way to the goal [3], at most SPEED [m] ahead."""
    way = goal - position
    return position + way * min(1.0, SPEED / max(float(np.linalg.norm(way)), 1e-9))
