"""Plans one push of the T: samples many, simulates them all at once, takes the best.

A push starts next to the block and moves the pusher's set point along a straight line at constant
speed. All are simulated from the present pose in one `mujoco.batch.Batch`, with a physics step
twice as long as the task's; each is worth what its best moment to stop is worth.
"""

# MuJoCo ships no type stubs, its names come from a compiled module.
# pyright: reportAttributeAccessIssue=false

import copy
import math
from dataclasses import dataclass

import mujoco
import numpy as np
from mujoco.batch import Batch

from envs.push_t.geometry import corners, rotation, to_world
from envs.push_t.path import inflated, is_allowed, is_inside, way_round

PHYSICS_DT = 0.01  # s
N_STEPS = 14  # control steps of a push, at most
GAP = 0.012  # m, between pusher and block at the start of a push
CLEARANCE = 0.004  # m, between pusher and block on the way to a push
SPEEDS = (0.0015, 0.015)  # m per control step
MAX_SLANT = math.radians(45)  # between a push and the normal of the side it starts at
BLOCK = ("block_x", "block_y", "block_angle")
PUSHER = ("pusher_x", "pusher_y")


@dataclass(frozen=True)
class Push:
    """Set points of the pusher: a way to the block, then a push.

    Args:
        way: points to go to one after the other, the last is the start of the push [m].
        targets: [n, 2] one per control step [m].
    """

    way: list[np.ndarray]
    targets: np.ndarray


class Planner:
    """Finds the push that brings the block nearest to the target.

    Args:
        model: of the task.
        rectangles: of the block, [2, 2, 2] as in `geometry`.
        target: pose of the target.
        control_dt: s.
        reach: largest |x| and |y| of the pusher [m].
        n_samples: pushes to compare.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        rectangles: np.ndarray,
        *,
        target: np.ndarray,
        control_dt: float,
        reach: float,
        n_samples: int = 128,
    ):
        model = copy.copy(model)
        model.opt.timestep = PHYSICS_DT
        self._n_substeps = round(control_dt / PHYSICS_DT)
        self._batch = Batch(model, n_samples, nthread=1)
        self._block = [int(model.joint(name).qposadr[0]) for name in BLOCK]
        self._pusher = [int(model.joint(name).qposadr[0]) for name in PUSHER]
        self._actuators = [model.actuator(name).id for name in PUSHER]
        self._radius = float(model.geom("pusher").size[0])
        self._rectangles = rectangles
        self._obstacles = inflated(rectangles, self._radius + CLEARANCE)
        self._keypoints = np.concatenate([corners(rectangle) for rectangle in rectangles])
        self._target, self._reach = target, reach

    def __call__(
        self, pusher: np.ndarray, pose: np.ndarray, rng: np.random.Generator
    ) -> Push | None:
        """The best of the sampled pushes that can be reached; None if none can.

        Args:
            pusher: [2] m.
            pose: of the block.
            rng: draws the pushes.
        """
        starts, steps = self._sample(pose, rng)
        errors = self._simulate(pose, starts, steps)
        for i in errors.min(0).argsort():
            way = way_round(pusher, starts[i], pose, obstacles=self._obstacles, limit=self._reach)
            if way is not None:
                stop = int(errors[:, i].argmin()) + 1
                return Push(way, self._targets(starts[i], steps[i], stop))
        return None

    def error(self, poses: np.ndarray) -> np.ndarray:
        """Root mean square distance of the block's corners from their targets [...], m."""
        wanted = to_world(self._keypoints, self._target)
        c, s = np.cos(poses[..., 2, None]), np.sin(poses[..., 2, None])
        x, y = self._keypoints.T
        away = np.stack(
            [
                poses[..., 0, None] + c * x - s * y - wanted[:, 0],
                poses[..., 1, None] + s * x + c * y - wanted[:, 1],
            ]
        )
        return np.sqrt((away**2).sum(0).mean(-1))

    def _sample(self, pose: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Starts and moves per control step of at most n_samples pushes, each [n, 2] m."""
        n = 4 * self._batch.nsim  # Many start within the other rectangle or beyond a wall.
        first = np.concatenate([corners(r) for r in self._rectangles])
        side = np.concatenate([np.roll(corners(r), -1, axis=0) for r in self._rectangles]) - first
        length = np.linalg.norm(side, axis=1)
        at = rng.choice(len(side), n, p=length / length.sum())
        contact = first[at] + rng.uniform(size=(n, 1)) * side[at]
        outward = (side[at] / length[at, None]) @ rotation(-math.pi / 2).T
        slant = rng.uniform(-MAX_SLANT, MAX_SLANT, n)
        c, s = np.cos(slant), np.sin(slant)
        x, y = -outward.T
        direction = np.stack([c * x - s * y, s * x + c * y], axis=1)
        start = contact + self._radius * outward - GAP * direction
        speed = np.exp(rng.uniform(*np.log(SPEEDS), size=(n, 1)))
        usable = ~is_inside(start, self._obstacles) & is_allowed(start, pose, self._reach)
        chosen = np.flatnonzero(usable)[: self._batch.nsim]
        step = (speed * direction)[chosen] @ rotation(pose[2]).T
        return to_world(start[chosen], pose), step

    def _simulate(self, pose: np.ndarray, starts: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Error of the block after each control step of each push, [N_STEPS, n] m."""
        ids = np.arange(len(starts))
        self._batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        qpos, ctrl = self._batch.bind("qpos"), self._batch.bind("ctrl")
        qpos[: len(starts), self._block] = pose
        qpos[: len(starts), self._pusher] = starts
        targets = self._targets(starts[:, None], steps[:, None], N_STEPS)
        errors = np.empty((N_STEPS, len(starts)))
        for k in range(N_STEPS):
            ctrl[: len(starts), self._actuators] = targets[:, k]
            self._batch.step(ids, nstep=self._n_substeps)
            errors[k] = self.error(qpos[: len(starts), self._block])
        return errors

    def _targets(self, start: np.ndarray, step: np.ndarray, n: int) -> np.ndarray:
        """Set points [..., n, 2] of n control steps; start and step are [..., 1, 2] or [2]."""
        return np.clip(start + np.arange(1, n + 1)[:, None] * step, -self._reach, self._reach)
