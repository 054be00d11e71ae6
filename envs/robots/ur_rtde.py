"""What the UR driver uses of the package `ur-rtde`, and how it is reached.

The package is compiled and has no type stubs; its names are kept, so that a test can compare.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from envs.robots.errors import RobotLostError

ReturnT = TypeVar("ReturnT")


class Control(Protocol):
    """What is used of `rtde_control.RTDEControlInterface`, by its own names."""

    def servoJ(  # noqa: D102
        self,
        q: list[float],
        speed: float,
        acceleration: float,
        time: float,
        lookahead_time: float,
        gain: float,
        /,
    ) -> bool: ...
    def servoStop(self, a: float = ...) -> bool: ...  # noqa: D102
    def setWatchdog(self, min_frequency: float = ...) -> bool: ...  # noqa: D102
    def kickWatchdog(self) -> bool: ...  # noqa: D102
    def isProgramRunning(self) -> bool: ...  # noqa: D102
    def reuploadScript(self) -> bool: ...  # noqa: D102
    def stopScript(self) -> None: ...  # noqa: D102
    def isConnected(self) -> bool: ...  # noqa: D102
    def reconnect(self) -> bool: ...  # noqa: D102
    def disconnect(self) -> None: ...  # noqa: D102


class Receive(Protocol):
    """What is used of `rtde_receive.RTDEReceiveInterface`, by its own names."""

    def getActualQ(self) -> list[float]: ...  # noqa: D102
    def getActualQd(self) -> list[float]: ...  # noqa: D102
    def getTimestamp(self) -> float: ...  # noqa: D102
    def getSafetyStatusBits(self) -> int: ...  # noqa: D102
    def isConnected(self) -> bool: ...  # noqa: D102
    def reconnect(self) -> bool: ...  # noqa: D102
    def disconnect(self) -> None: ...  # noqa: D102


def connect(host: str) -> tuple[Control, Receive]:
    """The package's two interfaces to the arm at `host`.

    Raises:
        ImportError: the package is not installed.
        RobotLostError: nothing answers there, or the arm is not in remote control.
    """
    try:
        from rtde_control import RTDEControlInterface  # pyright: ignore[reportMissingImports]
        from rtde_receive import RTDEReceiveInterface  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "a UR arm needs the package ur-rtde: pip install 'cadence[ur]'"
        ) from error
    try:
        return RTDEControlInterface(host), RTDEReceiveInterface(host)
    except RuntimeError as error:
        raise RobotLostError(
            f"no UR arm could be controlled at host={host} ({error}): check the address, that it "
            f"is powered on, and that the pendant says Remote Control"
        ) from error


def called(function: Callable[..., ReturnT], *arguments: object) -> ReturnT:
    """What a function of the package returns; its errors as ours.

    Raises:
        RobotLostError: the package raised something, most often as the connection broke.
    """
    try:
        return function(*arguments)
    except Exception as error:  # A RuntimeError or what its language bindings make of others.
        raise RobotLostError(
            f"ur-rtde lost the UR arm ({type(error).__name__}: {error}): check the cable, then "
            f"reset the robot"
        ) from error
