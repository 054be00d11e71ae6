"""How long the governor takes for a tick.

python -m policy.control.governor_bench
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.types import Field
from policy.control.governor import Governor
from policy.control.limits import Limits

CONTROL_DT = 0.02


@dataclass(frozen=True)
class GovernorTimes:
    """Median time of a tick [s], all limits being finite.

    Args:
        n_joints: elements of an action.
        n_ticks: measured for each of the medians.
        passing: actions are within the limits and are sent as they are.
        clamped: actions jump about, so that every element is limited in every tick.
        holding: there is no action.
    """

    n_joints: int
    n_ticks: int
    passing: float
    clamped: float
    holding: float


def measure(*, n_joints: int = 7, n_ticks: int = 5000) -> GovernorTimes:
    """Time ticks of the governor on this computer.

    Args:
        n_joints: elements of an action.
        n_ticks: for each kind of stream.
    """
    phases = np.arange(n_joints)

    def smooth(tick: int) -> np.ndarray:
        return 0.5 * np.sin(0.02 * tick + phases)

    def jumping(tick: int) -> np.ndarray:
        return np.where((tick // 50 + phases) % 2, 1.5, -1.5)

    def nothing(tick: int) -> None:
        return None

    log = logging.getLogger("policy.control.refusals")
    was_disabled, log.disabled = log.disabled, True  # Refusals are meant here.
    try:
        passing, clamped, holding = (
            _median(stream, smooth(0), n_ticks) for stream in (smooth, jumping, nothing)
        )
    finally:
        log.disabled = was_disabled
    return GovernorTimes(n_joints, n_ticks, passing=passing, clamped=clamped, holding=holding)


def _median(wanted: Callable[[int], np.ndarray | None], pose: np.ndarray, n_ticks: int) -> float:
    """Median time of a call [s], once the stream is under way."""
    size = len(pose)
    field = Field(shape=(size,), unit="rad", low=(-2.9,) * size, high=(2.9,) * size)
    limits = Limits.of(field, CONTROL_DT, velocity=2.0, acceleration=10.0, jerk=500.0)
    governor = Governor(
        field, CONTROL_DT, limits, watchdog=np.inf, max_clamped_ticks=None, start="approach"
    )
    governor.arm(pose)
    times = []
    for tick in range(n_ticks + 100):
        action = pose if tick == 0 else wanted(tick)
        start = time.perf_counter()
        governor(action, now=0.0, observed=0.0, asked=0.0)
        times.append(time.perf_counter() - start)
    return float(np.median(times[100:]))


def main() -> None:
    """Print the times."""
    times = measure()
    print(f"{times.n_joints} joints, median of {times.n_ticks} ticks, all limits finite")
    for name in ("passing", "clamped", "holding"):
        print(f"{name:<8} {1e6 * getattr(times, name):7.1f} us")


if __name__ == "__main__":
    main()
