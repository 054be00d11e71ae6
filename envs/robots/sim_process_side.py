"""The robot's side of `SimProcess`: what runs in the simulated robot's own process.

    controller                shared memory                robot
    command, stop, reset  ->  64 commands, newest last  -> looked at every 2 ms
    read                  <-  64 states, newest last    <- one a control period

A `SimRobot` is moved on in the time of the computer's clock. Deadlines are absolute, so a late tick
does not delay the next one. Records pass through shared memory (`envs.robots.shared_slot`).
"""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from multiprocessing.shared_memory import SharedMemory

import gymnasium as gym
import numpy as np

from envs.robots.shared_slot import SlotReader, SlotWriter, slot_bytes
from envs.robots.sim import SimRobot, check_times

COUNTS = ("epoch", "tick", "missed", "late", "dropped", "held", "mode")
CELLS = 64  # records of either kind that the other side can still read
POLL = 0.002  # s between two looks at the commands


class Kind(IntEnum):
    """What the controller asks for."""

    COMMAND = 0
    STOP = 1
    RESET = 2
    CLOSE = 3


@dataclass(frozen=True)
class Faults:
    """What goes wrong on purpose; the same in every run with the same seed.

    Args:
        stalls: pairs of a tick and how long nothing happens from then on [s]: no step, no
            observation, and commands are not looked at. The world stands still meanwhile.
        drop: probability with which a command is lost.
        observation_jitter: what an observation is late by in addition, at most; uniform [s].
        kill_at: tick at which the robot's process kills itself.
        seed: of what is drawn; of each episode, together with the episode's own.

    Raises:
        ValueError: a time is negative, or the probability is none.
    """

    stalls: Sequence[tuple[int, float]] = ()
    drop: float = 0.0
    observation_jitter: float = 0.0
    kill_at: int | None = None
    seed: int = 0

    def __post_init__(self):
        # Plain pairs, so that they can be sent to the process whatever the configuration gave.
        plain = tuple((int(tick), float(seconds)) for tick, seconds in self.stalls)
        object.__setattr__(self, "stalls", plain)
        check_times(observation_jitter=self.observation_jitter)
        check_times(**{f"the stall at tick {tick}": seconds for tick, seconds in plain})
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop is {self.drop}, a probability must be in 0..1")


@dataclass(frozen=True)
class Timing:
    """When things happen in the robot's process.

    Args:
        observation_latency: from a state to when it can be read [s].
        command_latency: from `command` until the robot has it [s].
        watchdog: without a new command for so long, the robot holds [s].
        lead: what the robot's ticks come before the controller's [s].
        linger: how long the robot outlives its controller, holding [s].
    """

    observation_latency: float
    command_latency: float
    watchdog: float
    lead: float
    linger: float


def command_dtype(contract: Mapping) -> np.dtype:
    """What passes to the robot; `origin` is when the controller looked at first [s]."""
    size = tuple(contract["action"]["shape"])
    numbers = [("kind", "i8"), ("epoch", "i8"), ("seed", "i8"), ("origin", "f8"), ("time", "f8")]
    return np.dtype([*numbers, ("action", "f8", size)])


def state_dtype(contract: Mapping) -> np.dtype:
    """What passes from the robot: how it goes, and what it sensed."""
    counts = [(name, "i8") for name in COUNTS]
    flags = [("episode_over", "?"), ("is_success", "?")]
    times = [("capture_time", "f8"), ("visible_time", "f8")]
    fields = [
        (name, entry.get("dtype", "float32"), tuple(entry["shape"]))
        for name, entry in contract["observation"].items()
    ]
    return np.dtype([*counts, *flags, *times, ("fields", fields)])


def memory_bytes(contract: Mapping) -> tuple[int, int]:
    """Bytes of the commands, which come first, and of the states."""
    commands, states = command_dtype(contract), state_dtype(contract)
    return slot_bytes(commands, CELLS), slot_bytes(states, CELLS)


def serve(
    make_env: Callable[[], gym.Env],
    *,
    seed: int,
    timing: Timing,
    faults: Faults,
    memory_name: str,
    controller: int,
) -> None:
    """Be the robot until told to close, or until `linger` after the controller's death.

    Args:
        make_env: makes the env.
        seed: of the first episode.
        timing: of the robot.
        faults: of the robot.
        memory_name: of the shared memory, which the controller has made.
        controller: process that the robot belongs to.
    """
    # Ctrl-C is for the controller, which may still want to stop the robot.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    memory = SharedMemory(memory_name)
    assert memory.buf is not None
    robot = _Robot(make_env, memory.buf, seed=seed, timing=timing, faults=faults)
    try:
        if not _served(robot, controller, linger=timing.linger):
            memory.unlink()  # There is nobody else left to do it.
    finally:
        robot.release()
        memory.close()


def _served(robot: "_Robot", controller: int, *, linger: float) -> bool:
    """Serve; whether it ended because it was told to."""
    alone_since = None
    while robot.turn():
        if alone_since is None and os.getppid() != controller:
            alone_since = time.perf_counter()
        if alone_since is not None and time.perf_counter() - alone_since > linger:
            return False
        time.sleep(max(0.0, min(robot.next_deadline() - time.perf_counter(), POLL)))
    return True


class _Robot:
    """A `SimRobot` whose clock is set to what happens: a command's time, or the present.

    Its time is the computer's, less the stalls, during which the world stood still.
    """

    def __init__(
        self,
        make_env: Callable[[], gym.Env],
        memory: memoryview,
        *,
        seed: int,
        timing: Timing,
        faults: Faults,
    ):
        self._now = 0.0
        self._sim: SimRobot[Mapping] = SimRobot(
            make_env,
            clock=lambda: self._now,
            read_contract=lambda contract: contract,
            seed=seed,
            command_latency=timing.command_latency,
        )
        contract = self._sim.contract
        n_commands, n_states = memory_bytes(contract)
        self._commands = SlotReader(memory[:n_commands], command_dtype(contract), CELLS)
        states = memory[n_commands : n_commands + n_states]
        self._states = SlotWriter(states, state_dtype(contract), CELLS)
        self._dt: float = contract["control_dt"]
        self._timing, self._faults = timing, faults
        self._n_seen = 0  # records of commands
        self._begin(0, seed)

    def _begin(self, epoch: int, seed: int) -> None:
        """Publish the first state of an episode, which has been reset."""
        self._epoch = epoch
        self._stalls = dict(self._faults.stalls)
        # One each, so that which commands are lost does not depend on when they come.
        self._jitter, self._losses = np.random.default_rng((self._faults.seed, seed)).spawn(2)
        self._start: float | None = None  # of period 0, less the stalls [s]
        self._stalled = 0.0  # s
        self._last_command = 0.0  # arrival [s]
        self._is_still = True  # stopped or held
        self._tick = self._late = self._dropped = self._held = 0
        self._publish(self._sim.read().fields, 0.0)

    def turn(self) -> bool:
        """Take in what has come and do what is due; False when told to close."""
        present = time.perf_counter()
        count = self._commands.count
        for number in range(self._n_seen + 1, count + 1):
            record = self._commands.read(number)
            if record is None:  # Overwritten: after a stall, the newest are what matters.
                continue
            if record["kind"] == Kind.CLOSE:
                return False
            self._take(record)
        self._n_seen = count
        if self._start is not None:
            self._watch(present)
            self._move_on(present)
        return True

    def next_deadline(self) -> float:
        """When the present control period ends [s]; infinite where nothing moves yet."""
        if self._start is None:
            return float("inf")
        return self._start + self._stalled + (self._tick + 1) * self._dt

    def _take(self, record: np.ndarray) -> None:
        """Do what one record asks for, at the time it was written."""
        epoch, seed, kind = int(record["epoch"]), int(record["seed"]), int(record["kind"])
        if kind == Kind.RESET:
            self._sim.reset(seed)
            self._begin(epoch, seed)
            return
        if kind == Kind.COMMAND and self._losses.random() < self._faults.drop:
            self._dropped += 1
            return
        if self._start is None:
            if kind == Kind.STOP:
                return
            self._now = self._start = float(record["origin"]) - self._timing.lead
            self._sim.read()  # Its time starts now, and not at the first command.
        sent = float(record["time"])
        self._now = max(self._now, sent - self._stalled)
        if kind == Kind.STOP:
            self._sim.stop()
            self._is_still = True
        else:
            arrival = sent + self._timing.command_latency
            self._late += arrival - self._stalled < self._start + self._tick * self._dt
            self._sim.command(record["action"], -1)
            self._last_command = arrival
            self._is_still = False

    def _watch(self, present: float) -> None:
        """Hold where no command has come for too long."""
        is_late = present - self._last_command > self._timing.watchdog
        if is_late and not self._is_still and not self._sim.episode_over:
            self._sim.stop()
            self._is_still = True
            self._held += 1

    def _move_on(self, present: float) -> None:
        """Simulate the periods that are over, publish the newest state, and fail if asked to."""
        assert self._start is not None
        self._now = max(self._now, present - self._stalled)
        reading = self._sim.read()
        tick = round((reading.capture_time - self._start) / self._dt)
        if tick == self._tick:
            return
        self._tick = tick
        self._publish(reading.fields, reading.capture_time + self._stalled)
        if self._faults.kill_at is not None and tick >= self._faults.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        for due in [due for due in self._stalls if due <= tick]:
            began = time.perf_counter()
            time.sleep(self._stalls.pop(due))
            self._stalled += time.perf_counter() - began

    def _publish(self, fields: Mapping[str, np.ndarray], capture_time: float) -> None:
        record = np.zeros((), state_dtype(self._sim.contract))
        late = self._timing.observation_latency
        late += self._faults.observation_jitter * self._jitter.random()
        values = {
            "epoch": self._epoch,
            "tick": self._tick,
            "missed": self._sim.missed,
            "mode": self._sim.mode,
            "late": self._late,
            "dropped": self._dropped,
            "held": self._held,
            "episode_over": self._sim.episode_over,
            "is_success": self._sim.is_success,
            "capture_time": capture_time,
            "visible_time": capture_time + late,
        }
        for name, value in values.items():
            record[name] = value
        for name, value in fields.items():
            record["fields"][name] = value
        self._states.write(record)

    def release(self) -> None:
        """Let go of the shared memory, and close the env."""
        self._commands.release()
        self._states.release()
        self._sim.close()
