"""How old what a robot shows is, and how long it takes to do what it is told: measured.

A small step is commanded, and the readings around it are kept. Their age is told by their stamps.
The robot began to move between the last reading at rest (captured at a) and the first that moved
(at b), so the latency of the command sent at s lies in a - s to b - s: readings are as far apart as
the robot takes them. Steps at different phases between two readings narrow that down.

    command               s
    readings    x     x   |  x     x     o     o        x at rest, o moved
                                   a     b
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Step:
    """What was seen of one step.

    Args:
        sent: when it was commanded [s].
        read: [n] when the readings were taken [s], in order.
        captured: [n] when they were captured, as the robot says [s].
        position: [n] of the element that was moved.
    """

    sent: float
    read: np.ndarray
    captured: np.ndarray
    position: np.ndarray


@dataclass(frozen=True)
class Latency:
    """A latency that lies between two bounds [s]."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """The best guess [s]."""
        return (self.low + self.high) / 2


def command_latency(steps: Sequence[Step], *, threshold: float) -> Latency:
    """How long a command takes until the robot moves.

    Args:
        steps: at least one.
        threshold: change of position that counts as motion, in the position's unit; more than the
            noise of the sensor.

    Returns:
        The bounds that all steps agree on; where none are, since the latency varies, the range of
        all of them.

    Raises:
        ValueError: in a step nothing moved, or something moved before it was told to.
    """
    low, high = np.array([_bounds(step, threshold) for step in steps]).T
    if low.max() < high.min():
        return Latency(float(low.max()), float(high.min()))
    return Latency(float(low.min()), float(high.max()))


def observation_latency(steps: Sequence[Step]) -> Latency:
    """How old a reading is when it is taken: 5th and 95th percentile of all."""
    ages = np.concatenate([step.read - step.captured for step in steps])
    low, high = np.percentile(ages, (5, 95))
    return Latency(float(low), float(high))


def _bounds(step: Step, threshold: float) -> tuple[float, float]:
    before = step.position[step.captured <= step.sent]
    start = before[-1] if len(before) else step.position[0]
    has_moved = np.abs(step.position - start) > threshold
    if not has_moved.any():
        raise ValueError(
            f"nothing moved by more than {threshold:g} within "
            f"{step.read[-1] - step.sent:.3g} s of a command: give a larger amplitude, a smaller "
            f"threshold or more seconds"
        )
    first = int(np.argmax(has_moved))
    if step.captured[first] < step.sent or first == 0:
        raise ValueError(
            f"something moved by more than {threshold:g} before it was commanded: give a larger "
            f"threshold, or let the robot come to rest for longer"
        )
    return step.captured[first - 1] - step.sent, step.captured[first] - step.sent
