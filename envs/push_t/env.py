"""Push a T-shaped block onto its target in the plane, with a round pusher."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from envs.mujoco_env import MujocoEnv, State
from envs.push_t.expert import Expert
from envs.push_t.geometry import coverage, to_block
from envs.push_t.planner import Planner

CONTROL_DT = 0.1  # s
REACH = 0.235  # m, largest |x| and |y| of the pusher's centre: the walls less its radius
ENOUGH = 0.95  # covered fraction of the target that counts as all of it
START_GAP = 0.03  # m, from the pusher's centre to the block, at least
XML = Path(__file__).parent / "push_t.xml"

CONTRACT = {
    "version": 1,
    "control_dt": CONTROL_DT,
    "task": "push the T-shaped block onto its target",
    "observation": {
        "pusher": {"shape": (2,), "unit": "m", "frame": "table"},
        "block": {"shape": (3,), "unit": ("m", "m", "rad"), "frame": "table", "angles": (2,)},
    },
    "action": {
        "shape": (2,),
        "unit": "m",
        "frame": "table",
        "low": (-REACH, -REACH),
        "high": (REACH, REACH),
    },
}


class PushT(MujocoEnv):
    """Push a T-shaped block onto its target.

    ## Description

    A round pusher moves over a table of 0.5 m x 0.5 m with walls. It pushes, but cannot pull, a
    T-shaped block, which is 12 cm wide and high. The task is to cover the target, a T drawn on the
    middle of the table at an angle of 45 degrees. Positions are in metres from the middle of the
    table; the block's is that of its centre of mass. One step is 0.1 s. The task is that of Chi et
    al., "Diffusion Policy" (RSS 2023), in MuJoCo and in metres.

    ## Action Space

    Absolute target position of the pusher. What lies outside the limits is clipped.

    | Num | Action          | Min    | Max   | Actuator (XML) | Unit |
    |-----|-----------------|--------|-------|----------------|------|
    | 0   | x of the pusher | -0.235 | 0.235 | pusher_x       | m    |
    | 1   | y of the pusher | -0.235 | 0.235 | pusher_y       | m    |

    ## Observation Space

    | Field  | Num | Observation                         | Element (XML)      | Unit |
    |--------|-----|-------------------------------------|--------------------|------|
    | pusher | 0-1 | x, y of the pusher                  | pusher_x, pusher_y | m    |
    | block  | 0-1 | x, y of the block's centre of mass  | block_x, block_y   | m    |
    | block  | 2   | angle of the block, -pi to pi       | block_angle        | rad  |

    ## Rewards

    The covered fraction of the target divided by 0.95, at most 1.

    ## Starting State

    Uniform: block x and y in [-0.15, 0.15], angle in [-pi, pi]; pusher x and y in [-0.2, 0.2], at
    least 3 cm from the block.

    ## Episode End

    Termination: 95 % of the target are covered. `info["is_success"]` is then true.
    Truncation: after 300 steps.

    ## Arguments

    `physics_dt` [s], and for pictures `width` and `height` [px].

    ## Version History

    * v0: first version.

    Args:
        physics_dt: time between two physics steps [s].
        render_mode: "rgb_array" or None.
        width: picture width [px].
        height: picture height [px].
    """

    def __init__(
        self,
        *,
        physics_dt: float = 0.005,
        render_mode: str | None = None,
        width: int = 256,
        height: int = 256,
    ):
        super().__init__(
            XML,
            CONTRACT,
            physics_dt=physics_dt,
            render_mode=render_mode,
            width=width,
            height=height,
        )
        self.rectangles = np.stack([self._rectangle(name) for name in ("bar", "stem")])
        self.target = self._target()

    def initialize(self, state: State, rng: np.random.Generator) -> None:
        """Place block and pusher, apart from each other."""
        pose = np.append(rng.uniform(-0.15, 0.15, 2), rng.uniform(-np.pi, np.pi))
        pusher = rng.uniform(-0.2, 0.2, 2)
        while self.gap(pusher, pose) < START_GAP:
            pusher = rng.uniform(-0.2, 0.2, 2)
        for name, value in zip(("block_x", "block_y", "block_angle"), pose, strict=True):
            state.joint(name).qpos[:] = value
        for name, value in zip(("pusher_x", "pusher_y"), pusher, strict=True):
            state.joint(name).qpos[:] = value
        self.apply(state, pusher)

    def apply(self, state: State, action: np.ndarray) -> None:
        """Move the set points of the two actuators."""
        x, y = np.clip(action, -REACH, REACH)
        state.actuator("pusher_x").ctrl[:] = x
        state.actuator("pusher_y").ctrl[:] = y

    def observe(self, state: State) -> dict[str, np.ndarray]:
        """Position of the pusher, pose of the block."""
        x, y, angle = self.block_pose(state)
        pusher = [state.joint(name).qpos[0] for name in ("pusher_x", "pusher_y")]
        turned = (angle + np.pi) % (2 * np.pi) - np.pi
        return {"pusher": np.array(pusher), "block": np.array([x, y, turned])}

    def outcome(self, state: State) -> tuple[float, bool, dict[str, bool | int]]:
        """The covered fraction of the target; the end of the episode, once it is enough."""
        covered = coverage(self.block_pose(state), self.target, self.rectangles)
        is_success = covered >= ENOUGH
        return min(covered / ENOUGH, 1.0), is_success, {"is_success": is_success}

    def pose(self, fields: Mapping[str, np.ndarray]) -> np.ndarray:
        """The action [2] that would keep the pusher where an observation says that it is."""
        return np.array(fields["pusher"], np.float64)

    def block_pose(self, state: State) -> np.ndarray:
        """x, y [m] and angle [rad] of the block, [3]."""
        names = ("block_x", "block_y", "block_angle")
        return np.array([state.joint(name).qpos[0] for name in names])

    def gap(self, point: np.ndarray, pose: np.ndarray) -> float:
        """Distance from a point [2] to the block [m], 0 inside it."""
        p = to_block(point, pose)
        outside = np.maximum(self.rectangles[:, 0] - p, p - self.rectangles[:, 1])
        return float(np.linalg.norm(np.maximum(outside, 0.0), axis=1).min())

    def experts(self) -> dict[str, Callable[[np.random.Generator], Expert]]:
        """The scripted expert; each call of the value makes one for an episode."""
        return {"expert": functools.partial(Expert, self._planner)}

    @functools.cached_property
    def _planner(self) -> Planner:
        return Planner(
            self.model,
            self.rectangles,
            target=self.target,
            control_dt=CONTROL_DT,
            reach=REACH,
        )

    def _rectangle(self, geom: str) -> np.ndarray:
        """Lower and upper corner [2, 2] of a box of the block, in the block's frame [m]."""
        box = self.model.geom(geom)
        return np.stack([box.pos[:2] - box.size[:2], box.pos[:2] + box.size[:2]])

    def _target(self) -> np.ndarray:
        """Pose of the target, [3]."""
        body = self.model.body("target")
        return np.append(body.pos[:2], 2 * np.arctan2(body.quat[3], body.quat[0]))
