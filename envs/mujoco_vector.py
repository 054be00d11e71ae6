"""Many copies of one of our tasks in one `mujoco.batch.Batch`, stepped chunk by chunk.

Physics runs on threads in this process and finished copies idle. A trajectory depends neither on N
nor on the number of threads, and equals that of the single env bit for bit.

Shape legend: `N` envs, `To` observed steps, `Ta` executed steps, `Da` action size.
"""

# MuJoCo ships no type stubs, its names come from a compiled module.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, create_empty_array
from mujoco.batch import Batch

from envs.mujoco_env import Element, MujocoEnv, check_options
from envs.wrappers import history_space

# Outputs of a batch have to be known before its first call.
OUTPUTS = ("xpos", "xquat", "site_xpos", "sensordata")
PRESENT = mujoco.mjtStage.mjSTAGE_VEL.value  # positions and sensors of the new state


class Row:
    """One simulation of a batch as a `State`: what a task needs of `mujoco.MjData`, by name."""

    def __init__(self, batch: Batch, index: int):
        self._batch, self._index = batch, index
        self._elements: dict[tuple[str, str], SimpleNamespace] = {}
        self.qpos: np.ndarray = batch.qpos[index]
        self.qvel: np.ndarray = batch.qvel[index]
        self.ctrl: np.ndarray = batch.ctrl[index]
        self.mocap_pos: np.ndarray = batch.mocap_pos[index]
        self.mocap_quat: np.ndarray = batch.mocap_quat[index]
        self.userdata: np.ndarray = batch.userdata[index]

    def joint(self, name: str) -> Element:
        """`qpos` and `qvel` of a joint."""
        return self._element("joint", name, ("qpos", "qvel"))

    def actuator(self, name: str) -> Element:
        """`ctrl` [1] of an actuator."""
        return self._element("actuator", name, ("ctrl",))

    def body(self, name: str) -> Element:
        """`xpos` [3] and `xquat` [4] of a body."""
        return self._element("body", name, ("xpos", "xquat"))

    def site(self, name: str) -> Element:
        """`xpos` [3] of a site."""
        return self._element("site", name, ("xpos",))

    def sensor(self, name: str) -> Element:
        """`data` of a sensor."""
        return self._element("sensor", name, ("data",))

    def _element(self, kind: str, name: str, attributes: Sequence[str]) -> Any:
        """Live views of an element's share; looked up once, for names are slow to resolve."""
        if (kind, name) not in self._elements:
            element = getattr(self._batch, kind)(name)
            self._elements[kind, name] = SimpleNamespace(
                **{each: getattr(element, each)[self._index] for each in attributes}
            )
        return self._elements[kind, name]


class MujocoVectorEnv(VectorEnv):
    """Many copies of one of our tasks in one `mujoco.batch.Batch`.

    Args:
        task: the task; its functions and its renderer are used, not its state.
        num_envs: N.
        horizons_obs: To.
        horizons_action: Ta.
        max_episode_steps: control steps after which an episode is truncated, None for never.
        nthread: threads, 0 for one per CPU.

    Raises:
        ValueError: a horizon is below 1.
    """

    def __init__(
        self,
        task: MujocoEnv,
        num_envs: int,
        *,
        horizons_obs: int,
        horizons_action: int,
        max_episode_steps: int | None = None,
        nthread: int = 0,
    ):
        for name, steps in (("horizons_obs", horizons_obs), ("horizons_action", horizons_action)):
            if steps < 1:
                raise ValueError(f"{name} is {steps}, it must be at least 1")
        self.task, self.num_envs = task, num_envs
        self.metadata = {**task.metadata, "autoreset_mode": AutoresetMode.DISABLED}
        self.render_mode = task.render_mode
        fields = task.observation_space
        assert isinstance(fields, spaces.Dict)
        self.single_observation_space = history_space(fields, horizons_obs)
        self.single_action_space = batch_space(task.action_space, horizons_action)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._max_steps = np.inf if max_episode_steps is None else max_episode_steps
        self._batch = Batch(task.model, num_envs, nthread)
        for name in OUTPUTS:
            self._batch.bind(name)
        self._rows = [Row(self._batch, i) for i in range(num_envs)]
        self._generators = [seeding.np_random(None)[0] for _ in range(num_envs)]
        self._history: dict[str, np.ndarray] = dict(
            create_empty_array(self.single_observation_space, num_envs)  # type: ignore[arg-type]
        )
        self._n_steps = np.zeros(num_envs, int)
        self._modes = np.zeros(num_envs, int)
        self._terminated = np.ones(num_envs, bool)  # until the first reset
        self._truncated = np.zeros(num_envs, bool)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start new episodes, in all envs or in those of `options["reset_mask"]`.

        Args:
            seed: one per env, or one for the first env, the others counting on from it.
            options: `reset_mask` [N] bool.

        Raises:
            ValueError: wrong number of seeds, wrong mask, or an unknown option.
        """
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, bool)))
        check_options(options)
        if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise ValueError(
                f"reset_mask has shape {mask.shape}, dtype {mask.dtype} and {mask.sum()} entries "
                f"set: it has to be bool [{self.num_envs}] with at least one set"
            )
        ids = np.flatnonzero(mask)
        for i, each in enumerate(self._seeds(seed)):
            if mask[i] and each is not None:
                self._generators[i] = seeding.np_random(each)[0]
        self._batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        for i in ids:
            self.task.initialize(self._rows[i], self._generators[i])
        self._batch.forward(ids, stage=PRESENT)
        for i in ids:
            for name, value in self.task.observation(self._rows[i]).items():
                self._history[name][i] = value  # repeated To times
        self._n_steps[ids] = self._modes[ids] = 0
        self._terminated[ids] = self._truncated[ids] = False
        return self._observations(), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Execute up to Ta of the actions [N, Ta, Da] in each env that has not finished.

        Raises:
            ValueError: the actions have another shape, or one to be executed is not finite.
        """
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions {actions.shape}, expected {self.action_space.shape}")
        rewards = np.zeros(self.num_envs)
        infos = {
            "n_executed": np.zeros(self.num_envs, int),
            "max_reward": np.full(self.num_envs, -np.inf),
            "last_reward": np.zeros(self.num_envs),
            "is_success": np.zeros(self.num_envs, bool),
        }
        for k in range(actions.shape[1]):
            ids = np.flatnonzero(~(self._terminated | self._truncated))
            if not ids.size:
                break
            for i in ids:
                self.task.apply(self._rows[i], self.task.checked(actions[i, k]))
            self._batch.step(ids, nstep=self.task.n_substeps, stage=PRESENT)
            self._n_steps[ids] += 1
            infos["n_executed"][ids] += 1
            for i in ids.tolist():
                reward, is_success = self._finish_step(i)
                rewards[i] += reward
                infos["max_reward"][i] = max(infos["max_reward"][i], reward)
                infos["last_reward"][i] = reward
                infos["is_success"][i] |= is_success
        if "modes" in self.metadata:
            infos["mode"] = self._modes.copy()
        flags = self._terminated.copy(), self._truncated.copy()
        return self._observations(), rewards, *flags, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """A picture [height, width, 3] uint8 of each env; None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(self.task.picture(self._batch.get_data(i)) for i in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Free the renderer."""
        self.task.close()

    def _finish_step(self, i: int) -> tuple[float, bool]:
        """Reward and success of the step that env i has made; its observation joins the history."""
        row = self._rows[i]
        reward, self._terminated[i], facts = self.task.outcome(row)
        self._truncated[i] = self._n_steps[i] >= self._max_steps
        self._modes[i] = facts.get("mode", 0)
        for name, value in self.task.observation(row).items():
            history = self._history[name][i]
            history[:-1] = history[1:].copy()
            history[-1] = value
        return reward, bool(facts["is_success"])

    def _observations(self) -> dict[str, np.ndarray]:
        return {name: history.copy() for name, history in self._history.items()}

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"{len(seed)} seeds for {self.num_envs} envs")
        return seed
