"""A simulated robot: an env that moves on with a clock, with latencies where wanted.

It offers what `policy.types.Robot` asks for, and how the episode goes. Nothing runs by itself: each
call first brings the simulation to the present, one env step for every control period that has
passed, so under a virtual clock a run repeats exactly.

    period k of the robot     |------ 0 ------|------ 1 ------|------ 2 ------|
    state, as captured        S0              S1              S2              S3
    command arrives                 a                               b
    action executed           |       a       |  a  (missed)  |       b       |
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import gymnasium as gym
import numpy as np

ContractT = TypeVar("ContractT")

# Part of a control period by which a call may be early and still finds the period over: a loop
# wakes up around its deadlines, not on them.
EARLY = 0.02
# Part of a limit by which an action may exceed it uncounted: float32 rounds 0.2 up.
FLOAT32 = 1e-6
# The same of a limit of 0, in the action's units.
TINY = 1e-8


@dataclass(frozen=True)
class Reading:
    """What the robot sensed at one moment; has the attributes of `data.types.Observation`.

    Args:
        fields: field name -> array of the field's shape.
        capture_time: on the robot's clock [s].
    """

    fields: dict[str, np.ndarray]
    capture_time: float


class SimRobot(Generic[ContractT]):
    """An env stepped in the time of a clock.

    A command that arrives within a control period counts for the whole of it. A period in which
    none arrives repeats the last action (or, where actions are changes, does nothing) and is
    counted in `missed`. The world stands still until the first command, and after the episode.

    Args:
        make_env: makes the env; its `metadata["contract"]` tells the control period and limits.
        clock: the present time [s], never going back.
        read_contract: makes `contract` from its JSON form, such as `Contract.from_json`.
        seed: of the first episode.
        observation_latency: age of the newest observation that can be read [s].
        command_latency: time from `command` until the robot has it [s].
        limits: what a governor=limited keeps to; not used here.

    Attributes:
        is_real: False.
        contract: what `read_contract` made.
        limits: lower and upper limit of an action [Da]; commands beyond are clipped and counted.
        missed: control periods without a new command.
        clipped: commands that were clipped.
        episode_over: whether the env has terminated or truncated the episode.
        is_success: whether the task was accomplished.
        mode: the way taken, an index into the env's `metadata["modes"]`; 0 is none.
        length: control periods that were simulated in this episode.
        score: largest reward of a period; -inf where there was none.
        total: sum of the rewards.

    Raises:
        ValueError: a latency is negative.
    """

    is_real = False

    def __init__(
        self,
        make_env: Callable[[], gym.Env],
        *,
        clock: Callable[[], float],
        read_contract: Callable[[Mapping], ContractT],
        seed: int = 0,
        observation_latency: float = 0.0,
        command_latency: float = 0.0,
        limits: Mapping[str, object] | None = None,
    ):
        check_times(observation_latency=observation_latency, command_latency=command_latency)
        self._env = make_env()
        entry = self._env.metadata["contract"]
        self.contract = read_contract(entry)
        self._shape = tuple(entry["action"]["shape"])
        self._dtype = self._env.action_space.dtype
        self.limits = action_limits(entry["action"])
        self._repeats = entry["action"].get("kind", "absolute") == "absolute"
        self._control_dt: float = entry["control_dt"]
        self._clock = clock
        self._observation_latency = observation_latency
        self._command_latency = command_latency
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Start a new episode; what was commanded before is forgotten.

        Args:
            seed: of the episode.
        """
        fields, _ = self._env.reset(seed=seed)
        self._start = self._clock()
        self._tick = 0  # control periods simulated
        self._readings = deque([Reading(fields, self._start)])
        self._commands: deque[tuple[float, np.ndarray]] = deque()  # arrival [s], action
        self._action: np.ndarray | None = None  # the last one executed
        self._is_stopped = False
        self.missed = self.clipped = self.mode = 0
        self.episode_over = self.is_success = False
        self.length, self.score, self.total = 0, -math.inf, 0.0

    def read(self) -> Reading:
        """The newest observation that has arrived."""
        if self._action is None and not self._commands:
            # Nobody has commanded yet: the world stands still, and its time starts now.
            self._start, self._tick = self._clock(), 0
            self._readings = deque([Reading(self._readings[-1].fields, self._start)])
        self._advance()
        return self._readings[0]

    def pose(self) -> np.ndarray | None:
        """Where it is [Da], by what can be read; None where the env has no method `pose`."""
        return pose_of(self._env, self.read().fields)

    def command(self, action: np.ndarray, tick: int) -> None:
        """Send one action [Da]; it is executed when it arrives, whichever `tick` it is meant for.

        Raises:
            ValueError: the action has another shape or is not finite; nothing was sent.
        """
        action = checked_action(action, tick, shape=self._shape)
        now = self._advance()
        within, is_clipped = clipped(action, self.limits)
        self.clipped += is_clipped
        self._is_stopped = False
        self._commands.append((now + self._command_latency, within))

    def stop(self) -> None:
        """Hold still: commands on their way are dropped. May be called any number of times."""
        self._advance()
        self._commands.clear()
        self._is_stopped = True

    def render(self) -> np.ndarray | None:
        """A picture of the present state, if the env was made with a render mode."""
        self._advance()
        frame = self._env.render()
        return frame if isinstance(frame, np.ndarray) else None

    def close(self) -> None:
        """Close the env."""
        self._env.close()

    def _advance(self) -> float:
        """Simulate the control periods that have passed; returns the present time [s]."""
        now = self._clock()
        passed = math.floor((now - self._start) / self._control_dt + EARLY)
        while self._tick < passed:
            self._tick += 1
            self._step(self._start + self._tick * self._control_dt, now)
        seen = now - self._observation_latency + EARLY * self._control_dt
        while len(self._readings) > 1 and self._readings[1].capture_time <= seen:
            self._readings.popleft()
        return now

    def _step(self, end: float, now: float) -> None:
        """Simulate the control period that ends at `end` [s]."""
        newest = None
        while self._commands and self._commands[0][0] < end - 1e-9:
            newest = self._commands.popleft()[1]
        action = self._hold() if newest is None else newest
        fields = self._readings[-1].fields
        if action is not None and not self.episode_over:
            self.missed += newest is None and not self._is_stopped
            self._action = action
            fields, reward, terminated, truncated, facts = self._env.step(
                action.astype(self._dtype)
            )
            self.length += 1
            self.score, self.total = max(self.score, float(reward)), self.total + float(reward)
            self.episode_over = bool(terminated or truncated)
            self.is_success = self.is_success or bool(facts.get("is_success", False))
            self.mode = int(facts.get("mode", 0))
        self._readings.append(Reading(fields, min(end, now)))

    def _hold(self) -> np.ndarray | None:
        """The action that changes nothing; None where no command has arrived yet."""
        if self._action is None or self._repeats:
            return self._action
        return np.zeros_like(self._action)


def check_times(**seconds: float) -> None:
    """Raise ValueError where one of the named times [s] is negative or no number."""
    for name, value in seconds.items():
        if not value >= 0:
            raise ValueError(f"{name} is {value} s, it cannot be negative")


def checked_action(action: np.ndarray, tick: int, *, shape: tuple[int, ...]) -> np.ndarray:
    """The action as float64.

    Raises:
        ValueError: it has another shape or is not finite.
    """
    action = np.asarray(action, float)
    if action.shape != shape or not np.isfinite(action).all():
        raise ValueError(f"action {action} for tick {tick}: expected {shape} finite numbers")
    return action


def clipped(action: np.ndarray, limits: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, bool]:
    """The action [Da] within its limits, and whether that changed it beyond float32's rounding."""
    within = np.minimum(np.maximum(action, limits[0]), limits[1])
    return within, bool((np.abs(within - action) > FLOAT32 * np.abs(within) + TINY).any())


def action_limits(field: Mapping) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limits [Da] of an action, in its JSON form; infinite where unknown."""
    return _limit(field, "low", -np.inf), _limit(field, "high", np.inf)


def pose_of(env: gym.Env, fields: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The action [Da] that would keep things where an observation says that they are.

    An env whose actions are absolute tells it by a method `pose(fields)`; None where it has none.
    """
    pose = getattr(env.unwrapped, "pose", None)
    return None if pose is None else pose(fields)


def _limit(field: Mapping, side: str, unknown: float) -> np.ndarray:
    values = field.get(side)
    return np.full(field["shape"], unknown) if values is None else np.array(values, float)
