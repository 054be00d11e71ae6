"""A UR e-Series arm, through the package `ur-rtde` (`pip install 'cadence[ur]'`).

Joint positions are streamed by `servoJ`, which the arm's controller smooths over `lookahead_time`.
If no command comes for a while, whatever the reason, the controller's own watchdog ends the control
program and the arm stops. The speed slider on the pendant stays the operator's and is not touched.

This is no safety function: the arm's own safety system and its emergency stop stay mandatory.

    reset      the control program is started anew, and nobody watches it
    command    the watchdog watches, and the arm follows
    stop       the arm decelerates and stands; some time later the watchdog ends the program
    reset      as before, whether or not the program has ended by then
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

import gymnasium as gym
import numpy as np

from envs.robots.device_clock import DeviceClock
from envs.robots.errors import EmergencyStopError, ProtectiveStopError, RobotError, RobotLostError
from envs.robots.sim import Reading, checked_action, clipped
from envs.robots.ur_contract import (
    N_JOINTS,
    check_contract,
    check_positive,
    check_range,
    position_limits,
)
from envs.robots.ur_rtde import Control, Receive, called, connect

ContractT = TypeVar("ContractT")

JOINTS = ("base", "shoulder", "elbow", "wrist 1", "wrist 2", "wrist 3")
FARTHEST = 2 * math.pi + 0.1  # rad; a joint turns by one turn either way
# Ranges of servoJ, from the package's documentation.
LOOKAHEAD = (0.03, 0.2)  # s
GAIN = (100.0, 2000.0)
# Of the safety status, from the package's documentation of `getSafetyStatusBits`.
PROTECTIVE_STOP = 1 << 2
EMERGENCY_STOPS = {
    4: "a safeguard stop",
    5: "a system emergency stop",
    6: "the robot's emergency stop",
    7: "an emergency stop",
}
OTHER_STOPS = {
    3: "recovery mode",
    8: "a safety violation",
    9: "a safety fault",
    10: "a stop due to safety",
}
# Until the control program has ended or started: looks at it, and the time between two of them [s].
LOOKS, LOOK = 200, 0.01


class UR(Generic[ContractT]):
    """One UR arm.

    One thread reads and commands; `stop` may be called from any. `command` returns once the command
    is on its way, which the package lets wait for the controller's present cycle (2 ms).

    Args:
        make_env: makes the env that the arm stands for, such as that of env=arm: the arm keeps to
            its `metadata["contract"]`.
        clock: the present time [s].
        read_contract: makes `contract` from its JSON form, such as `Contract.from_json`.
        host: address of the arm's controller.
        control_dt: time between two commands [s]; that of the contract.
        constants: observation field -> its value, for what the arm cannot sense; nothing else.
        limits: `low` and `high` [rad] of the joints, within those of the contract; further entries
            are for whoever governs the arm, and kept as they are in `motion_limits`.
        lookahead_time: over which the controller smooths [s].
        gain: of the controller's position control.
        watchdog: time without a command after which the arm's controller stops the arm [s].
        silence: time without a new state after which the arm counts as lost [s].
        deceleration: of a stop, at the tool [m/s^2].
        connect: gives the two interfaces of a host.

    Attributes:
        is_real: True.
        contract: what `read_contract` made.
        limits: lowest and highest action [6]; commands beyond are clipped and counted.
        motion_limits: the setting `limits`.
        clipped: commands that were clipped.
        failed_stops: stops that the arm did not confirm.

    Raises:
        ValueError: the contract means other numbers than the arm, or a setting is out of range.
        ImportError: the package is not installed.
        RobotLostError: the arm does not answer.
    """

    is_real = True
    # Nobody judges a task here: an episode ends when its time is up.
    episode_over = is_success = False
    mode = 0

    def __init__(
        self,
        make_env: Callable[[], gym.Env],
        *,
        clock: Callable[[], float],
        read_contract: Callable[[Mapping], ContractT],
        host: str,
        control_dt: float,
        constants: Mapping[str, Sequence[float]],
        limits: Mapping[str, Sequence[float]],
        lookahead_time: float = 0.1,
        gain: float = 300.0,
        watchdog: float = 0.1,
        silence: float = 0.1,
        deceleration: float = 2.0,
        connect: Callable[[str], tuple[Control, Receive]] = connect,
    ):
        env = make_env()
        entry = env.metadata["contract"]
        env.close()
        self._constants = {k: np.array(v, np.float32) for k, v in constants.items()}
        check_contract(entry, self._constants, control_dt)
        check_range("lookahead_time", lookahead_time, LOOKAHEAD)
        check_range("gain", gain, GAIN)
        check_range("watchdog", watchdog, (2 * control_dt, 1.0))
        check_positive(silence=silence, deceleration=deceleration)
        self.contract = read_contract(entry)
        self.limits = position_limits(entry["action"], limits)
        self.motion_limits = {name: list(values) for name, values in limits.items()}
        self._fields = tuple(entry["observation"])
        self._clock, self._dt, self._host = clock, control_dt, host
        self._servo = (control_dt, lookahead_time, gain)
        self._watchdog, self._silence, self._deceleration = watchdog, silence, deceleration
        self._lock = threading.Lock()  # The package's interfaces are not for several threads.
        self._control, self._receive = connect(host)
        self._device_clock = DeviceClock()
        self._stamp, self._changed = -1.0, clock()  # of the newest state, and when it came [s]
        self._is_watched = False
        self.clipped = self.failed_stops = 0

    def reset(self, seed: int) -> None:
        """Get ready for another episode: reconnect where needed, start the control program anew.

        It may take seconds. Nothing moves; where the arm starts from is up to the operator.
        However the last episode has ended, its program and its watchdog are gone afterwards. One
        that a protective stop has only paused is ended too, so that it does not go on by itself.

        Args:
            seed: not used, a real world has none.

        Raises:
            RobotError: the arm is stopped by its safety system.
            RobotLostError: it does not answer, or the control program does not end or start.
        """
        with self._lock:
            for side in (self._control, self._receive):
                if not called(side.isConnected) and not called(side.reconnect):
                    raise RobotLostError(f"the UR arm at {self._host} does not answer: check it")
            # The controller may have been started anew, and its clock with it.
            self._device_clock, self._stamp, self._changed = DeviceClock(), -1.0, self._clock()
            self._is_watched = False
            self.clipped = self.failed_stops = 0
            called(self._control.stopScript)
            self._check_safe()
            self._await_program(is_running=False)
            if not called(self._control.reuploadScript):
                raise self._no_program("start")
            self._await_program(is_running=True)

    def read(self) -> Reading:
        """Joint positions and velocities as the arm last told them, with the constants.

        Raises:
            ProtectiveStopError: the arm has stopped itself, as after a collision.
            EmergencyStopError: an emergency stop or a safeguard.
            RobotError: another safety stop, or what it tells cannot be.
            RobotLostError: the connection is broken, or no new state comes.
        """
        with self._lock:
            stamp, joints, velocity = self._state()
            now = self._clock()
            if stamp != self._stamp:
                self._stamp, self._changed = stamp, now
            self._check_safe()
        if now - self._changed > self._silence:
            raise RobotLostError(
                f"the UR arm at {self._host} has told nothing new for {now - self._changed:.3f} s, "
                f"silence={self._silence} s: check the cable and the load of this computer"
            )
        capture_time = self._device_clock.capture_time(stamp, arrival=self._changed)
        fields = self._constants | {"joints": joints, "velocity": velocity}
        return Reading({name: fields[name].copy() for name in self._fields}, capture_time)

    def pose(self) -> np.ndarray:
        """Joint positions [6, rad]; raises what `read` does."""
        return self.read().fields["joints"].astype(np.float64)

    def command(self, action: np.ndarray, tick: int) -> None:
        """Move towards joint positions [6, rad] from now on.

        Raises:
            ValueError: the action has another shape or is not finite; nothing was sent.
            RobotError: as of `read`, or the control program has ended; nothing was sent, or the
                arm did not take it.
        """
        action = checked_action(action, tick, shape=(N_JOINTS,))
        within, is_clipped = clipped(action, self.limits)
        self.clipped += is_clipped
        with self._lock:
            self._check_safe()
            self._check_running()
            if not self._is_watched:
                self._check_taken(called(self._control.setWatchdog, 1 / self._watchdog), tick)
                self._is_watched = True
            # Speed and acceleration are not used by servoJ; the governor limits both.
            taken = called(self._control.servoJ, within.tolist(), 0.0, 0.0, *self._servo)
            self._check_taken(taken and called(self._control.kickWatchdog), tick)

    def stop(self) -> None:
        """Decelerate and stand still. May be called at any time, any number of times.

        It raises nothing: an arm that cannot be told to stop is stopped by its own watchdog. Such
        stops are counted in `failed_stops`. So is one that comes while another thread's call of
        the package hangs: it gives up after two control periods, and as nothing more is sent
        meanwhile, the watchdog trips.
        """
        if not self._lock.acquire(timeout=2 * self._dt):
            self.failed_stops += 1
            return
        try:
            self.failed_stops += not called(self._control.servoStop, self._deceleration)
        except RobotLostError:
            self.failed_stops += 1
        finally:
            self._lock.release()

    def close(self) -> None:
        """Stop the arm, end the control program and disconnect; each of it even if another fails.

        Like `stop`, it raises nothing: a program that cannot be ended is ended by its watchdog.
        """
        self.stop()
        with self._lock:
            for end in (
                self._control.stopScript,
                self._control.disconnect,
                self._receive.disconnect,
            ):
                with contextlib.suppress(RobotLostError):
                    called(end)

    def _state(self) -> tuple[float, np.ndarray, np.ndarray]:
        """Stamp, positions and velocities of one and the same moment."""
        for _ in range(3):  # A new state may come between two calls; not thrice in 2 ms.
            stamp = called(self._receive.getTimestamp)
            joints = called(self._receive.getActualQ)
            velocity = called(self._receive.getActualQd)
            if stamp == called(self._receive.getTimestamp):
                break
        if not len(joints) == len(velocity) == N_JOINTS:
            raise RobotLostError(
                f"the UR arm at {self._host} told {len(joints)} joint positions and "
                f"{len(velocity)} velocities, it has {N_JOINTS}: reset the robot"
            )
        self._check_state(joints, velocity)
        return stamp, np.array(joints, np.float32), np.array(velocity, np.float32)

    def _check_state(self, joints: Sequence[float], velocity: Sequence[float]) -> None:
        """Raise where the arm tells what cannot be."""
        for name, position, speed in zip(JOINTS, joints, velocity, strict=True):
            if not (abs(position) <= FARTHEST and math.isfinite(speed)):
                raise RobotError(
                    f"the UR arm at {self._host} tells that its joint {name!r} is at {position:g} "
                    f"rad and moves at {speed:g} rad/s; it must be within {FARTHEST:.2f} rad of 0, "
                    f"both finite: check the arm's firmware and ur-rtde, then reset the robot"
                )

    def _check_safe(self) -> None:
        """Raise where the arm is lost or has been stopped."""
        if not (called(self._control.isConnected) and called(self._receive.isConnected)):
            raise RobotLostError(
                f"the connection to the UR arm at {self._host} broke, and its watchdog stops it: "
                f"check the cable, then reset the robot"
            )
        status = called(self._receive.getSafetyStatusBits)
        mend = f"the UR arm at {self._host} is stopped by"
        for bit, name in EMERGENCY_STOPS.items():
            if status & 1 << bit:
                raise EmergencyStopError(f"{mend} {name}: release it at the arm, then reset")
        if status & PROTECTIVE_STOP:
            raise ProtectiveStopError(
                f"{mend} a protective stop: find the cause, unlock it on the pendant, then reset"
            )
        for bit, name in OTHER_STOPS.items():
            if status & 1 << bit:
                raise RobotError(f"{mend} {name}: see the pendant, then reset the robot")

    def _check_running(self) -> None:
        if not called(self._control.isProgramRunning):
            raise RobotLostError(
                f"the control program on the UR arm at {self._host} has ended, as it does without "
                f"a command for watchdog={self._watchdog} s: reset the robot"
            )

    def _await_program(self, *, is_running: bool) -> None:
        """Wait until the control program has ended, or until it runs."""
        for _ in range(LOOKS):
            if called(self._control.isProgramRunning) == is_running:
                return
            time.sleep(LOOK)
        raise self._no_program("start" if is_running else "end")

    def _no_program(self, what: str) -> RobotLostError:
        return RobotLostError(
            f"the control program does not {what} on the UR arm at {self._host}: the pendant must "
            f"say Remote Control and show no message"
        )

    def _check_taken(self, is_taken: bool, tick: int) -> None:
        if not is_taken:
            self._check_safe()  # Which may say more.
            raise RobotLostError(
                f"the UR arm at {self._host} did not take the command for tick {tick}: see the "
                f"pendant, then reset the robot"
            )
