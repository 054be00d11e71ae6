"""A robot behind a governor: the only object that holds the driver's `command`."""

import math
from collections.abc import Callable

import numpy as np

from data.types import Contract, Observation
from policy.control.governor import Governor, State
from policy.control.refusals import Reason
from policy.types import Robot


class Governed:
    """A robot to which nothing is sent but what its governor lets through.

    Args:
        robot: driver.
        governor: made for the robot's contract; not to be used by anybody else.
        watch: told what was observed last, what was sent [Da], and for which tick, after each
            command; None: nobody is.

    Attributes:
        contract: the robot's.
        governor: to be read: counts, events.

    Raises:
        ValueError: the governor is for another contract, or a real robot lacks limits.
    """

    def __init__(
        self,
        robot: Robot,
        governor: Governor,
        *,
        watch: Callable[[Observation, np.ndarray, int], None] | None = None,
    ):
        self.contract: Contract = robot.contract
        self.governor = governor
        self._robot = robot
        self._observed: Observation | None = None  # The newest one.
        self._watch = watch
        if governor.action != robot.contract.action:
            raise ValueError(
                f"the governor is for actions {governor.action}, the robot takes "
                f"{robot.contract.action}: make both from the same contract"
            )
        if governor.control_dt != robot.contract.control_dt:
            raise ValueError(
                f"the governor is for a control_dt of {governor.control_dt} s, the robot has "
                f"{robot.contract.control_dt} s: make both from the same contract"
            )
        missing = [*governor.limits.missing(), *governor.unchecked()]
        if robot.is_real and missing:
            raise ValueError(
                f"a real robot is moved within known limits and by fresh plans only, there is no "
                f"limit of {', '.join(missing)}: give finite ones (governor=limited)"
            )

    @property
    def state(self) -> State:
        """Of the governor."""
        return self.governor.state

    @property
    def fault(self) -> Reason | None:
        """Of the governor."""
        return self.governor.fault

    def arm(self) -> None:
        """Be ready to move the robot from where it is.

        Raises:
            ValueError: a real robot does not tell its pose, or the pose is refused.
            RuntimeError: it is armed already, or in a fault.
        """
        pose = self._robot.pose()
        if pose is None and self._robot.is_real:
            raise ValueError(
                "the robot does not tell its pose, a real one is only moved from where it is "
                "known to be: return it from Robot.pose"
            )
        self.governor.arm(pose)

    def read(self) -> Observation:
        """The robot's newest observation."""
        self._observed = self._robot.read()
        return self._observed

    def send(
        self, wanted: np.ndarray | None, *, tick: int, now: float, asked: float
    ) -> np.ndarray | None:
        """Send what may be sent; called once a control tick, even if nothing is wanted.

        Args:
            wanted: [Da], planned for this tick; None if there is nothing.
            tick: control tick.
            now: present time on the control clock [s].
            asked: capture time of the observation that `wanted` was planned from [s].

        Returns:
            What was sent [Da]; None if nothing was.
        """
        seen = -math.inf if self._observed is None else self._observed.capture_time
        return self._command(self.governor(wanted, now=now, observed=seen, asked=asked), tick)

    def brake(self, *, tick: int) -> np.ndarray | None:
        """Send the next step of the fastest stop, then a hold; as `send`, but nothing is refused.

        Called once a control tick until `governor.is_at_rest`, it ends a motion that may end.
        """
        return self._command(self.governor.brake(), tick)

    def _command(self, allowed: np.ndarray | None, tick: int) -> np.ndarray | None:
        if allowed is not None:
            self._robot.command(allowed, tick)
            if self._watch is not None and self._observed is not None:
                self._watch(self._observed, allowed, tick)
        return allowed

    def stop(self) -> None:
        """Let the driver hold still, and send nothing more until `arm`; a fault stays."""
        self.governor.disarm()
        self._robot.stop()

    def reset(self) -> None:
        """Acknowledge a fault; then `arm` again.

        Raises:
            RuntimeError: there is no fault, or the robot is still being braked.
        """
        self.governor.reset()

    def emergency_stop(self) -> None:
        """Brake and hold from the next tick on, until `reset`; any thread, any number of times."""
        self.governor.emergency_stop()
