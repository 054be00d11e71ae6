"""The one base class of our MuJoCo tasks.

A task is four functions of a simulation's `State`: `initialize`, `apply`, `observe` and `outcome`.
They are written once and run on a single `mujoco.MjData` (this class, a plain Gymnasium env) as
well as on one row of a `mujoco.batch.Batch` (`envs.vector`), with the same result bit for bit.
Elements are found by name; what a task must remember within an episode lives in `State.userdata`.
"""

# MuJoCo ships no type stubs, its names come from a compiled module.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces

from envs.rendering import Renderer


class Element(Protocol):
    """A named element's share of the state; a joint has `qpos` and `qvel`, a site `xpos`, ..."""

    qpos: np.ndarray
    qvel: np.ndarray
    ctrl: np.ndarray
    xpos: np.ndarray
    xquat: np.ndarray
    data: np.ndarray


class State(Protocol):
    """The part of `mujoco.MjData` that tasks may use: these arrays, and elements by name.

    `qpos qvel ctrl mocap_pos mocap_quat userdata` may be written. Positions of bodies and sites and
    the sensors of the position and velocity stages belong to the present `qpos` and `qvel`.
    """

    qpos: np.ndarray
    qvel: np.ndarray
    ctrl: np.ndarray
    mocap_pos: np.ndarray
    mocap_quat: np.ndarray
    userdata: np.ndarray

    def joint(self, name: str) -> Element:
        """`qpos` and `qvel` of a joint."""
        ...

    def actuator(self, name: str) -> Element:
        """`ctrl` [1] of an actuator."""
        ...

    def body(self, name: str) -> Element:
        """`xpos` [3] and `xquat` [4] (w x y z) of a body in the world frame."""
        ...

    def site(self, name: str) -> Element:
        """`xpos` [3] of a site in the world frame."""
        ...

    def sensor(self, name: str) -> Element:
        """`data` of a sensor."""
        ...


class MujocoEnv(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """A task in one MuJoCo model, described by its contract.

    A subclass writes `initialize`, `apply`, `observe` and `outcome`, and gives the base its model
    and contract. The spaces follow from the contract; `info` holds `is_success` and, where a task
    has several ways, `mode`, an index into `metadata["modes"]`.

    Args:
        xml: the model.
        contract: meaning of every number, in the JSON form of `data.types.Contract`.
        physics_dt: time between two physics steps [s]; control_dt is a whole multiple of it.
        render_mode: "rgb_array" or None.
        width: picture width [px].
        height: picture height [px].
        camera: name of the camera that pictures are taken with.

    Raises:
        ValueError: control_dt is not a multiple of physics_dt, or the render mode is unknown.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012  (Gymnasium's form)

    def __init__(
        self,
        xml: Path,
        contract: Mapping,
        *,
        physics_dt: float,
        render_mode: str | None = None,
        width: int = 256,
        height: int = 256,
        camera: str = "overview",
    ):
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"render_mode is {render_mode!r}, choose None or one of "
                f"{self.metadata['render_modes']}"
            )
        control_dt = contract["control_dt"]
        self.n_substeps = substeps(control_dt, physics_dt)
        self.metadata = {
            **type(self).metadata,
            "contract": contract,
            "render_fps": round(1 / control_dt),
        }
        self.model = mujoco.MjModel.from_xml_path(str(xml))
        self.model.opt.timestep = physics_dt
        self.data = mujoco.MjData(self.model)
        self.observation_space = spaces.Dict(
            {name: box(field) for name, field in contract["observation"].items()}
        )
        self.action_space = box(contract["action"])
        self.render_mode = render_mode
        self._width, self._height, self._camera = width, height, camera
        self._renderer: Renderer | None = None

    def initialize(self, state: State, rng: np.random.Generator) -> None:
        """Write an initial state, drawn from `rng` alone, over the model's default."""
        raise NotImplementedError

    def apply(self, state: State, action: np.ndarray) -> None:
        """Write what an action [Da] means for one control step, usually to `ctrl`."""
        raise NotImplementedError

    def observe(self, state: State) -> dict[str, np.ndarray]:
        """The observation fields."""
        raise NotImplementedError

    def outcome(self, state: State) -> tuple[float, bool, dict[str, bool | int]]:
        """Reward, terminated and info; called once after each control step."""
        raise NotImplementedError

    def observation(self, state: State) -> dict[str, np.ndarray]:
        """What `observe` gives, as fresh arrays in the types of the contract."""
        fields = self.observe(state)
        return {
            name: np.array(fields[name], space.dtype)
            for name, space in self.observation_space.items()
        }

    def reset(
        self, *, seed: int | None = None, options: Mapping | None = None
    ) -> tuple[dict[str, np.ndarray], dict]:
        """Start an episode whose initial state is a function of the seed.

        Args:
            seed: of the episode; None goes on with the generator of the last seed.
            options: none are known.

        Returns:
            The observation and an empty info.

        Raises:
            ValueError: there are options.
        """
        super().reset(seed=seed)
        check_options(options)
        mujoco.mj_resetData(self.model, self.data)
        self.initialize(self.data, self.np_random)
        mujoco.mj_step1(self.model, self.data)
        return self.observation(self.data), {}

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, bool | int]]:
        """Hold one action [Da] for one control step.

        Returns:
            Observation, reward, terminated, truncated (never: a time limit is a wrapper) and info.

        Raises:
            ValueError: the action has another shape or is not finite.
        """
        self.apply(self.data, self.checked(action))
        mujoco.mj_step(self.model, self.data, self.n_substeps)
        # mj_step leaves positions and sensors one physics step behind the state.
        mujoco.mj_step1(self.model, self.data)
        reward, terminated, info = self.outcome(self.data)
        return self.observation(self.data), reward, terminated, False, info

    def checked(self, action: np.ndarray) -> np.ndarray:
        """The action as float64, or ValueError if its shape is wrong or it is not finite."""
        action = np.asarray(action, np.float64)
        if action.shape != self.action_space.shape:
            raise ValueError(
                f"the action has shape {action.shape}, expected {self.action_space.shape}"
            )
        if not np.isfinite(action).all():
            raise ValueError(f"the action is not finite: {action}")
        return action

    def render(self) -> np.ndarray | None:
        """A picture [height, width, 3] uint8 of the present state; None without a render mode.

        Raises:
            envs.rendering.RenderingError: no OpenGL backend works on this machine.
        """
        return self.picture(self.data) if self.render_mode else None

    def picture(self, state: mujoco.MjData) -> np.ndarray:
        """A picture [height, width, 3] uint8 of any state of this model."""
        if self._renderer is None:
            self._renderer = Renderer(
                self.model, self._camera, width=self._width, height=self._height
            )
        return self._renderer(state)

    def close(self) -> None:
        """Free the renderer. May be called any number of times."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def substeps(control_dt: float, physics_dt: float) -> int:
    """Physics steps in one control step.

    Args:
        control_dt: s.
        physics_dt: s.

    Raises:
        ValueError: the control step is not a whole multiple of the physics step.
    """
    n = round(control_dt / physics_dt)
    if n < 1 or abs(n * physics_dt - control_dt) > 1e-9:
        raise ValueError(
            f"the control step of {control_dt} s is not a multiple of the physics step of "
            f"{physics_dt} s"
        )
    return n


def box(field: Mapping) -> spaces.Box:
    """The space of a contract field, given in its JSON form."""
    shape, dtype = tuple(field["shape"]), np.dtype(field.get("dtype", "float32"))
    if dtype == np.uint8:
        return spaces.Box(0, 255, shape, np.uint8)
    low, high = field.get("low"), field.get("high")
    return spaces.Box(
        np.full(shape, -np.inf, dtype) if low is None else np.array(low, dtype).reshape(shape),
        np.full(shape, np.inf, dtype) if high is None else np.array(high, dtype).reshape(shape),
        dtype=dtype.type,
    )


def check_options(options: Mapping | None) -> None:
    """Raise ValueError for any reset option."""
    if options:
        raise ValueError(f"unknown reset options {sorted(options)}, our tasks have none")
