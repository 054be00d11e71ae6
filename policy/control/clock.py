"""Time as the control loop sees it: real for robots, virtual for tests.

Deadlines are absolute (`start + tick * control_dt`), so that a late tick never delays the next one.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds from an arbitrary origin."""

    def now(self) -> float:
        """Present time [s]."""
        ...

    def sleep_until(self, deadline: float) -> None:
        """Return at `deadline` [s], or at once if it has passed."""
        ...


class WallClock:
    """The computer's monotonic clock.

    Args:
        spin: how long before a deadline sleeping stops and busy waiting begins [s]; the scheduler
            of an ordinary operating system wakes a sleeper some tenths of a millisecond late.
    """

    def __init__(self, *, spin: float = 0.001):
        self.spin = spin

    def now(self) -> float:
        """Present time [s]."""
        return time.perf_counter()

    def sleep_until(self, deadline: float) -> None:
        """Return at `deadline` [s], or at once if it has passed."""
        pause = deadline - self.now() - self.spin
        if pause > 0:
            time.sleep(pause)
        while self.now() < deadline:
            pass


class VirtualClock:
    """Time that passes only when somebody sleeps or says so; every run of a test is the same.

    Args:
        start: time shown at first [s].
    """

    def __init__(self, *, start: float = 0.0):
        self._now = start

    def now(self) -> float:
        """Present time [s]."""
        return self._now

    def sleep_until(self, deadline: float) -> None:
        """Jump to `deadline` [s], or stay if it has passed."""
        self._now = max(self._now, deadline)

    def advance(self, duration: float) -> None:
        """Let time pass, as when a policy thinks for `duration` [s].

        Raises:
            ValueError: the duration is negative; time never runs backwards.
        """
        if duration < 0:
            raise ValueError(f"duration is {duration} s, time cannot run backwards: use >= 0")
        self._now += duration
