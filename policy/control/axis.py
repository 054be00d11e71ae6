"""One continuous element of the command: where it is, how it moves, and where it may go next.

What is commanded is q_k, once a control tick, and v_k = (q_k - q_{k-1}) / control_dt, a_k and the
jerk likewise. Inside, everything is per tick (see `policy.control.brake`).

A command is accepted if the four limits hold and a stop from it keeps them too. So there is always
a way on: the stop of the last accepted command. That makes the limits hold at every tick, whatever
is wanted:

1. Far from a limit, a bound on the way of a stop decides; else the stop itself does.
2. What is not accepted is replaced by a step towards it (`_chase`), accepted by the same rule.
3. Where even that is not accepted, or nothing is wanted, the next step of the stop is taken.

Rounding: limits are compared with a part `SLACK` of themselves to spare, and q is a float64, so
whoever divides differences of commands by control_dt**n finds them exact to a few
eps * |q| / control_dt**n.
"""

import math

from policy.control.brake import Stop, distance_coefficients, plan_stop, settling_acceleration
from policy.control.refusals import Reason

# Part of a limit by which a computed number may exceed it, being rounded.
SLACK = 1e-9
# Part of a limit of position by which a wanted one may exceed it uncounted: float32 rounds 0.2 up.
FLOAT32 = 1e-6
# Stands for "no limit" of velocity, per tick, where another one is finite; its powers are finite.
HUGE = 1e12
# A step towards something is exact to this part of the limit of jerk, or found in so many trials.
EXACT, TRIALS = 0.01, 12


class Axis:
    """One element that is moved within limits; made at rest at 0.

    Args:
        control_dt: time between two commands [s].
        low: lowest position.
        high: highest position, above `low`.
        velocity: unit/s, > 0; inf for none, as all others.
        acceleration: unit/s^2, > 0.
        jerk: unit/s^3, > 0.

    Attributes:
        q: position commanded last.
        v: how far it was moved in the last tick.
    """

    def __init__(
        self,
        control_dt: float,
        *,
        low: float,
        high: float,
        velocity: float,
        acceleration: float,
        jerk: float,
    ):
        self._bounds = low, high
        self._per_tick = (velocity * control_dt, acceleration * control_dt**2, jerk * control_dt**3)
        self.rest_at(0.0, is_bounded=False)

    @property
    def is_at_rest(self) -> bool:
        """Whether the next command may be the same as the last, forever."""
        return self._is_free or (self.v == 0 and self._a == 0)

    def rest_at(self, position: float, *, is_bounded: bool = True) -> None:
        """Be at rest at a position, which is moved within the limits of position.

        Args:
            position: finite.
            is_bounded: whether positions are known, so that their limits count.
        """
        low, high = self._bounds if is_bounded else (-math.inf, math.inf)
        self._low, self._high = low, high
        self._is_free = all(math.isinf(rate) for rate in self._per_tick)
        # A limit that follows from another one is no further limit, but a finite number.
        velocity = min(self._per_tick[0], high - low, HUGE)
        acceleration = min(self._per_tick[1], 2 * velocity)
        self._jerk = min(self._per_tick[2], 2 * acceleration)
        self._velocity = velocity
        self._acceleration = acceleration
        self._highest_v = velocity * (1 + SLACK)
        self._highest_a = acceleration * (1 + SLACK)
        self._highest_j = self._jerk * (1 + SLACK)
        self._slack = SLACK * self._jerk
        self._half = 0.5 / self._jerk
        self._c0, self._c1 = distance_coefficients(acceleration=acceleration, jerk=self._jerk)
        self.q = min(max(position, low), high)
        self.v = self._a = 0.0
        self._stop: Stop | None = None  # From the last accepted command, once it is needed.
        self._stop_tick = 0
        self._reason: Reason | None = None  # Why it is behind what is wanted, if it is.
        self._target: float | None = None  # Wanted last.

    def move(self, wanted: float) -> Reason | None:
        """Go to a wanted position, or as near as may be; the reason where it is not there."""
        target, reason = self._within(wanted)
        if self._is_free:
            self.v, self.q = target - self.q, target
            return reason
        v = target - self.q
        if self._reason is None and self._is_easy(target, v):
            self._a, self.v, self.q = v - self.v, v, target
            self._stop, self._target = None, target
            return reason
        pace, self._target = self._pace(target), target
        if self._reason is None or self._lands(v, pace):
            found = self._take(target, v)
            self._reason = reason or found
            if found is None:
                self._reason = None
                return reason
        # A target that moves on may lead out of the limits, one that stays lies within them.
        if not (
            (pace and self._advance(self._approach(target, pace)))
            or self._advance(self._approach(target, 0.0))
        ):
            self._follow_stop()
        return reason or self._reason

    def shift(self, change: float) -> Reason | None:
        """Move by a wanted change [unit per tick], or as near as may be, and report likewise."""
        target, reason = self._within(self.q + change)
        v = change if target == self.q + change else target - self.q
        if self._is_free:
            self.v, self.q = v, target
            return reason
        if self._is_easy(target, v):
            self._a, self.v, self.q, self._stop = v - self.v, v, target, None
            return reason
        found = self._take(target, v)
        if found is None:
            return reason
        a = self._settle(change)
        if not self._advance(a):
            limit = self._high if change > 0 else self._low
            nearer = min if change > 0 else max
            if (
                change == 0
                or math.isinf(limit)
                or not self._advance(nearer(a, self._approach(limit, 0.0)))
            ):
                self._follow_stop()
        return reason or found

    def brake(self) -> None:
        """Take the next step of the fastest stop, and stay there."""
        self._target = None
        if self._is_free:
            self.v = 0.0
        elif not self.is_at_rest:
            # Whatever was wanted, it is behind it now.
            self._reason = self._reason or Reason.ACCELERATION
            self._follow_stop()

    def _within(self, wanted: float) -> tuple[float, Reason | None]:
        """The wanted position within the limits of position."""
        low, high = self._low, self._high
        if low <= wanted <= high:
            return wanted, None
        limit = high if wanted > high else low
        is_rounding = abs(wanted - limit) <= FLOAT32 * abs(limit)
        return limit, None if is_rounding else Reason.POSITION

    def _is_easy(self, q: float, v: float) -> bool:
        """Whether the limits hold, and a bound shows that a stop keeps them."""
        a = v - self.v
        highest_j, highest_a = self._highest_j, self._highest_a
        if -highest_a <= a <= highest_a and -highest_j <= a - self._a <= highest_j:
            speed = (v if v > 0 else -v) + a * a * self._half
            way = speed * (self._c0 + speed * self._c1)
            return speed <= self._highest_v and q + way <= self._high and q - way >= self._low
        return False

    def _take(self, q: float, v: float) -> Reason | None:
        """Command q, moving by v, if it is accepted; else the limit that speaks against it."""
        a = v - self.v
        if not abs(v) <= self._highest_v:
            return Reason.VELOCITY
        if not abs(a) <= self._highest_a:
            return Reason.ACCELERATION
        if not abs(a - self._a) <= self._highest_j:
            return Reason.JERK
        low, high = self._low, self._high
        speed, way = self._reach(v, a)
        stop = None
        if not (speed <= self._highest_v and low <= q - way and q + way <= high):
            stop = plan_stop(v, a, acceleration=self._acceleration, jerk=self._jerk)
            if not stop.fastest <= self._highest_v:
                return Reason.VELOCITY
            slack = self._slack
            if not (low - slack <= q + stop.lowest and q + stop.highest <= high + slack):
                return Reason.POSITION
        self._go(q, v)
        self._a, self._stop, self._stop_tick = a, stop, 0
        return None

    def _go(self, q: float, v: float) -> None:
        """Be at q, moved by v; exactly within the limits of position, and by as much less."""
        within = min(max(q, self._low), self._high)
        self.q, self.v = within, v if within == q else within - self.q

    def _reach(self, v: float, a: float) -> tuple[float, float]:
        """Bounds of speed and distance of a stop; see `distance_coefficients`."""
        speed = abs(v) + a * a * self._half
        return speed, speed * (self._c0 + speed * self._c1)

    def _advance(self, a: float) -> bool:
        """Whether the next step may have this acceleration; if so, it is taken."""
        v = self.v + a
        return self._take(self.q + v, v) is None

    def _follow_stop(self) -> None:
        """The next step of the stop from the last accepted command."""
        if self._stop is None:
            self._stop_tick = 0
            self._stop = plan_stop(
                self.v, self._a, acceleration=self._acceleration, jerk=self._jerk
            )
        self._stop_tick += 1
        if self._stop_tick >= self._stop.n:
            self.v = self._a = 0.0
            return
        self._a = self._stop.at(self._stop_tick)
        v = self.v + self._a
        self._go(self.q + v, v)

    def _pace(self, target: float) -> float:
        """How fast what is wanted moves by itself; a jump beyond the limit is no motion."""
        change = 0.0 if self._target is None else target - self._target
        return change if abs(change) <= self._highest_v else 0.0

    def _lands(self, v: float, pace: float) -> bool:
        """Whether from the wanted position, reached at speed v, it can be kept up with at once."""
        excess = pace - v
        a = v - self.v
        return abs(excess - a) <= self._highest_j and abs(excess) <= self._highest_j

    def _range(self) -> tuple[float, float]:
        """Lowest and highest next acceleration that the limits but those of position allow."""
        a, jerk = self._a, self._jerk
        down = settling_acceleration(max(self._velocity + self.v, 0.0), jerk=jerk)
        up = settling_acceleration(max(self._velocity - self.v, 0.0), jerk=jerk)
        return max(a - jerk, -self._acceleration, -down), min(a + jerk, self._acceleration, up)

    def _settle(self, v: float) -> float:
        """Next acceleration by which the velocity goes to `v` the fastest, without overshoot."""
        lowest, highest = self._range()
        room = v - self.v
        a = math.copysign(settling_acceleration(abs(room), jerk=self._jerk), room)
        return min(max(a, lowest), highest)

    def _approach(self, target: float, pace: float) -> float:
        """Next acceleration by which `target` is reached the fastest, without overshoot.

        It is the one after which a stop, as seen from a target that moves on at `pace`, ends there.
        """

        def shortfall(a: float) -> float:
            v = self.v + a
            stop = plan_stop(v - pace, a, acceleration=self._acceleration, jerk=self._jerk)
            return target - self.q - v - stop.displacement

        low, high = self._range()
        if low >= high:
            return low
        v = self.v + high
        if target - self.q - v >= self._reach(v - pace, high)[1]:  # Far away, as is seen at once.
            return high
        at_high = shortfall(high)
        if at_high >= 0:
            return high
        at_low = shortfall(low)
        if at_low <= 0:
            return low
        for _ in range(TRIALS):  # Regula falsi; an end that stays is halved ("Illinois").
            if high - low <= EXACT * self._jerk:
                break
            a = low + (high - low) * at_low / (at_low - at_high)
            now = shortfall(a)
            if now >= 0:
                low, at_low, at_high = a, now, at_high / 2
            else:
                high, at_high, at_low = a, now, at_low / 2
        return low if target > self.q else high
