"""Control ticks on a clock: tick k begins at `start + k * control_dt`."""

import math

from policy.control.clock import Clock

# A deadline reached by adding floats may be short of itself by rounding; in ticks.
ROUNDING = 1e-6


class Ticks:
    """Control ticks that begin now.

    Args:
        clock: that they are told by.
        control_dt: time between two [s].
    """

    def __init__(self, clock: Clock, *, control_dt: float):
        self._clock, self._start, self.dt = clock, clock.now(), control_dt

    def due(self, tick: float) -> float:
        """When a tick begins [s]."""
        return self._start + tick * self.dt

    def present(self, at_least: int) -> int:
        """The tick that it is now, but not before `at_least`."""
        elapsed = (self._clock.now() - self._start) / self.dt
        return max(at_least, math.floor(elapsed + ROUNDING))
