"""A UR arm's controller that never was: what `ur-rtde` would show of it, method by method.

Joints follow the servo target at 1 rad/s at most. It lives in the time of a clock.
"""

from collections.abc import Callable

import numpy as np

SPEED = 1.0  # rad/s
NORMAL, PROTECTIVE, SAFEGUARD, FAULT = 0, 2, 4, 9  # bits of the safety status
BEFORE_START = 1000.0  # s that the controller had run when the test began


class FakeController:
    """The state that both interfaces look at.

    Args:
        clock: the present time [s].
        pauses: whether a safety stop only pauses the control program, so that it can go on.
        looks: how many looks at the control program miss that it has just ended or started.
    """

    def __init__(self, clock: Callable[[], float], *, pauses: bool = False, looks: int = 0):
        self.clock, self._pauses, self._looks = clock, pauses, looks
        self.joints = np.array([0.0, -1.9, 2.0, -1.67, -1.57, 0.0])
        self.velocity = np.zeros(6)
        self.target: np.ndarray | None = None
        self.safety = {NORMAL}
        self.is_connected = self.is_running = self.is_reachable = True
        self.is_frozen = False  # tells nothing new any more
        self.is_paused = False
        self.before_start = BEFORE_START
        self._misses = 0  # looks to come that miss the last change of the program
        self.min_frequency = 0.0  # Hz; 0: nobody watches
        self.last_kick = self.time = clock()
        self.calls: list[tuple[str, tuple]] = []

    def advance(self) -> None:
        """Move on to the present."""
        now = self.clock()
        passed, self.time = now - self.time, now
        if self.is_paused:
            self.last_kick = now
        if self.min_frequency and now - self.last_kick > 1 / self.min_frequency:
            self.end_program()
        goal = self.joints if self.target is None or self.is_paused else self.target
        step = np.clip(goal - self.joints, -SPEED * passed, SPEED * passed)
        self.joints = self.joints + step
        self.velocity = step / passed if passed > 0 else self.velocity

    def end_program(self) -> None:
        """The control program ends, and the arm stands still."""
        self._misses = self._looks if self.is_running else 0
        self.is_running, self.target, self.min_frequency = False, None, 0.0
        self.is_paused = False

    def start_program(self) -> bool:
        """The control program starts, unless one runs; whether it does."""
        if self.is_running or not self.is_connected or self.safety != {NORMAL}:
            return False
        self.is_running, self._misses = True, self._looks
        return True

    def looks_running(self) -> bool:
        """Whether the control program seems to run."""
        if self._misses:
            self._misses -= 1
            return not self.is_running
        return self.is_running

    def trip(self, bit: int) -> None:
        """The safety system stops the arm."""
        self.advance()
        self.safety = {bit}
        if self._pauses:
            self.is_paused = True
        else:
            self.end_program()

    def resume(self) -> None:
        """Somebody unlocks the arm and lets a paused program go on."""
        self.advance()
        self.safety, self.is_paused = {NORMAL}, False

    def reboot(self) -> None:
        """The controller starts anew, and its clock with it; connections break."""
        self.advance()
        self.end_program()
        self.before_start, self.is_connected = -self.clock(), False


class FakeControl:
    """`rtde_control.RTDEControlInterface`, as far as the driver uses it."""

    def __init__(self, controller: FakeController):
        self._arm = controller

    def _ask(self, name: str, *arguments: object) -> bool:
        self._arm.advance()
        self._arm.calls.append((name, arguments))
        return self._arm.is_connected and self._arm.is_running and not self._arm.is_paused

    def servoJ(
        self,
        q: list[float],
        speed: float,
        acceleration: float,
        time: float,
        lookahead_time: float,
        gain: float,
        /,
    ) -> bool:
        is_taken = self._ask("servoJ", q, speed, acceleration, time, lookahead_time, gain)
        if is_taken:
            self._arm.target = np.array(q)
        return is_taken

    def servoStop(self, a: float = 10.0) -> bool:
        is_taken = self._ask("servoStop", a)
        if is_taken:
            self._arm.target = None
        return is_taken

    def setWatchdog(self, min_frequency: float = 10.0) -> bool:
        is_taken = self._ask("setWatchdog", min_frequency)
        if is_taken:
            self._arm.min_frequency, self._arm.last_kick = min_frequency, self._arm.clock()
        return is_taken

    def kickWatchdog(self) -> bool:
        is_taken = self._ask("kickWatchdog")
        if is_taken:
            self._arm.last_kick = self._arm.clock()
        return is_taken

    def isProgramRunning(self) -> bool:
        self._arm.advance()
        return self._arm.looks_running()

    def reuploadScript(self) -> bool:
        self._arm.calls.append(("reuploadScript", ()))
        return self._arm.start_program()

    def stopScript(self) -> None:
        self._arm.calls.append(("stopScript", ()))
        self._arm.end_program()

    def isConnected(self) -> bool:
        return self._arm.is_connected

    def reconnect(self) -> bool:
        self._arm.is_connected = self._arm.is_reachable
        return self._arm.is_connected

    def disconnect(self) -> None:
        self._arm.is_connected = False


class FakeReceive:
    """`rtde_receive.RTDEReceiveInterface`, as far as the driver uses it."""

    def __init__(self, controller: FakeController):
        self._arm = controller
        self._told = self._now()

    def _now(self) -> tuple[float, list[float], list[float]]:
        arm = self._arm
        return arm.time + arm.before_start, arm.joints.tolist(), arm.velocity.tolist()

    def _state(self) -> tuple[float, list[float], list[float]]:
        """What was told last; as with the package, a broken connection leaves it as it is."""
        if self._arm.is_connected and not self._arm.is_frozen:
            self._arm.advance()
            self._told = self._now()
        return self._told

    def getTimestamp(self) -> float:
        return self._state()[0]

    def getActualQ(self) -> list[float]:
        return self._state()[1]

    def getActualQd(self) -> list[float]:
        return self._state()[2]

    def getSafetyStatusBits(self) -> int:
        return sum(1 << bit for bit in self._arm.safety)

    def isConnected(self) -> bool:
        return self._arm.is_connected

    def reconnect(self) -> bool:
        self._arm.is_connected = self._arm.is_reachable
        return self._arm.is_connected

    def disconnect(self) -> None:
        self._arm.is_connected = False
