"""A governor from its settings, as a configuration has them."""

from collections.abc import Mapping
from typing import Literal

from data.types import Field
from policy.control.governor import Governor
from policy.control.limits import Limits, PerElement

NAMES = ("low", "high", "velocity", "acceleration", "jerk")


def governor(
    action: Field,
    control_dt: float,
    *,
    limits: Mapping[str, PerElement | None],
    pose_tolerance: PerElement,
    max_action_age: float,
    max_observation_age: float,
    watchdog: float,
    max_clamped_ticks: int | None,
    start: Literal["refuse", "approach"],
) -> Governor:
    """A governor.

    Args:
        action: field of the robot's contract.
        control_dt: time between two commands [s].
        limits: of `Limits.of` by name; those that are missing are as if None.
        pose_tolerance: of `Governor`, as all that follows.
        max_action_age: [s].
        max_observation_age: [s].
        watchdog: [s].
        max_clamped_ticks: [ticks], or None.
        start: "refuse" or "approach".

    Raises:
        ValueError: a limit has an unknown name, or a setting is out of its range.
    """
    unknown = set(limits) - set(NAMES)
    if unknown:
        raise ValueError(f"limits has {sorted(unknown)}: there are {', '.join(NAMES)}")
    return Governor(
        action,
        control_dt,
        Limits.of(action, control_dt, **limits),
        pose_tolerance=pose_tolerance,
        max_action_age=max_action_age,
        max_observation_age=max_observation_age,
        watchdog=watchdog,
        max_clamped_ticks=max_clamped_ticks,
        start=start,
    )
