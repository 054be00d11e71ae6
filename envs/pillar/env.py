"""Pick and place with a pillar in the way: two ways round it, and their mean hits it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from envs.mujoco_env import State
from envs.pick_place.env import PickPlace
from envs.pick_place.expert import Expert

PILLAR_X = 0.0  # m
TOUCH = 0.001  # m, distance below which something touches the pillar
LEFT, RIGHT = 1, 2  # indices into metadata["modes"]
# Corners of the carry to the left [m]; to the right they are mirrored.
VIA = ((-0.09, 0.14), (0.09, 0.14))


class Pillar(PickPlace):
    """Pick up a cube and put it on a target behind a pillar.

    ## Description

    `PickPlace` with a pillar of 3.5 cm radius and 30 cm height in the middle of the table. The
    gripper cannot rise above 20 cm, so the cube has to go round the pillar, on the left (y > 0) or
    on the right. Both ways are equally good and nothing at the start tells which one to take: a
    policy has to decide. The mean of a way to the left and one to the right hits the pillar.

    ## Action Space

    That of `PickPlace`: position of the gripper [m] and its opening (0 close, 1 open), `Box` of 4.

    | Num | Action             | Min   | Max  | Actuator (XML)            | Unit |
    |-----|--------------------|-------|------|---------------------------|------|
    | 0   | x of the gripper   | -0.3  | 0.3  | x                         | m    |
    | 1   | y of the gripper   | -0.25 | 0.25 | y                         | m    |
    | 2   | z of the gripper   | 0.01  | 0.2  | z                         | m    |
    | 3   | close (0), open (1)| 0     | 1    | left_finger, right_finger | 1    |

    ## Observation Space

    That of `PickPlace`; the pillar stands still.

    | Field   | Num | Observation                      | Element (XML)             | Unit |
    |---------|-----|----------------------------------|---------------------------|------|
    | gripper | 0-2 | x, y, z of the gripper           | site grip                 | m    |
    | gripper | 3   | opening, the gap of the fingers  | left_finger, right_finger | m    |
    | cube    | 0-2 | x, y, z of the cube's centre     | body cube                 | m    |
    | target  | 0-1 | x, y of the target               | body target               | m    |

    ## Rewards

    1 in the step in which the task is accomplished, 0 in all others.

    ## Starting State

    Uniform: cube x in [-0.23, -0.17], y in [-0.04, 0.04]; target x in [0.17, 0.23], y in
    [-0.04, 0.04]; gripper, open, x in [-0.22, -0.18], y in [-0.02, 0.02], z in [0.14, 0.16].

    ## Episode End

    Termination: success as in `PickPlace`, or gripper or cube touch the pillar, which is a failure:
    `info["is_success"]` tells. `info["mode"]` is the side on which the cube has passed the pillar,
    an index into `metadata["modes"]`: 0 none (so far), 1 left, 2 right.
    Truncation: after 100 steps.

    ## Arguments

    Those of `PickPlace`: `physics_dt` [s], `render_mode`, `width` and `height` [px], `camera`.

    ## Version History

    * v0: first version.
    """

    metadata: dict[str, Any] = {**PickPlace.metadata, "modes": ("none", "left", "right")}  # noqa: RUF012
    XML = Path(__file__).parent / "pillar.xml"
    CONTRACT = {**PickPlace.CONTRACT, "task": "put the cube on the target behind the pillar"}  # noqa: RUF012
    CUBE = ((-0.23, -0.04), (-0.17, 0.04))
    TARGET = ((0.17, -0.04), (0.23, 0.04))

    def outcome(self, state: State) -> tuple[float, bool, dict[str, bool | int]]:
        """As in PickPlace, with the side taken; a touch of the pillar ends the episode."""
        reward, is_success, info = super().outcome(state)
        mode = state.userdata[1:2]
        x, y = state.body("cube").xpos[:2]
        if mode[0] == 0 and x > PILLAR_X:
            mode[:] = LEFT if y > 0 else RIGHT
        return reward, is_success or touches_pillar(state), {**info, "mode": int(mode[0])}

    def experts(self) -> dict[str, Callable[[np.random.Generator], Expert]]:
        """One expert for each side."""
        right = tuple((x, -y) for x, y in VIA)
        return {"left": lambda rng: Expert(VIA), "right": lambda rng: Expert(right)}


def touches_pillar(state: State) -> bool:
    """Whether a part of the gripper or the cube touches the pillar."""
    parts = ("gripper", "left_finger", "right_finger", "cube")
    return any(state.sensor(f"pillar-{part}").data[0] < TOUCH for part in parts)
