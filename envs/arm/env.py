"""Bring the tool of a six-joint arm to a point in space, commanding joint positions at 100 Hz."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from envs.arm.expert import HOME, JOINTS, Expert
from envs.mujoco_env import MujocoEnv, State

CONTROL_DT = 0.01  # s
AT_TARGET = 0.02  # m, distance of the tool's tip
AT_REST = 0.05  # m/s, speed of the tool's tip
HOLD_STEPS = 10  # control steps for which the tool has to stay
# Lower and upper limits of the start: joints about HOME [rad], target in the base frame [m].
SPREAD = 0.2
TARGET = ((-0.6, -0.25, 0.3), (-0.4, 0.05, 0.5))

# In front of the base, elbow up; the maker allows two turns of each joint, and one of the elbow.
LOW = (-3.14, -3.14, -2.8, -3.14, -3.14, -3.14)
HIGH = (3.14, 0.0, 2.8, 3.14, 3.14, 3.14)

CONTRACT = {
    "version": 1,
    "control_dt": CONTROL_DT,
    "task": "bring the tool to the target",
    "observation": {
        "joints": {"shape": (6,), "unit": "rad"},
        "velocity": {"shape": (6,), "unit": "rad/s"},
        "target": {"shape": (3,), "unit": "m", "frame": "base"},
    },
    "action": {"shape": (6,), "unit": "rad", "low": LOW, "high": HIGH},
}


class Arm(MujocoEnv):
    """Bring the tip of an arm's tool to a target.

    ## Description

    An arm with the kinematics of a UR5e and position-controlled joints reaches for a small sphere.
    The joints follow their set points some 50 ms behind, with limited torque. A set point far from
    the present position is followed as fast as the torque allows: to move gently is the policy's
    duty, or a governor's. Positions are in metres in the base frame of the arm, z up; at zero
    joints the arm lies along -x. Nothing collides. One step is 0.01 s.

    ## Action Space

    Absolute positions of the joints. What lies outside the limits is clipped.

    | Num | Action        | Min   | Max  | Actuator (XML) | Unit |
    |-----|---------------|-------|------|----------------|------|
    | 0   | shoulder pan  | -3.14 | 3.14 | shoulder_pan   | rad  |
    | 1   | shoulder lift | -3.14 | 0    | shoulder_lift  | rad  |
    | 2   | elbow         | -2.8  | 2.8  | elbow          | rad  |
    | 3   | wrist 1       | -3.14 | 3.14 | wrist_1        | rad  |
    | 4   | wrist 2       | -3.14 | 3.14 | wrist_2        | rad  |
    | 5   | wrist 3       | -3.14 | 3.14 | wrist_3        | rad  |

    ## Observation Space

    | Field    | Num | Observation                            | Element (XML) | Unit  |
    |----------|-----|----------------------------------------|---------------|-------|
    | joints   | 0-5 | positions, in the order of the actions | the joints    | rad   |
    | velocity | 0-5 | velocities of the joints               | the joints    | rad/s |
    | target   | 0-2 | x, y, z of the target                  | body target   | m     |

    ## Rewards

    1 in the step in which the task is accomplished, 0 in all others.

    ## Starting State

    Uniform, at rest: each joint within 0.2 rad of (0, -1.9, 2, -1.67, -1.57, 0); target x in
        [-0.6, -0.4], y in [-0.25, 0.05], z in [0.3, 0.5].

    ## Episode End

    Termination: the tool's tip has been within 2 cm of the target and slower than 5 cm/s for 10
    steps. `info["is_success"]` is then true.
    Truncation: after 300 steps.

    ## Arguments

    `physics_dt` [s], and for pictures `render_mode`, `width` and `height` [px] and `camera`.

    ## Version History

    * v0: first version.

    Args:
        physics_dt: time between two physics steps [s].
        render_mode: "rgb_array" or None.
        width: picture width [px].
        height: picture height [px].
        camera: "overview".
    """

    def __init__(
        self,
        *,
        physics_dt: float = 0.002,
        render_mode: str | None = None,
        width: int = 256,
        height: int = 256,
        camera: str = "overview",
    ):
        super().__init__(
            Path(__file__).parent / "arm.xml",
            CONTRACT,
            physics_dt=physics_dt,
            render_mode=render_mode,
            width=width,
            height=height,
            camera=camera,
        )

    def initialize(self, state: State, rng: np.random.Generator) -> None:
        """Place the target and the joints, at rest."""
        state.mocap_pos[0] = rng.uniform(*TARGET)
        state.qpos[:] = HOME + rng.uniform(-SPREAD, SPREAD, len(JOINTS))
        self.apply(state, state.qpos)

    def apply(self, state: State, action: np.ndarray) -> None:
        """Move the set points of the joints."""
        state.ctrl[:] = np.clip(action, LOW, HIGH)

    def observe(self, state: State) -> dict[str, np.ndarray]:
        """Positions and velocities of the joints, and the target."""
        return {
            "joints": state.qpos,
            "velocity": state.qvel,
            "target": state.body("target").xpos,
        }

    def outcome(self, state: State) -> tuple[float, bool, dict[str, bool | int]]:
        """1, and the end of the episode, once the tool has stayed at the target."""
        steps_there = state.userdata[:1]
        steps_there[:] = steps_there + 1 if is_there(state) else 0
        is_success = bool(steps_there[0] >= HOLD_STEPS)
        return float(is_success), is_success, {"is_success": is_success}

    def pose(self, fields: Mapping[str, np.ndarray]) -> np.ndarray:
        """The action [6] that would keep the arm where an observation says that it is."""
        return np.array(fields["joints"], np.float64)

    def experts(self) -> dict[str, Callable[[np.random.Generator], Expert]]:
        """The scripted expert; each call makes one for an episode."""
        return {"expert": lambda rng: Expert(self.model, CONTROL_DT)}


def is_there(state: State) -> bool:
    """Whether the tool is at the target and nearly at rest."""
    distance = np.linalg.norm(state.site("tool").xpos - state.body("target").xpos)
    speed = np.linalg.norm(state.sensor("tool_velocity").data)
    return bool(distance < AT_TARGET and speed < AT_REST)
