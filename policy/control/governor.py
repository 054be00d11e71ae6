"""The governor: the last stage before a robot, which decides what may be sent to it.

It is application-level protection, not a certified safety function: it makes no claim under ISO
10218 or ISO 13849. The hardware emergency stop and the robot's own safety system stay mandatory.

    DISARMED --arm--> READY --first action--> ACTIVE
        ^                |                       |
        +----reset---- FAULT <---- a fault, or an emergency stop from any thread

What it does, once a control tick:

| wanted                                         | sent                                    |
| ---------------------------------------------- | --------------------------------------- |
| finite, recent, within the limits              | as it is                                |
| finite, recent, beyond a limit                 | a step towards it within all limits     |
| the same for too many ticks in a row           | fault                                   |
| nothing, or planned from too long ago          | the fastest stop, then a hold           |
| the same for longer than the watchdog          | fault                                   |
| not finite, wrong shape, first not at the pose | fault                                   |
| anything, in a fault                           | the fastest stop, then a hold, to reset |

Absolute actions are positions. Changes ("delta") are summed up from the armed pose; what is sent is
a change again. Actions relative to an observation have no velocity of their own: they are refused
unless no motion is limited. Discrete elements (a gripper) are finite and within their limits, and
keep their last value in a stop.
"""

import enum
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from data.types import Field
from policy.control.limits import Limits, PerElement
from policy.control.motion import Motion
from policy.control.refusals import Event, Reason, Refusals

LOG_PERIOD = 1.0  # Between two lines about the same reason [s].
ROUNDING = 1e-6  # Part of a control period by which sums of times are off.


class State(enum.Enum):
    """Whether anything may be sent."""

    DISARMED = "disarmed"
    READY = "ready"
    ACTIVE = "active"
    FAULT = "fault"


class Governor:
    """Decides once a control tick what may be sent to a robot.

    Called by one thread, once a tick; only `emergency_stop` may be called by others.

    Args:
        action: the contract's field.
        control_dt: time between two commands [s].
        limits: of each element.
        pose_tolerance: how far the first absolute action may be from the armed pose; one number, or
            one per element, in the contract's units.
        max_action_age: longest time from the observation that an action was planned from to its
            use [s].
        max_observation_age: longest time from the newest observation to now [s].
        watchdog: longest time without a usable action before a fault [s].
        max_clamped_ticks: most ticks in a row in which a limit changes the action; None: any.
        start: what happens if the first action is not at the armed pose: "refuse" is a fault;
            "approach" goes there within the limits, however many ticks that takes.

    Attributes:
        action: as given.
        control_dt: as given.
        limits: as given.

    Raises:
        ValueError: a setting is out of its range, or motion is limited for relative actions.
    """

    def __init__(
        self,
        action: Field,
        control_dt: float,
        limits: Limits,
        *,
        pose_tolerance: PerElement = 0.0,
        max_action_age: float = 2.0,
        max_observation_age: float = 0.5,
        watchdog: float = 1.0,
        max_clamped_ticks: int | None = 100,
        start: Literal["refuse", "approach"] = "refuse",
    ):
        self._max_clamped = math.inf if max_clamped_ticks is None else max_clamped_ticks
        _check(
            action,
            limits,
            start,
            control_dt=control_dt,
            max_action_age=max_action_age,
            max_observation_age=max_observation_age,
            watchdog=watchdog,
            max_clamped_ticks=self._max_clamped,
        )
        self.action, self.control_dt, self.limits = action, control_dt, limits
        self._tolerance = np.broadcast_to(np.asarray(pose_tolerance, float), action.size)
        if not (self._tolerance >= 0).all():
            raise ValueError(f"pose_tolerance is {pose_tolerance}, it must be at least 0")
        slack = ROUNDING * control_dt
        self._oldest_observation = max_observation_age + slack
        self._oldest_action = max_action_age + slack
        self._watchdog = watchdog + slack
        self._start = start
        self._motion = Motion(action, control_dt, limits)
        self._refusals = Refusals(log_ticks=max(1, round(LOG_PERIOD / control_dt)))
        self._state, self._fault = State.DISARMED, None
        self._is_emergency = False
        self._tick = 0
        self._rest(None)

    def unchecked(self) -> tuple[str, ...]:
        """The checks that are switched off by an infinite setting, such as "watchdog"."""
        settings = {
            "max_observation_age": self._oldest_observation,
            "max_action_age": self._oldest_action,
            "watchdog": self._watchdog,
            "pose_tolerance": float(self._tolerance.max()),
            "max_clamped_ticks": self._max_clamped,
        }
        return tuple(name for name, value in settings.items() if not math.isfinite(value))

    @property
    def state(self) -> State:
        """The state; a fault as soon as an emergency stop was called for."""
        return State.FAULT if self._is_emergency else self._state

    @property
    def fault(self) -> Reason | None:
        """Why it is in a fault; None where it is not."""
        return Reason.EMERGENCY_STOP if self._is_emergency else self._fault

    @property
    def counts(self) -> Mapping[Reason, int]:
        """How often each reason was met, limits once for each element and tick; never reset."""
        return self._refusals.counts

    @property
    def events(self) -> tuple[Event, ...]:
        """The last refusals, oldest first."""
        return self._refusals.events

    @property
    def is_at_rest(self) -> bool:
        """Whether what is commanded does not move."""
        return self._motion.is_at_rest

    def arm(self, pose: np.ndarray | None) -> None:
        """Be ready to move from a pose, at rest.

        Args:
            pose: [Da] where the robot is, as the absolute action that would keep it there; None:
                unknown (simulators only): the first absolute action is taken for it, and changes
                are not limited in position.

        Raises:
            RuntimeError: it is armed already, or in a fault.
            ValueError: the pose has a wrong shape, is not finite, or lies outside of the limits by
                more than `pose_tolerance`; within that, it is taken for the nearest one inside.
        """
        if self.state is not State.DISARMED:
            raise RuntimeError(
                f"the governor is {self.state.value}, it can only be armed when disarmed: "
                f"call {'reset' if self.state is State.FAULT else 'disarm'} first"
            )
        self._rest(pose)
        self._state = State.READY

    def __call__(
        self, wanted: np.ndarray | None, *, now: float, observed: float, asked: float
    ) -> np.ndarray | None:
        """What may be sent in this tick [Da], float64; None: nothing, the robot rests by itself.

        Args:
            wanted: [Da], the action planned for this tick; None if there is none.
            now: present time, on a monotonic clock [s].
            observed: capture time of the newest observation [s].
            asked: capture time of the observation that `wanted` was planned from [s].
        """
        self._tick += 1
        if self._is_emergency and self._fault is not Reason.EMERGENCY_STOP:
            self._latch(Event(self._tick - 1, Reason.EMERGENCY_STOP))
        if self._state is State.FAULT or self._state is State.DISARMED:
            return self.brake()
        numbers = self._usable(wanted, now=now, observed=observed, asked=asked)
        if isinstance(numbers, Reason):
            self._do_without(numbers, now)
            return self.brake()
        if self._state is State.READY and not self._begin(numbers):
            return self.brake()
        self._n_unfed, self._fed = 0, now
        return self._move(numbers)

    def brake(self) -> np.ndarray | None:
        """The next step of the fastest stop, then a hold; counted as nothing. None as above."""
        return self._motion.brake() if self._can_hold else None

    def emergency_stop(self) -> None:
        """Brake and hold, from the next tick on until `reset`; any thread, any number of times."""
        self._is_emergency = True

    def disarm(self) -> None:
        """Send nothing any more: the driver itself was told to hold still. A fault stays."""
        self._rest(None)
        if self._state is not State.FAULT:
            self._state = State.DISARMED

    def reset(self) -> None:
        """Acknowledge a fault; the robot must be armed again, at the pose where it is.

        Raises:
            RuntimeError: there is no fault, or the robot is still being braked.
        """
        if self.state is not State.FAULT:
            raise RuntimeError(f"the governor is {self.state.value}: there is no fault to reset")
        if not self.is_at_rest:
            raise RuntimeError(
                "the robot is still being braked after a fault: call the governor on until "
                "is_at_rest, or stop the driver and disarm"
            )
        self._is_emergency, self._fault = False, None
        self._rest(None)
        self._state = State.DISARMED

    def _rest(self, pose: np.ndarray | None) -> None:
        """Forget the motion; be at rest at a pose if there is one."""
        numbers = [0.0] * self.action.size if pose is None else self._checked_pose(pose).tolist()
        self._motion.rest_at(numbers, is_known=pose is not None)
        # Without a pose there is nothing to hold until the first action was sent.
        self._has_pose = self._can_hold = pose is not None
        self._is_approaching = self._start == "approach"  # The first action is not reached yet.
        self._n_clamped = 0  # Ticks in a row.
        self._n_unfed, self._fed = 0, -math.inf  # Ticks, and time, since the last usable action.

    def _checked_pose(self, pose: np.ndarray) -> np.ndarray:
        pose = np.asarray(pose, float)
        if pose.shape != (self.action.size,) or not np.isfinite(pose).all():
            raise ValueError(f"the pose is {pose}: give {self.action.size} finite numbers")
        within = np.minimum(np.maximum(pose, self.limits.low), self.limits.high)
        beyond = np.abs(pose - within)
        if (beyond > self._tolerance).any():
            i = int(np.argmax(beyond - self._tolerance))
            raise ValueError(
                f"element {i} of the pose is {pose[i]:g}, its limits are {self.limits.low[i]:g} to "
                f"{self.limits.high[i]:g}: move the robot within them by hand"
            )
        return within

    def _usable(
        self, wanted: np.ndarray | None, *, now: float, observed: float, asked: float
    ) -> list[float] | Reason:
        """The wanted numbers if they may be executed, else why not."""
        if wanted is None:
            return Reason.STARVED
        try:
            array = np.asarray(wanted, float)
        except (TypeError, ValueError):
            return Reason.WRONG_SHAPE
        if array.shape != (self.action.size,):
            return Reason.WRONG_SHAPE
        numbers = array.tolist()
        # All are finite if their sum is; large ones may be even if it is not.
        if not math.isfinite(sum(numbers)) and not all(map(math.isfinite, numbers)):
            return Reason.NOT_FINITE
        # A time that is not a number compares as false. One in the future is of another clock.
        if not -self.control_dt <= now - observed <= self._oldest_observation:
            return Reason.OLD_OBSERVATION
        if not -self.control_dt <= now - asked <= self._oldest_action:
            return Reason.OLD_ACTION
        return numbers

    def _do_without(self, reason: Reason, now: float) -> None:
        """Take down that nothing may be executed in this tick, and why; a fault if it lasts."""
        event = Event(self._tick - 1, reason)
        if reason in (Reason.NOT_FINITE, Reason.WRONG_SHAPE):
            self._latch(event)
        elif self._state is State.ACTIVE:
            self._n_unfed += 1
            # Ticks are counted too, so that a clock that stands or goes back hides nothing.
            if max(self._n_unfed * self.control_dt, now - self._fed) > self._watchdog:
                self._latch(event)
            else:
                self._refusals.add(event)
        # Before the first action nothing moves, and a policy may take its time.

    def _begin(self, numbers: list[float]) -> bool:
        """Whether the first action may be executed; a fault if not."""
        if not self._has_pose:
            if self.action.kind == "absolute":
                self._motion.rest_at(numbers)
        elif self._start == "refuse":
            beyond = self._motion.distance(numbers) - self._tolerance
            if (beyond > 0).any():
                i = int(np.argmax(beyond))
                held = float(self._motion.brake()[i])
                self._latch(Event(self._tick - 1, Reason.START_POSE, i, numbers[i], held))
                return False
        self._state, self._can_hold = State.ACTIVE, True
        return True

    def _move(self, numbers: list[float]) -> np.ndarray:
        """The numbers, or what is nearest to them and within the limits."""
        sent, clamps = self._motion.move(numbers)
        if not clamps:
            self._n_clamped, self._is_approaching = 0, False
            return sent
        for clamp in clamps:
            self._refusals.add(Event(self._tick - 1, *clamp))
        self._n_clamped += not self._is_approaching
        if self._n_clamped > self._max_clamped:
            self._latch(Event(self._tick - 1, Reason.CLAMPED_TOO_LONG))
        return sent

    def _latch(self, event: Event) -> None:
        """Enter a fault, which only `reset` leaves."""
        self._state, self._fault = State.FAULT, event.reason
        self._refusals.add_fault(event)


def _check(action: Field, limits: Limits, start: str, **positive: float) -> None:
    """Raise ValueError where a governor cannot be set up so."""
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}, it must be positive")
    if start not in ("refuse", "approach"):
        raise ValueError(f"start is {start!r}, choose 'refuse' or 'approach'")
    if limits.low.shape != (action.size,):
        raise ValueError(
            f"limits are of {limits.low.size} elements, an action has {action.size}: "
            f"make them from the same contract"
        )
    if action.kind == "relative" and limits.limits_motion:
        raise ValueError(
            "actions relative to an observation cannot be limited in velocity, acceleration "
            "or jerk: convert them to absolute ones, or set all three to inf"
        )
