"""A stop ends exactly at rest, within its limits, in the fewest ticks, where it says."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.control.brake import distance_coefficients, plan_stop, settling_acceleration

# A limit of jerk, and the state and A as multiples of it: what matters is their ratio alone.
JERKS = st.floats(1e-6, 10)
RATIOS = st.floats(0.3, 40)
SHARES = st.floats(-1, 1) | st.sampled_from([0.0, 1.0, -1.0])
SPEEDS = st.floats(-300, 300) | st.integers(-30, 30).map(float)
STATES = st.tuples(JERKS, RATIOS, SHARES, SPEEDS)


def path(stop, v):
    """Accelerations, velocities and positions of a stop from speed v, tick by tick."""
    a = np.array([stop.at(i) for i in range(1, stop.n + 1)])
    velocity = v + np.cumsum(a)
    return a, velocity, np.cumsum(velocity)


@pytest.mark.parametrize(
    ("v", "a", "limit", "accelerations"),
    [
        (4, 0, 10, [-1, -2, -1, 0]),
        (3, 0, 1, [-1, -1, -1, 0]),
        (1, 2, 10, [1, 0, -1, -1, 0]),  # 2 more before it can brake, and then 1.
        (-1, 2, 10, [1, 0]),  # Letting go is enough.
        (0, 0, 10, [0]),
        (1.5, -1, 10, [-1, -0.5, 0]),  # Halfway between letting go and the hardest brake.
    ],
)
def test_a_stop_in_whole_numbers(v, a, limit, accelerations):
    stop = plan_stop(v, a, acceleration=limit, jerk=1.0)
    assert [stop.at(i) for i in range(1, stop.n + 1)] == pytest.approx(accelerations)
    velocities = [v + sum(accelerations[: i + 1]) for i in range(len(accelerations))]
    positions = np.cumsum(velocities)
    assert stop.displacement == pytest.approx(positions[-1])
    assert stop.lowest == pytest.approx(min(0, *positions))
    assert stop.highest == pytest.approx(max(0, *positions))


@given(STATES)
def test_a_stop_keeps_its_limits_and_is_as_it_says(state):
    jerk, ratio, share, speed = state
    limit = ratio * jerk
    a0, v0 = share * limit, speed * jerk
    stop = plan_stop(v0, a0, acceleration=limit, jerk=jerk)
    a, v, q = path(stop, v0)
    # Sums of at most n**2 numbers of the size of `size`, each rounded.
    size = max(abs(v0), limit, jerk) * stop.n**2 * 1e-14
    assert abs(a).max() <= limit * (1 + 1e-12)
    assert abs(np.diff(a, prepend=a0)).max() <= jerk * (1 + 1e-9)
    assert a[-1] == 0
    assert abs(v[-1]) <= size
    assert q[-1] == pytest.approx(stop.displacement, abs=size)
    assert min(0, q.min()) == pytest.approx(stop.lowest, abs=size)
    assert max(0, q.max()) == pytest.approx(stop.highest, abs=size)
    assert abs(v).max() <= max(stop.fastest, abs(v0)) + size


@given(STATES)
def test_no_stop_is_shorter(state):
    """All sequences of n ticks lie between two envelopes, here written down tick by tick."""
    jerk, ratio, share, speed = state
    limit, a = ratio * jerk, share * ratio * jerk
    n = plan_stop(speed * jerk, a, acceleration=limit, jerk=jerk).n - 1
    i = np.arange(1, n + 1)
    lowest = np.max([a - i * jerk, (i - n) * jerk, np.full(n, -limit)], axis=0)
    highest = np.min([a + i * jerk, (n - i) * jerk, np.full(n, limit)], axis=0)
    is_possible = bool((lowest <= highest).all()) and n * jerk >= abs(a)
    slack = 1e-9 * (abs(speed) * jerk + limit)
    if is_possible and n > 0:
        assert not lowest.sum() + slack < -speed * jerk < highest.sum() - slack


@given(STATES)
def test_a_stop_the_other_way_is_the_mirror_image(state):
    jerk, ratio, share, speed = state
    limits = {"acceleration": ratio * jerk, "jerk": jerk}
    there = plan_stop(speed * jerk, share * ratio * jerk, **limits)
    back = plan_stop(-speed * jerk, -share * ratio * jerk, **limits)
    assert back.displacement == -there.displacement
    assert (back.lowest, back.highest) == (-there.highest, -there.lowest)
    assert [back.at(i) for i in range(1, back.n + 1)] == [
        -there.at(i) for i in range(1, there.n + 1)
    ]


def han_ticks(v, a, jerk):
    """Ticks that Han's `fhan` takes to rest; its state is the last velocity and acceleration."""
    x1, x2, n = v - a, a, 0
    while max(abs(x1), abs(x2)) > 1e-9:
        y = x1 + x2
        root = math.sqrt(jerk**2 + 8 * jerk * abs(y))
        s = x2 + (root - jerk) / 2 * np.sign(y) if abs(y) > jerk else x2 + y
        x1, x2 = x1 + x2, x2 - (jerk * np.sign(s) if abs(s) > jerk else s)
        n += 1
    return n


def test_a_stop_lasts_as_long_as_by_hans_law_or_a_tick_less():
    rng = np.random.default_rng(0)
    differences = Counter()
    for _ in range(200):
        v, a = rng.uniform(-30, 30), rng.uniform(-5, 5)
        differences[han_ticks(v, a, 1.0) - plan_stop(v, a, acceleration=1e6, jerk=1.0).n] += 1
    assert set(differences) == {0, 1}


@given(JERKS, st.floats(0, 1e3))
def test_a_settling_acceleration_uses_up_the_room_and_no_more(jerk, ratio):
    room = ratio * jerk
    a = settling_acceleration(room, jerk=jerk)
    gained, rest = 0.0, a
    while rest > 0:
        gained += rest
        rest -= jerk
    assert gained == pytest.approx(room, rel=1e-9, abs=1e-12 * jerk)


@settings(deadline=None)
@given(STATES)
def test_no_stop_leads_further_than_the_bound(state):
    jerk, ratio, share, speed = state
    limit, a, v = ratio * jerk, share * ratio * jerk, speed * jerk
    c0, c1 = distance_coefficients(acceleration=limit, jerk=jerk)
    s = abs(v) + a**2 / (2 * jerk)
    _, velocity, q = path(plan_stop(v, a, acceleration=limit, jerk=jerk), v)
    assert abs(q).max() <= s * (c0 + c1 * s) * (1 + 1e-9)
    assert abs(velocity).max() <= s * (1 + 1e-9)


def test_a_stop_of_a_million_ticks_is_planned_as_quickly():
    stop = plan_stop(1.0, 0.0, acceleration=1e-6, jerk=1e-9)
    # 1000 ticks to reach the limit and 1000 to leave it, and the rest of 1e6 ticks at it.
    assert stop.n == pytest.approx(1e6 + 1e3, abs=2)
    assert stop.displacement == pytest.approx((1e6 + 1e3) / 2, rel=1e-3)
