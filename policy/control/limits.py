"""How far and how fast a robot may be moved: limits of each element of an action."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from data.types import Field

# One number for all elements, or one for each.
PerElement = float | Sequence[float] | np.ndarray


@dataclass(frozen=True, eq=False)
class Limits:
    """Limits of each element of an action [Da], in the contract's units and seconds.

    `inf` is an explicit "none". Made by `of`, which checks them.

    Args:
        low: [Da] lowest position, or lowest value of a discrete element.
        high: [Da] highest position, or highest value of a discrete element.
        velocity: [Da] unit/s.
        acceleration: [Da] unit/s^2.
        jerk: [Da] unit/s^3.
        discrete: elements that are kept within `low` and `high`, but not limited in rate.
    """

    low: np.ndarray
    high: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray
    discrete: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        action: Field,
        control_dt: float,
        *,
        low: PerElement | None = None,
        high: PerElement | None = None,
        velocity: PerElement | None = None,
        acceleration: PerElement | None = None,
        jerk: PerElement | None = None,
    ) -> Self:
        """Limits of an action; what is not given is taken from its contract, or is none.

        The contract limits the numbers of an action. Where these are positions ("absolute"), its
        limits are those of position. Where they are changes ("delta"), its limits are those of
        velocity, the narrower side for both directions, and none of position. Where they are
        relative to the observation, they bound the numbers as they are.

        Args:
            action: field of the contract.
            control_dt: time between two actions [s].
            low: lowest position; one number, or one per element.
            high: highest position.
            velocity: unit/s, > 0.
            acceleration: unit/s^2, > 0.
            jerk: unit/s^3, > 0.

        Raises:
            ValueError: a limit has a wrong number of elements, is NaN or not positive, low is not
                below high, or a change of 0 would not be within the contract's limits.
        """
        if not 0 < control_dt < math.inf:
            raise ValueError(f"control_dt is {control_dt} s, it must be positive and finite")
        discrete = np.zeros(action.size, bool)
        discrete[list(action.discrete)] = True
        bounds = (
            _elements("low", action.low, action.size, -math.inf),
            _elements("high", action.high, action.size, math.inf),
        )
        slowest = np.full(action.size, math.inf)
        if action.kind == "delta":
            slowest = _speed_of_changes(*bounds, discrete) / control_dt
            bounds = (
                np.where(discrete, bounds[0], -math.inf),
                np.where(discrete, bounds[1], math.inf),
            )
        lowest = bounds[0] if low is None else _elements("low", low, action.size, -math.inf)
        highest = bounds[1] if high is None else _elements("high", high, action.size, math.inf)
        _check_order(lowest, highest, discrete)
        rates = [
            np.where(discrete, math.inf, _rate(name, value, action.size))
            for name, value in (
                ("velocity", velocity),
                ("acceleration", acceleration),
                ("jerk", jerk),
            )
        ]
        rates[0] = np.minimum(rates[0], slowest)
        return cls(lowest, highest, *rates, discrete=action.discrete)

    @property
    def is_complete(self) -> bool:
        """Whether every continuous element has finite limits of every kind, as a robot needs."""
        return not self.missing()

    @property
    def limits_motion(self) -> bool:
        """Whether any element is limited in velocity, acceleration or jerk."""
        return any(
            bool(np.isfinite(rate).any()) for rate in (self.velocity, self.acceleration, self.jerk)
        )

    def missing(self) -> tuple[str, ...]:
        """The limits that continuous elements lack, such as "jerk of element 3"."""
        return tuple(
            f"{name} of element {element}"
            for name in ("low", "high", "velocity", "acceleration", "jerk")
            for element, limit in enumerate(getattr(self, name))
            if element not in self.discrete and not math.isfinite(limit)
        )


def _elements(name: str, value: PerElement | None, size: int, default: float) -> np.ndarray:
    """`value` as one number per element."""
    numbers = np.array(default if value is None else value, float)
    if numbers.shape not in ((), (1,), (size,)):
        raise ValueError(
            f"{name} has shape {numbers.shape}, an action has {size} elements: give one number or "
            f"{size}"
        )
    if np.isnan(numbers).any():
        raise ValueError(f"{name} is {numbers}: NaN limits nothing, write inf for no limit")
    return np.broadcast_to(numbers, size).copy()


def _rate(name: str, value: PerElement | None, size: int) -> np.ndarray:
    numbers = _elements(name, value, size, math.inf)
    if not (numbers > 0).all():
        raise ValueError(f"{name} is {numbers}, it must be positive: write inf for no limit")
    return numbers


def _speed_of_changes(low: np.ndarray, high: np.ndarray, discrete: np.ndarray) -> np.ndarray:
    """Size of the change that is allowed in both directions."""
    slowest = np.where(discrete, math.inf, np.minimum(-low, high))
    if not (slowest > 0).all():
        element = int(np.argmin(slowest))
        raise ValueError(
            f"changes of element {element} must lie in {low[element]:g} to {high[element]:g}, so "
            f"it could not hold still: the limits of a change must lie on both sides of 0"
        )
    return slowest


def _check_order(low: np.ndarray, high: np.ndarray, discrete: np.ndarray) -> None:
    is_wrong = np.where(discrete, low > high, low >= high)
    if is_wrong.any():
        element = int(np.argmax(is_wrong))
        raise ValueError(
            f"element {element} is limited to {low[element]:g} to {high[element]:g}: "
            f"low must be below high"
        )
