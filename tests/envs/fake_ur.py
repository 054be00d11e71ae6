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
    """

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.joints = np.array([0.0, -1.9, 2.0, -1.67, -1.57, 0.0])
        self.velocity = np.zeros(6)
        self.target: np.ndarray | None = None
        self.safety = {NORMAL}
        self.is_connected = self.is_running = self.is_reachable = True
        self.is_frozen = False  # tells nothing new any more
        self.min_frequency = 0.0  # Hz; 0: nobody watches
        self.last_kick = self.time = clock()
        self.calls: list[tuple[str, tuple]] = []

    def advance(self) -> None:
        """Move on to the present."""
        now = self.clock()
        passed, self.time = now - self.time, now
        if self.min_frequency and now - self.last_kick > 1 / self.min_frequency:
            self.end_program()
        goal = self.joints if self.target is None else self.target
        step = np.clip(goal - self.joints, -SPEED * passed, SPEED * passed)
        self.joints = self.joints + step
        self.velocity = step / passed if passed > 0 else self.velocity

    def end_program(self) -> None:
        """The control program ends, and the arm stands still."""
        self.is_running, self.target, self.min_frequency = False, None, 0.0

    def trip(self, bit: int) -> None:
        """The safety system stops the arm."""
        self.advance()
        self.safety = {bit}
        self.end_program()


class FakeControl:
    """`rtde_control.RTDEControlInterface`, as far as the driver uses it."""

    def __init__(self, controller: FakeController):
        self._arm = controller

    def _ask(self, name: str, *arguments: object) -> bool:
        self._arm.advance()
        self._arm.calls.append((name, arguments))
        return self._arm.is_connected and self._arm.is_running

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
        return self._arm.is_running

    def reuploadScript(self) -> bool:
        self._arm.calls.append(("reuploadScript", ()))
        self._arm.is_running = self._arm.is_connected and self._arm.safety == {NORMAL}
        return self._arm.is_running

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
        return arm.time + BEFORE_START, arm.joints.tolist(), arm.velocity.tolist()

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
