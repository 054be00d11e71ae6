"""All elements of the command together: moved towards what is wanted, or brought to rest."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.types import Field
from policy.control.axis import FLOAT32, Axis
from policy.control.limits import Limits
from policy.control.refusals import Reason


class Clamp(NamedTuple):
    """An element that was not sent as it was wanted."""

    reason: Reason
    element: int
    wanted: float
    sent: float


class Motion:
    """What is commanded, element by element.

    Absolute actions are positions. Changes ("delta") are summed up to positions. Discrete elements,
    and all elements of actions relative to an observation, have no motion of their own: they are
    only kept within `low` and `high`.

    Args:
        action: the contract's field.
        control_dt: time between two commands [s].
        limits: of each element.
    """

    def __init__(self, action: Field, control_dt: float, limits: Limits):
        self._action = action
        plain = set(range(action.size) if action.kind == "relative" else action.discrete)
        self._plain = [(i, float(limits.low[i]), float(limits.high[i])) for i in sorted(plain)]
        self._axes = [
            (
                i,
                Axis(
                    control_dt,
                    low=float(limits.low[i]),
                    high=float(limits.high[i]),
                    velocity=float(limits.velocity[i]),
                    acceleration=float(limits.acceleration[i]),
                    jerk=float(limits.jerk[i]),
                ),
            )
            for i in range(action.size)
            if i not in plain
        ]
        self._is_delta = action.kind == "delta"
        self._sent = [0.0] * action.size  # The last command.

    @property
    def is_at_rest(self) -> bool:
        """Whether what is commanded does not move."""
        return all(axis.is_at_rest for _, axis in self._axes)

    def rest_at(self, pose: Sequence[float], *, is_known: bool = True) -> None:
        """Be at rest at a pose.

        Args:
            pose: [Da], finite.
            is_known: whether it is where the robot is; if not, changes are not limited in position.
        """
        self._sent = list(pose)
        for i, axis in self._axes:
            axis.rest_at(pose[i], is_bounded=is_known or not self._is_delta)

    def distance(self, wanted: Sequence[float]) -> np.ndarray:
        """[Da] from where it is to a wanted absolute action; 0 where there is no such thing."""
        apart = np.zeros(self._action.size)
        if self._action.kind == "absolute":
            for i, axis in self._axes:
                apart[i] = abs(wanted[i] - axis.q)
        return apart

    def move(self, wanted: Sequence[float]) -> tuple[np.ndarray, list[Clamp]]:
        """The command [Da] nearest to a wanted finite action, and what it lacks of that."""
        clamps, sent = [], self._sent
        is_delta = self._is_delta
        for i, axis in self._axes:
            number = wanted[i]
            if is_delta:
                reason = axis.shift(number)
                sent[i] = axis.v
            else:
                reason = axis.move(number)
                sent[i] = axis.q
            if reason is not None:
                clamps.append(Clamp(reason, i, number, sent[i]))
        for i, low, high in self._plain:
            number = wanted[i]
            sent[i] = min(max(number, low), high)
            if abs(sent[i] - number) > FLOAT32 * abs(sent[i]):
                clamps.append(Clamp(Reason.POSITION, i, number, sent[i]))
        return np.array(sent), clamps

    def brake(self) -> np.ndarray:
        """The command [Da] of the fastest stop; at rest, the one that keeps the robot there."""
        sent = self._sent
        for i, axis in self._axes:
            axis.brake()
            sent[i] = axis.v if self._is_delta else axis.q
        return (
            hold(np.array(sent), self._action)
            if self._action.kind == "relative"
            else np.array(sent)
        )


def hold(last: np.ndarray, action: Field) -> np.ndarray:
    """Action [Da] that keeps a robot where the action `last` [Da] has brought it.

    An absolute action is repeated. One that says how far to move becomes zero, except for its
    discrete elements (an open gripper stays open).
    """
    if action.kind == "absolute":
        return last.copy()
    still = np.zeros_like(last)
    discrete = list(action.discrete)
    still[discrete] = last[discrete]
    return still
