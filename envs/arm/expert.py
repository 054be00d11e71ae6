"""Scripted expert of the arm: inverse kinematics, then one minimum-jerk motion of all joints.

Sources: damped least squares, Wampler 1986; minimum jerk, Flash and Hogan 1985, equation 4.
"""

# MuJoCo ships no type stubs, its names come from a compiled module.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Mapping

import mujoco
import numpy as np

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3")
HOME = np.array([0.0, -1.9, 2.0, -1.67, -1.57, 0.0])  # rad, the tool points down
DOWN = np.array([0.0, 0.0, -1.0])
MAX_VELOCITY = 1.0  # rad/s
MAX_ACCELERATION = 1.3  # rad/s^2
MAX_JERK = 18.0  # rad/s^3
SHORTEST = 0.5  # s
DAMPING = 0.02
TOLERANCE = 1e-4  # m, and rad of the tool's direction
ITERATIONS = 200


class Expert:
    """Moves from where it is first asked to a joint position with the tool, pointing down, there.

    Args:
        model: of the arm.
        control_dt: time between two actions [s].
    """

    def __init__(self, model: mujoco.MjModel, control_dt: float):
        self._model, self._dt = model, control_dt
        self._plan: tuple[np.ndarray, np.ndarray, float] | None = None  # start, goal, duration
        self._step = 0

    def __call__(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """The action [6] for an observation of `Arm`."""
        if self._plan is None:
            start = np.asarray(observation["joints"], np.float64)
            goal = reach(self._model, np.asarray(observation["target"], np.float64))
            self._plan = start, goal, duration(goal - start)
        self._step += 1
        start, goal, seconds = self._plan
        share = minimum_jerk(self._step * self._dt / seconds)
        return (start + share * (goal - start)).astype(np.float32)


def reach(model: mujoco.MjModel, point: np.ndarray) -> np.ndarray:
    """Joint positions [6] near `HOME` with the tool, pointing down, at `point` [3].

    One joint more than needed: steps of least length leave the tool's turn as it happens to come.

    Raises:
        ValueError: the point is out of reach.
    """
    configuration = mujoco.MjData(model)
    configuration.qpos[:] = HOME
    translation, rotation = np.zeros((2, 3, model.nv))
    site = model.site("tool").id
    for _ in range(ITERATIONS):
        mujoco.mj_kinematics(model, configuration)
        mujoco.mj_comPos(model, configuration)
        mujoco.mj_jacSite(model, configuration, translation, rotation, site)
        direction = configuration.site("tool").xmat.reshape(3, 3)[:, 1]
        error = np.concatenate([point - configuration.site("tool").xpos, np.cross(direction, DOWN)])
        if np.abs(error).max() < TOLERANCE:
            return configuration.qpos.copy()
        jacobian = np.concatenate([translation, rotation])
        jacobian[3:] -= np.outer(direction, direction) @ jacobian[3:]  # The turn is free.
        damped = jacobian @ jacobian.T + DAMPING**2 * np.eye(6)
        configuration.qpos += jacobian.T @ np.linalg.solve(damped, error)
    raise ValueError(
        f"the tool cannot reach {point} m: give a target within 0.8 m of the shoulder, in front "
        f"of the arm"
    )


def duration(way: np.ndarray) -> float:
    """Time [s] of a minimum-jerk motion over `way` [6, rad] within the limits.

    Its highest velocity is 15/8 of the mean one, its highest acceleration 10/sqrt(3) way/time^2,
    its highest jerk, at both ends, 60 way/time^3.
    """
    longest = float(np.abs(way).max())
    by_velocity = 15 / 8 * longest / MAX_VELOCITY
    by_acceleration = np.sqrt(10 / np.sqrt(3) * longest / MAX_ACCELERATION)
    by_jerk = np.cbrt(60 * longest / MAX_JERK)
    return float(max(by_velocity, by_acceleration, by_jerk, SHORTEST))


def minimum_jerk(time: float) -> float:
    """Share of the way done at `time`, in parts of the duration."""
    t = min(max(time, 0.0), 1.0)
    return t**3 * (10 - 15 * t + 6 * t**2)
