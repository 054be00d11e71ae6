"""Meta-World: 50 table-top tasks of one arm, with experts (extra `metaworld`).

Observation `state` (39,): hand x y z [m], gripper opening 0..1, up to two objects (position [m] and
quaternion, zero where unused), the same 18 numbers one step ago, goal x y z [m]. Action (4,) in
-1..1: hand displacement (1 = 1 cm) and gripper effort (1 closes). 80 Hz, at most 500 steps. Where
the tasks a policy knows are listed, `task` (n,) says which of the n this is.

Differences from the package:
1. A start (object and goal) is a pure function of `reset(seed=...)`; its own benchmark classes draw
   from 50 stored goals with a generator that `reset` does not reach.
2. An episode ends with success, so that demonstrations do, unless `ends_at_success=False`.
3. Its weld reset writes 11 numbers into rows that have 12 since MuJoCo 3.17: see `SeededTask`.
"""

# MuJoCo ships no stubs, so its members are unknown to pyright.
# pyright: reportAttributeAccessIssue=false

import difflib
from collections.abc import Callable, Mapping, Sequence

import gymnasium
import mujoco
import numpy as np

from envs.adapter import Adapter
from envs.rendering import Renderer
from envs.tell_task import TellTask

CONTROL_DT = 0.0125  # [s]
MAX_STEPS = 500
CAMERA = "corner2"  # hangs upside down in the models, so pictures are turned
WELD = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 5.0)  # Meta-World's own values
OBJECT_UNITS = 2 * (3 * ["m"] + 4 * ["1"])
STEP_UNITS = ["m", "m", "m", "1", *OBJECT_UNITS]
FIELDS = {"state": {"unit": [*STEP_UNITS, *STEP_UNITS, "m", "m", "m"]}, "action": {"unit": "1"}}

Expert = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def make(
    task: str | None,
    render_mode: str | None = None,
    *,
    tasks: Sequence[str] | None = None,
    ends_at_success: bool = True,
    width: int = 256,
    height: int = 256,
) -> gymnasium.Env:
    """One Meta-World task with its goal in the observation.

    Args:
        task: name, such as "pick-place-v3"; `task_names()` lists them.
        render_mode: "rgb_array" or None.
        tasks: names of all tasks of a policy, which is then told which of them this is.
        ends_at_success: terminate at the first success.
        width: picture width [px].
        height: picture height [px].

    Raises:
        ImportError: metaworld is not installed.
        ValueError: no task is given; there is no such task, near matches are named; or it is not
            one of `tasks`.
    """
    known, policies = _package()
    if task is None:
        raise ValueError(f"give task=NAME, one of {', '.join(tasks or sorted(known))}")
    for name in (task, *(tasks or ())):
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=5, cutoff=0.4) or sorted(known)
            raise ValueError(f"no Meta-World task {name!r}; near matches: {', '.join(near)}")
    # A subclass, so that nothing changes for other users of the package in this process.
    seeded = type(known[task].__name__, (SeededTask, known[task]), {})
    env = seeded(policies[task], render_mode, ends_at_success, width, height)
    env = gymnasium.wrappers.TimeLimit(env, MAX_STEPS)
    env = Adapter(env, control_dt=CONTROL_DT, task=task, fields=FIELDS)
    return env if tasks is None else TellTask(env, task=task, tasks=list(tasks))


def task_names() -> list[str]:
    """Names of all tasks.

    Raises:
        ImportError: metaworld is not installed.
    """
    return sorted(_package()[0])


class SeededTask(gymnasium.Env):
    """Goes in front of a Meta-World task class: seeded starts, current MuJoCo, own rendering."""

    model: mujoco.MjModel
    data: mujoco.MjData
    sawyer_observation_space: gymnasium.spaces.Box
    seed: Callable[[int], list[int]]

    def __init__(
        self,
        policy: Callable,
        render_mode: str | None,
        ends_at_success: bool,
        width: int,
        height: int,
    ):
        super().__init__()
        self._policy, self._ends_at_success = policy, ends_at_success
        self._picture_size = {"width": width, "height": height}
        self._renderer: Renderer | None = None
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / CONTROL_DT)}
        self.render_mode = render_mode
        # The goal is seen, and drawn from the environment's own generator at each reset.
        self._partially_observable = False
        self._freeze_rand_vec, self.seeded_rand_vec, self._set_task_called = False, True, True
        # The space is cached; the old one has a goal of zero, to which observations are clipped.
        del self.sawyer_observation_space
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (39,), np.float64)
        quality = self.model.vis.quality
        self.model.light_castshadow[:], quality.offsamples = 0, 0  # ten times faster pictures

    def experts(self) -> dict[str, Callable[[np.random.Generator], Expert]]:
        """The task's scripted expert."""
        return {"expert": self._make_expert}

    def reset_mocap_welds(self) -> None:
        """The package's own reset of the arm's weld, for rows of eq_data of any length."""
        for i in range(self.model.neq):
            if int(self.model.eq_type[i]) == int(mujoco.mjtEq.mjEQ_WELD):
                self.model.eq_data[i, : len(WELD)] = WELD

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """A start that is a function of the seed."""
        if seed is not None:
            self.seed(seed)
        return super().reset(options=options)

    def step(self, action: np.ndarray):
        """One control step."""
        observation, reward, terminated, truncated, info = super().step(action)
        terminated = terminated or (self._ends_at_success and bool(info["success"]))
        return observation, reward, terminated, truncated, info

    def render(self) -> np.ndarray | None:
        """A picture [height, width, 3] uint8; None without a render mode."""
        if self.render_mode is None:
            return None
        if self._renderer is None:
            self._renderer = Renderer(self.model, CAMERA, **self._picture_size)
        return np.ascontiguousarray(self._renderer(self.data)[::-1, ::-1])

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _make_expert(self, rng: np.random.Generator) -> Expert:
        """A fresh expert; it draws nothing."""
        policy = self._policy()

        def act(observation: Mapping[str, np.ndarray]) -> np.ndarray:
            action = policy.get_action(observation["state"].astype(np.float64))
            return np.clip(action, -1.0, 1.0).astype(np.float32)

        return act


def _package() -> tuple[Mapping[str, type], Mapping[str, type]]:
    """Task classes and expert classes by task name."""
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP
    except ImportError as error:
        raise ImportError(
            "env=metaworld needs the package metaworld: pip install -e '.[metaworld]'"
        ) from error
    return ALL_V3_ENVIRONMENTS, ENV_POLICY_MAP
