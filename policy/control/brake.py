r"""How one element of a command is brought to rest within its limits, in closed form.

Time is counted in control ticks and everything is per tick: with a position q that is commanded
once a tick, v_k = q_k - q_{k-1}, a_k = v_k - v_{k-1}, and the jerk is a_k - a_{k-1}. So limits in
SI units are multiplied by control_dt, control_dt**2 and control_dt**3.

A stop in n ticks is a sequence a_1 .. a_n = 0 that adds up to -v, each at most A and at most J from
the one before. All such sequences lie between two envelopes, and every mixture of two of them is
one. We mix the two that matter, so that the sum is exact and there is no feedback to chatter:

    a_0 \
         \
    0 ----\=======     release: to zero at full jerk, and there it stays
           \    /
            \__/       brake: as hard as A allows, and back to zero at tick n

This is the stop in the fewest ticks; it is planned once and then followed.

Source: the discrete time-optimal law `fhan` of Han, "From PID to Active Disturbance Rejection
Control", IEEE Trans. Ind. Electron. 56(3), 2009, solves the same problem.

Differences from the paper:
1. The acceleration is limited too, which `fhan` does not know. Without that limit `fhan` takes as
   many ticks as a stop does here, or one more.
2. Planned, not fed back: the distance and the highest speed of a stop cost the same for every
   length of it, so that a command can be judged by the stop that must remain possible after it.
"""

import math
from typing import NamedTuple


class Stop(NamedTuple):
    """A way from a velocity and an acceleration to rest; everything per tick.

    Args:
        n: ticks until it rests.
        start: acceleration before the first tick, mirrored by `side`.
        mix: 0 is the release alone, 1 the hardest brake.
        side: -1 if everything is mirrored, 1 if not.
        acceleration: limit A.
        jerk: limit J.
        displacement: position at rest, relative to that at the start.
        lowest: lowest position on the way, relative to that at the start, at most 0.
        highest: highest position on the way, at least 0.
        fastest: highest speed on the way, the start excluded.
    """

    n: int
    start: float
    mix: float
    side: int
    acceleration: float
    jerk: float
    displacement: float
    lowest: float
    highest: float
    fastest: float

    def at(self, tick: int) -> float:
        """Acceleration a_tick; `tick` counts from 1, and after `n` it is 0."""
        if tick >= self.n:
            return 0.0
        step = tick * self.jerk
        a = self.start
        release = max(a - step, 0.0) if a > 0 else min(a + step, 0.0)
        brake = max(a - step, (tick - self.n) * self.jerk, -self.acceleration)
        return self.side * (release + self.mix * (brake - release))


def plan_stop(v: float, a: float, *, acceleration: float, jerk: float) -> Stop:
    """The stop in the fewest ticks from velocity `v` and acceleration `a`, |a| <= acceleration.

    Args:
        v: velocity, per tick.
        a: acceleration of the last tick, per tick squared.
        acceleration: highest |a|, positive and finite.
        jerk: highest change of `a` in a tick, positive and finite.
    """
    release = math.ceil(abs(a) / jerk)
    m = max(release - 1, 0)  # Ticks of the release that are not zero.
    sum_i = m * (m + 1) / 2
    gain = m * abs(a) - jerk * sum_i  # What the release adds to the velocity, in size.
    left = v + math.copysign(gain, a)
    side = -1 if left < 0 else 1
    v, a, left = side * v, side * a, side * left
    gain = math.copysign(gain, a)
    # Below, the velocity after the release, `left`, is not negative: it is braked from above.
    n = max(release, 1, math.ceil(_duration(v - a / 2, a, acceleration, jerk)))
    total, n_down, n_up = _hardest(a, n, acceleration, jerk)
    while gain - total < left:  # What lies between two ticks is lost: once, seldom twice.
        n += 1
        total, n_down, n_up = _hardest(a, n, acceleration, jerk)
    mix = min(left / (gain - total), 1.0) if left > 0 else 0.0

    # Tick i adds its acceleration to n - i + 1 velocities, and so to the position.
    moment = abs(a) * sum_i - jerk * sum_i * (2 * m + 1) / 3
    released = (n + 1) * gain - math.copysign(moment, a)
    sum_i = n_down * (n_down + 1) / 2
    down = (n + 1) * (n_down * a - jerk * sum_i) - (a * sum_i - jerk * sum_i * (2 * n_down + 1) / 3)
    n_flat = n - n_down - n_up
    flat = acceleration * n_flat * (n - n_down + n_up + 1) / 2
    braked = down - flat - jerk * (n_up - 1) * n_up * (n_up + 1) / 3
    displacement = n * v + released + mix * (braked - released)
    back = _way_back(v, a, jerk) if v < 0 else 0.0
    ends = (back, max(displacement, 0.0)) if side > 0 else (min(-displacement, 0.0), -back)
    fastest = left if a > 0 else v
    return Stop(n, a, mix, side, acceleration, jerk, side * displacement, ends[0], ends[1], fastest)


def settling_acceleration(room: float, *, jerk: float) -> float:
    """The highest next acceleration from which the velocity rises by no more than `room` in all.

    With x in ((r - 1) J, r J], x and what follows at full jerk add up to r x - J r (r - 1) / 2.

    Args:
        room: what the velocity may rise by, per tick, >= 0.
        jerk: limit J.
    """
    r = math.ceil((math.sqrt(1 + 8 * room / jerk) - 1) / 2)
    return room / r + jerk * (r - 1) / 2 if r > 0 else 0.0


def distance_coefficients(*, acceleration: float, jerk: float) -> tuple[float, float]:
    """(c0, c1) with which no stop leads further than s * (c0 + c1 * s), s = |v| + a**2 / (2 J).

    On the way the speed is at most s, since the release adds at most a**2 / (2 J). It lasts at
    most 2 A / J + s / A + 1/2 ticks, or two more as ticks are whole: the time of `_duration` with
    |a| <= A, and 2 sqrt(X / J) <= X / A + A / J where A is not reached.
    """
    return 2 * acceleration / jerk + 3, 1 / acceleration


def _duration(v: float, a: float, acceleration: float, jerk: float) -> float:
    """Ticks of the fastest stop in continuous time, which no stop in whole ticks is shorter than.

    A sum over ticks is the integral of the line through them, less half the first value: the
    caller gives v - a/2.
    """
    peak_squared = jerk * v + a * a / 2
    if peak_squared <= acceleration * acceleration:
        return (a + 2 * math.sqrt(max(peak_squared, 0.0))) / jerk
    return (a + acceleration) / jerk + (v + a * a / (2 * jerk)) / acceleration


def _hardest(a: float, n: int, acceleration: float, jerk: float) -> tuple[float, int, int]:
    """Sum of the hardest brake in n ticks; its ticks at falling and at rising acceleration."""
    n_down = max(int(min((a / jerk + n) / 2, (a + acceleration) / jerk)), 0)
    n_up = int(min(n - n_down, acceleration / jerk + 1))
    total = n_down * a - jerk * (n_down * (n_down + 1) + n_up * (n_up - 1)) / 2
    return total - acceleration * (n - n_down - n_up), n_down, n_up


def _way_back(v: float, a: float, jerk: float) -> float:
    """Lowest position where v < 0 turns positive while a > 0 is released."""
    lowest = 0.0
    a -= jerk
    v += a
    while v < 0 and a > 0:
        lowest += v
        a -= jerk
        v += a
    return lowest
