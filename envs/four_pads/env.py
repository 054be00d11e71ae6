"""A cube and four pads: a table to play at, and the same with a goal."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.four_pads.expert import PADS, Obedient, Player
from envs.mujoco_env import State
from envs.pick_place.env import AT_REST, AT_TARGET, CONTRACT, CUBE_HALF, RELEASED, PickPlace

REST_STEPS = 3  # control steps for which the cube has to lie on a pad
HIDDEN = -0.1  # m, height of the target where nothing is wanted

Expert = Callable[[Mapping[str, np.ndarray]], np.ndarray]


class FourPads(PickPlace):
    """Play: put the cube on any of four pads, then on another one.

    ## Description

    The table, gripper and cube of `PickPlace` with a pad in each corner. The cube starts in the
    middle. Nothing tells which pad comes next: demonstrations of this table are play, and from one
    and the same state go to each of the pads, to some of them more often than to others.

    ## Action Space

    That of `PickPlace`: position of the gripper [m] and its opening (0 close, 1 open), `Box` of 4.

    | Num | Action             | Min   | Max  | Actuator (XML)            | Unit |
    |-----|--------------------|-------|------|---------------------------|------|
    | 0   | x of the gripper   | -0.3  | 0.3  | x                         | m    |
    | 1   | y of the gripper   | -0.25 | 0.25 | y                         | m    |
    | 2   | z of the gripper   | 0.01  | 0.2  | z                         | m    |
    | 3   | close (0), open (1)| 0     | 1    | left_finger, right_finger | 1    |

    ## Observation Space

    | Field   | Num | Observation                      | Element (XML)             | Unit |
    |---------|-----|----------------------------------|---------------------------|------|
    | gripper | 0-2 | x, y, z of the gripper           | site grip                 | m    |
    | gripper | 3   | opening, the gap of the fingers  | left_finger, right_finger | m    |
    | cube    | 0-2 | x, y, z of the cube's centre     | body cube                 | m    |

    ## Rewards

    1 in the step in which the cube has lain on a pad for 3 steps, the gripper being open; 0 in all
    others.

    ## Starting State

    Uniform: cube x and y in [-0.05, 0.05]; gripper, open, x and y in [-0.15, 0.15], z in
    [0.14, 0.16].

    ## Episode End

    Termination: never. `info["is_success"]` is true in each step that is rewarded, `info["mode"]`
    is the pad that the cube came to lie on first, an index into `metadata["modes"]`: 0 none (so
    far), 1 red, 2 yellow, 3 violet, 4 blue.
    Truncation: after 80 steps.

    ## Arguments

    Those of `PickPlace`: `physics_dt` [s], `render_mode`, `width` and `height` [px], `camera`.

    ## Version History

    * v0: first version.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        **PickPlace.metadata,
        "modes": ("none", "red", "yellow", "violet", "blue"),
    }
    XML = Path(__file__).parent / "four_pads.xml"
    CONTRACT = {  # noqa: RUF012
        **CONTRACT,
        "task": "put the cube on pads",
        "observation": {name: CONTRACT["observation"][name] for name in ("gripper", "cube")},
    }
    CUBE = ((-0.05, -0.05), (0.05, 0.05))
    GRIPPER = ((-0.15, -0.15, 0.14), (0.15, 0.15, 0.16))

    def initialize(self, state: State, rng: np.random.Generator) -> None:
        """Place cube and gripper; the target is out of sight."""
        super().initialize(state, rng)
        state.mocap_pos[0] = (0.0, 0.0, HIDDEN)

    def observe(self, state: State) -> dict[str, np.ndarray]:
        """Positions of the gripper, with its opening, and of the cube."""
        seen = super().observe(state)
        return {name: seen[name] for name in self.CONTRACT["observation"] if name in seen}

    def outcome(self, state: State) -> tuple[float, bool, dict[str, bool | int]]:
        """1 once the cube has come to lie on a pad; play goes on."""
        placed = self.placed(state)
        first = state.userdata[1:2]
        if first[0] == 0:
            first[:] = placed
        return float(placed > 0), False, {"is_success": placed > 0, "mode": int(first[0])}

    def placed(self, state: State) -> int:
        """The pad, 1 to 4, on which the cube has lain for long enough in this very step, or 0."""
        pad = self.pad(state)
        steps_there = state.userdata[:1]
        steps_there[:] = steps_there + 1 if pad else 0
        return pad if steps_there[0] == REST_STEPS else 0

    def pad(self, state: State) -> int:
        """The pad, 1 to 4, on which the cube rests and has been let go of, or 0."""
        cube = state.body("cube").xpos
        distances = np.linalg.norm(PADS - cube[:2], axis=1)
        is_at_rest = (
            abs(cube[2] - CUBE_HALF) < 0.005
            and np.linalg.norm(state.joint("cube").qvel[:3]) < AT_REST
            and self.opening(state) > RELEASED
        )
        nearest = int(distances.argmin())
        return nearest + 1 if is_at_rest and distances[nearest] < AT_TARGET else 0

    def experts(self) -> dict[str, Callable[[np.random.Generator], Expert]]:
        """One that plays."""
        return {"player": Player}


class FourPadsGoal(FourPads):
    """Put the cube on the one of four pads that is wanted.

    ## Description

    `FourPads` with a goal: the place where the cube is to be. The cube can be put down once only.

    ## Action Space

    That of `FourPads`.

    ## Observation Space

    That of `FourPads`, and one more field.

    | Field   | Num | Observation                      | Element (XML)             | Unit |
    |---------|-----|----------------------------------|---------------------------|------|
    | goal    | 0-1 | x, y of the pad that is wanted   | body target               | m    |

    ## Rewards

    1 in the step in which the cube has lain on the pad that is wanted for 3 steps, the gripper
    being open; 0 in all others.

    ## Starting State

    That of `FourPads`; each pad is wanted equally often.

    ## Episode End

    Termination: the cube has lain on a pad, wanted or not, for 3 steps; `info["is_success"]` tells
    whether it is the right one, `info["mode"]` which one it is, as in `FourPads`.
    Truncation: after 60 steps.

    ## Arguments

    Those of `FourPads`, and `any_pad`: whether each pad is the right one, which shows what is
    chosen where the goal is not looked at.

    ## Version History

    * v0: first version.
    """

    CONTRACT = {  # noqa: RUF012
        **FourPads.CONTRACT,
        "task": "put the cube on the pad that is wanted",
        "observation": {
            **FourPads.CONTRACT["observation"],
            "goal": {"shape": (2,), "unit": "m", "frame": "table"},
        },
    }

    def __init__(
        self,
        *,
        any_pad: bool = False,
        physics_dt: float = 0.004,
        render_mode: str | None = None,
        width: int = 256,
        height: int = 256,
        camera: str = "overview",
    ):
        super().__init__(
            physics_dt=physics_dt,
            render_mode=render_mode,
            width=width,
            height=height,
            camera=camera,
        )
        self._any_pad = any_pad

    def initialize(self, state: State, rng: np.random.Generator) -> None:
        """Place cube and gripper, and the target on a pad."""
        super().initialize(state, rng)
        state.mocap_pos[0] = (*PADS[rng.integers(len(PADS))], 0.0)

    def observe(self, state: State) -> dict[str, np.ndarray]:
        """As in FourPads, and the goal."""
        return {**super().observe(state), "goal": state.body("target").xpos[:2]}

    def outcome(self, state: State) -> tuple[float, bool, dict[str, bool | int]]:
        """1 once the cube has come to lie on the right pad; any pad is the end."""
        _, _, info = super().outcome(state)
        placed = int(info["mode"])
        wanted = int(np.linalg.norm(PADS - state.body("target").xpos[:2], axis=1).argmin()) + 1
        is_success = placed > 0 and (self._any_pad or placed == wanted)
        return float(is_success), placed > 0, {"is_success": is_success, "mode": placed}

    def experts(self) -> dict[str, Callable[[np.random.Generator], Expert]]:
        """One that does as it is told."""
        return {"expert": lambda rng: Obedient()}
