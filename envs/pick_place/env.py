"""Pick up a cube and put it on a target, with a gantry and a parallel gripper."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from envs.mujoco_env import MujocoEnv, State
from envs.pick_place.expert import Expert

CONTROL_DT = 0.1  # s
CUBE_HALF = 0.02  # m
FINGER_OPEN = 0.04  # m, travel of one finger
AT_TARGET = 0.04  # m, horizontal distance of the cube's centre
RELEASED = 0.06  # m, opening that cannot hold the cube
AT_REST = 0.05  # m/s
DISPLACEMENT = 0.04  # m
HOLD_STEPS = 10  # control steps for which the cube has to stay

ACTION = {
    "shape": (4,),
    "unit": ("m", "m", "m", "1"),
    "frame": "table",
    "discrete": (3,),
    "low": (-0.3, -0.25, 0.01, 0.0),
    "high": (0.3, 0.25, 0.2, 1.0),
}
CONTRACT = {
    "version": 1,
    "control_dt": CONTROL_DT,
    "task": "put the cube on the target",
    "observation": {
        "gripper": {"shape": (4,), "unit": "m", "frame": "table"},
        "cube": {"shape": (3,), "unit": "m", "frame": "table"},
        "target": {"shape": (2,), "unit": "m", "frame": "table"},
    },
    "action": ACTION,
}


class PickPlace(MujocoEnv):
    """Pick up a cube and put it on a target.

    ## Description

    A gantry moves a parallel gripper over a table. A cube lies on one side of the table, the
    target, a disc, on the other. The task is to put the cube on the disc and to let go of it.
    Positions are in metres in the frame of the table: x from the cube's to the target's side, z up
    from the top. One step is 0.1 s.

    ## Action Space

    Absolute position of the gripper (the point between the finger tips) and its opening.

    | Num | Action             | Min   | Max  | Actuator (XML)            | Unit |
    |-----|--------------------|-------|------|---------------------------|------|
    | 0   | x of the gripper   | -0.3  | 0.3  | x                         | m    |
    | 1   | y of the gripper   | -0.25 | 0.25 | y                         | m    |
    | 2   | z of the gripper   | 0.01  | 0.2  | z                         | m    |
    | 3   | close (0), open (1)| 0     | 1    | left_finger, right_finger | 1    |

    The last element has a discrete meaning: above 0.5 the gripper opens, otherwise it closes. What
    lies outside the limits is clipped.

    ## Observation Space

    | Field   | Num | Observation                      | Element (XML)             | Unit |
    |---------|-----|----------------------------------|---------------------------|------|
    | gripper | 0-2 | x, y, z of the gripper           | site grip                 | m    |
    | gripper | 3   | opening, the gap of the fingers  | left_finger, right_finger | m    |
    | cube    | 0-2 | x, y, z of the cube's centre     | body cube                 | m    |
    | target  | 0-1 | x, y of the target               | body target               | m    |

    ## Rewards

    1 in the step in which the task is accomplished, 0 in all others.

    ## Starting State

    Uniform: cube x in [-0.25, -0.12], y in [-0.12, 0.12]; target x in [0.12, 0.25], y in
    [-0.12, 0.12]; gripper, open, x in [-0.22, -0.18], y in [-0.02, 0.02], z in [0.14, 0.16].

    ## Episode End

    Termination: the cube has rested on the table within 4 cm of the target for 10 steps, the
    gripper being open. `info["is_success"]` is then true.
    Truncation: after 100 steps.

    ## Arguments

    `physics_dt` [s], and for pictures `width` and `height` [px] and `camera` ("overview" or "top").

    ## Version History

    * v0: first version.

    Args:
        physics_dt: time between two physics steps [s].
        render_mode: "rgb_array" or None.
        width: picture width [px].
        height: picture height [px].
        camera: "overview" or "top".
    """

    XML = Path(__file__).parent / "pick_place.xml"
    CONTRACT = CONTRACT
    # Lower and upper limits of the start [m].
    CUBE = ((-0.25, -0.12), (-0.12, 0.12))
    TARGET = ((0.12, -0.12), (0.25, 0.12))
    GRIPPER = ((-0.22, -0.02, 0.14), (-0.18, 0.02, 0.16))

    def __init__(
        self,
        *,
        physics_dt: float = 0.004,
        render_mode: str | None = None,
        width: int = 256,
        height: int = 256,
        camera: str = "overview",
    ):
        super().__init__(
            self.XML,
            self.CONTRACT,
            physics_dt=physics_dt,
            render_mode=render_mode,
            width=width,
            height=height,
            camera=camera,
        )

    def initialize(self, state: State, rng: np.random.Generator) -> None:
        """Place cube, target and gripper."""
        state.joint("cube").qpos[:2] = rng.uniform(*self.CUBE)
        state.mocap_pos[0, :2] = rng.uniform(*self.TARGET)
        gripper = rng.uniform(*self.GRIPPER)
        for axis, position in zip("xyz", gripper, strict=True):
            state.joint(axis).qpos[:] = position
        for finger in ("left_finger", "right_finger"):
            state.joint(finger).qpos[:] = FINGER_OPEN
        self.apply(state, np.append(gripper, 1.0))

    def apply(self, state: State, action: np.ndarray) -> None:
        """Move the set points of the five actuators."""
        x, y, z, opening = np.clip(action, ACTION["low"], ACTION["high"])
        state.actuator("x").ctrl[:] = x
        state.actuator("y").ctrl[:] = y
        state.actuator("z").ctrl[:] = z
        for finger in ("left_finger", "right_finger"):
            state.actuator(finger).ctrl[:] = FINGER_OPEN if opening > 0.5 else 0.0

    def observe(self, state: State) -> dict[str, np.ndarray]:
        """Positions of the gripper, with its opening, the cube and the target."""
        return {
            "gripper": np.append(state.site("grip").xpos, self.opening(state)),
            "cube": state.body("cube").xpos,
            "target": state.body("target").xpos[:2],
        }

    def outcome(self, state: State) -> tuple[float, bool, dict[str, bool | int]]:
        """1, and the end of the episode, once the cube has stayed where it belongs."""
        steps_there = state.userdata[:1]
        steps_there[:] = steps_there + 1 if self.is_placed(state) else 0
        is_success = bool(steps_there[0] >= HOLD_STEPS)
        return float(is_success), is_success, {"is_success": is_success}

    def displace(self) -> None:
        """Push the cube aside by 4 cm, as somebody might in mid-episode; not while it is held."""
        position = self.data.joint("cube").qpos
        position[1] += -DISPLACEMENT if position[1] > 0 else DISPLACEMENT

    def pose(self, fields: Mapping[str, np.ndarray]) -> np.ndarray:
        """The action [4] that would keep the gripper where an observation says that it is.

        A gap that may hold the cube is kept closed.
        """
        *position, gap = np.asarray(fields["gripper"], np.float64)
        return np.array([*position, float(gap > RELEASED)])

    def opening(self, state: State) -> float:
        """Gap between the fingers [m]."""
        return float(state.joint("left_finger").qpos[0] + state.joint("right_finger").qpos[0])

    def is_placed(self, state: State) -> bool:
        """Whether the cube rests at the target and the gripper is open."""
        cube = state.body("cube").xpos
        distance = np.linalg.norm(cube[:2] - state.body("target").xpos[:2])
        speed = np.linalg.norm(state.joint("cube").qvel[:3])
        return bool(
            distance < AT_TARGET
            and abs(cube[2] - CUBE_HALF) < 0.005
            and speed < AT_REST
            and self.opening(state) > RELEASED
        )

    def experts(self) -> dict[str, Callable[[np.random.Generator], Expert]]:
        """The scripted experts by name; each call of a value makes one for an episode."""
        return {"expert": lambda rng: Expert()}
