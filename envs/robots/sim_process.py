"""A simulated robot in a process of its own, in real time, with faults where wanted.

What `envs.robots.sim.SimRobot` does when it is asked, this one does by itself: it moves on whether
or not its controller lives. Either side may be killed at any time without blocking the other.

Both processes read the same clock: on Linux, `time.perf_counter` and `time.monotonic` are
CLOCK_MONOTONIC, which is one for the whole computer. So a reading's `capture_time`, taken in the
robot's process, can be compared with any time taken in the controller's.

    controller looks   |--------- k ---------|--------- k+1 -------|
    robot's period   |--------- k ---------|--------- k+1 -------|
    published                               S(k+1)                S(k+2)
                     <-> lead
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.shared_memory import SharedMemory
from typing import Generic, TypeVar

import gymnasium as gym
import numpy as np

from envs.robots.errors import RobotLostError
from envs.robots.shared_slot import SlotReader, SlotWriter
from envs.robots.sim import (
    Reading,
    action_limits,
    check_times,
    checked_action,
    clipped,
    pose_of,
)
from envs.robots.sim_process_side import (
    CELLS,
    Faults,
    Kind,
    Timing,
    command_dtype,
    memory_bytes,
    serve,
    state_dtype,
)

ContractT = TypeVar("ContractT")

PATIENCE = 120.0  # s, for the process to start and for a reset
GOODBYE = 2.0  # s, for the process to end by itself
SAME_CLOCK = 0.1  # s, by which two looks at one clock may differ


class SimProcess(Generic[ContractT]):
    """An env that is stepped by a process of its own, once a control period.

    What a period does with commands is as in `SimRobot`: the last one that arrives within it counts
    for the whole of it, a period without one repeats the last action and is counted in `missed`,
    and the world stands still until the first command and after the episode. Without a new command
    for `watchdog` seconds the robot drops what is on its way and holds.

    The robot's process is started afresh and imports what it needs, so `make_env` must be picklable
    and a script must construct the robot under `if __name__ == "__main__":`. One thread reads and
    commands; `stop` may be called from any.

    Args:
        make_env: makes the env; its `metadata["contract"]` tells the control period and limits.
        clock: `time.perf_counter`, or what agrees with it; the robot keeps the real time.
        read_contract: makes `contract` from its JSON form, such as `Contract.from_json`.
        seed: of the first episode.
        observation_latency: age of the newest observation that can be read [s].
        command_latency: time from `command` until the robot has it [s].
        limits: what a governor=limited keeps to; not used here.
        watchdog: without a new command for so long, the robot holds [s]; more than a period.
        lead: part of a control period by which the robot's ticks come before the controller's, so
            that the newest state is there when the controller looks; 0 to below 1.
        linger: time for which the robot outlives its controller, holding [s].
        faults: what goes wrong on purpose; None: nothing.

    Attributes:
        is_real: False.
        contract: what `read_contract` made.
        limits: lower and upper limit of an action [Da]; commands beyond are clipped and counted.
        clipped: commands that were clipped.

    Raises:
        ValueError: a setting is out of its range, or the clock is another one.
        RobotLostError: the robot's process does not come up.
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
        watchdog: float = 0.5,
        lead: float = 0.2,
        linger: float = 5.0,
        faults: Faults | None = None,
    ):
        self._process = self._memory = None
        self._env = make_env()  # Not stepped: it tells its contract and its pose.
        entry = self._env.metadata["contract"]
        faults = faults or Faults()
        dt: float = entry["control_dt"]
        _check_settings(dt, clock=clock, watchdog=watchdog, lead=lead)
        check_times(
            observation_latency=observation_latency, command_latency=command_latency, linger=linger
        )
        _check_age(observation_latency + faults.observation_jitter, dt)
        timing = Timing(observation_latency, command_latency, watchdog, lead * dt, linger)
        self.contract = read_contract(entry)
        self.limits = action_limits(entry["action"])
        self._shape = tuple(entry["action"]["shape"])
        self._clock = clock
        self._lock = threading.Lock()  # between threads of this process only
        self._open(entry)
        assert self._memory is not None
        self._process = multiprocessing.get_context("spawn").Process(
            target=serve,
            args=(make_env,),
            kwargs={
                "seed": seed,
                "timing": timing,
                "faults": faults,
                "memory_name": self._memory.name,
                "controller": os.getpid(),
            },
            name="cadence-robot",
            daemon=True,
        )
        self._forget(epoch=0)
        try:
            self._process.start()
            self._await_episode()
        except BaseException:
            self.close()
            raise

    def _open(self, entry: Mapping) -> None:
        """Make the shared memory and its two slots."""
        n_commands, n_states = memory_bytes(entry)
        self._memory = SharedMemory(create=True, size=n_commands + n_states)
        memory = self._memory.buf
        assert memory is not None
        self._commands = SlotWriter(memory[:n_commands], command_dtype(entry), CELLS)
        states = memory[n_commands : n_commands + n_states]
        self._states = SlotReader(states, state_dtype(entry), CELLS)

    def _forget(self, *, epoch: int) -> None:
        """What this side knows of an episode, at its begin."""
        self._epoch, self.clipped = epoch, 0
        self._origin = self._clock()  # when the last look before the first command was
        self._has_commanded = False

    @property
    def missed(self) -> int:
        """Control periods without a new command."""
        return int(self._newest()["missed"])

    @property
    def late(self) -> int:
        """Commands that came when the period they were sent in had been simulated."""
        return int(self._newest()["late"])

    @property
    def dropped(self) -> int:
        """Commands that were lost on purpose."""
        return int(self._newest()["dropped"])

    @property
    def held(self) -> int:
        """Times that the watchdog has tripped."""
        return int(self._newest()["held"])

    @property
    def episode_over(self) -> bool:
        """Whether the env has terminated or truncated the episode."""
        return bool(self._newest()["episode_over"])

    @property
    def is_success(self) -> bool:
        """Whether the task was accomplished."""
        return bool(self._newest()["is_success"])

    @property
    def mode(self) -> int:
        """The way taken, an index into the env's `metadata["modes"]`; 0 is none."""
        return int(self._newest()["mode"])

    @property
    def tick(self) -> int:
        """Control periods simulated."""
        return int(self._newest()["tick"])

    @property
    def pid(self) -> int | None:
        """The robot's process; None once it is closed."""
        return None if self._process is None else self._process.pid

    @property
    def memory_name(self) -> str | None:
        """The shared memory, under /dev/shm; None once it is closed."""
        return None if self._memory is None else self._memory.name

    def reset(self, seed: int) -> None:
        """Start a new episode; what was commanded before is forgotten. Waits for the robot.

        Args:
            seed: of the episode.

        Raises:
            RobotLostError: the robot's process is gone or does not answer.
        """
        self._check_alive()
        self._forget(epoch=self._epoch + 1)
        self._send(Kind.RESET, seed=seed)
        self._await_episode()
        self._origin = self._clock()

    def read(self) -> Reading:
        """The newest observation that has arrived.

        Raises:
            RobotLostError: the robot's process is gone.
        """
        self._check_alive()
        now = self._clock()
        if not self._has_commanded:
            self._origin = now  # The world stands still, and its time starts now.
        state = self._visible(now)
        time_ = float(state["capture_time"]) if state["tick"] > 0 else self._origin
        names = state["fields"].dtype.names or ()
        return Reading({name: state["fields"][name].copy() for name in names}, time_)

    def pose(self) -> np.ndarray | None:
        """Where it is [Da], by what can be read; None where the env has no method `pose`.

        Raises:
            RobotLostError: the robot's process is gone.
        """
        return pose_of(self._env, self.read().fields)

    def command(self, action: np.ndarray, tick: int) -> None:
        """Send one action [Da]; it is executed when it arrives, whichever `tick` it is meant for.

        Raises:
            ValueError: the action has another shape or is not finite; nothing was sent.
            RobotLostError: the robot's process is gone.
        """
        action = checked_action(action, tick, shape=self._shape)
        self._check_alive()
        within, is_clipped = clipped(action, self.limits)
        self.clipped += is_clipped
        self._has_commanded = True
        self._send(Kind.COMMAND, action=within)

    def stop(self) -> None:
        """Hold still: commands on their way are dropped. May be called any number of times.

        A robot that is lost holds by itself, so nothing is raised then.
        """
        self._send(Kind.STOP)

    def close(self) -> None:
        """End the robot's process and give the shared memory back. May be called again."""
        self._env.close()
        if self._process is not None and self._process.pid is not None:
            self._send(Kind.CLOSE)
            self._process.join(GOODBYE)
            if self._process.exitcode is None:
                self._process.kill()
                self._process.join()
        with self._lock:
            memory, self._memory, self._process = self._memory, None, None
            if memory is not None:
                self._last = self._states.newest()
                self._commands.release()
                self._states.release()
                memory.close()
                memory.unlink()

    def _send(self, kind: Kind, *, seed: int = 0, action: np.ndarray | None = None) -> None:
        """Write one record for the robot; nothing once it is closed."""
        with self._lock:
            if self._memory is None:
                return
            record = np.zeros((), self._commands.dtype)
            record["kind"], record["epoch"], record["seed"] = kind, self._epoch, seed
            record["origin"], record["time"] = self._origin, self._clock()
            if action is not None:
                record["action"] = action
            self._commands.write(record)

    def _newest(self) -> np.ndarray:
        """The last state that the robot has published, also of one that is gone."""
        state = self._last if self._memory is None else self._states.newest()
        assert state is not None
        return state

    def _visible(self, now: float) -> np.ndarray:
        """The newest state of this episode that can be seen at `now` [s]."""
        count = self._states.count
        for number in range(count, max(0, count - CELLS), -1):
            state = self._states.read(number)
            if state is None or state["epoch"] != self._epoch:
                break
            if state["tick"] == 0 or state["visible_time"] <= now:
                return state
        return self._newest()

    def _await_episode(self) -> None:
        """Wait until the robot has begun the present episode."""
        deadline = time.perf_counter() + PATIENCE
        while (state := self._states.newest()) is None or state["epoch"] != self._epoch:
            self._check_alive()
            if time.perf_counter() > deadline:
                raise RobotLostError(f"the robot's process has not answered for {PATIENCE:g} s")
            time.sleep(0.001)

    def _check_alive(self) -> None:
        if self._process is None:
            raise RobotLostError("the robot is closed: make a new one")
        if not self._process.is_alive():
            raise RobotLostError(
                f"the robot's process {self._process.pid} has ended with exit code "
                f"{self._process.exitcode}: it held its last command; make a new robot"
            )


def _check_settings(dt: float, *, clock: Callable[[], float], watchdog: float, lead: float) -> None:
    """Raise ValueError where a setting does not go with the control period or the clock."""
    if not watchdog > dt:
        raise ValueError(
            f"watchdog is {watchdog} s, commands come every {dt} s: it must be longer than that"
        )
    if not 0 <= lead < 1:
        raise ValueError(f"lead is {lead} of a control period, it must be in 0..1, below 1")
    off = abs(clock() - time.perf_counter())
    if off > SAME_CLOCK:
        raise ValueError(
            f"the clock is {off:.3g} s off the computer's monotonic clock, which the robot's "
            f"process keeps: give time.perf_counter"
        )


def _check_age(oldest: float, dt: float) -> None:
    """Raise ValueError where an observation would be overwritten before it can be seen."""
    longest = (CELLS - 4) * dt
    if oldest > longest:
        raise ValueError(
            f"observations are up to {oldest:g} s old, the robot keeps those of {longest:g} s: "
            f"choose observation_latency and observation_jitter below that"
        )
