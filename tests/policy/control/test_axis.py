"""One element of the command: it goes where it is wanted, as fast as its limits let it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.control.axis import Axis
from policy.control.refusals import Reason

INF = math.inf
DT = 0.02
LIMITS = {"low": -2.0, "high": 2.0, "velocity": 2.0, "acceleration": 10.0, "jerk": 500.0}


def axis(at=0.0, dt=DT, **changes):
    made = Axis(dt, **{**LIMITS, **changes})
    made.rest_at(at)
    return made


@pytest.mark.parametrize("jerk", [200.0, 500.0, 5000.0, INF])
@pytest.mark.parametrize("distance", [0.004, 0.1, 1.0, 2.0, -0.7])
def test_a_step_is_reached_without_overshoot_and_hardly_later_than_possible(distance, jerk):
    moved = axis(jerk=jerk)
    way = []
    while moved.move(distance) is not None:
        way.append(moved.q)
        assert len(way) < 1000
    way += [moved.q for _ in range(5) if moved.move(distance) is None]
    assert way[-1] == distance
    assert max(np.sign(distance) * np.array(way)) <= abs(distance)
    # Rest to rest in continuous time: at full acceleration to the highest speed and back; each of
    # the ramps of acceleration delays it by no more than it lasts. Two ticks are lost to rounding.
    size, v, a = abs(distance), LIMITS["velocity"], LIMITS["acceleration"]
    shortest = 2 * math.sqrt(size / a) if size < v**2 / a else size / v + v / a
    assert len(way) - 5 <= (shortest + 2 * a / jerk) / DT + 2


def test_a_jump_within_a_motion_is_caught_up_with():
    """Behind a target that moves on, it must become faster than that, and then keep up exactly."""
    moved, late = axis(at=-1.0), []
    for k in range(100):
        wanted = -1.0 + 0.5 * DT * min(k, 5) ** 2 / 10 + 0.5 * DT * max(k - 5, 0)
        wanted += 0.1 if k >= 30 else 0.0
        if moved.move(wanted) is not None and k >= 30:
            late.append(k)
    assert 30 in late
    # 0.1 rad relative to the target take 2 sqrt(0.1 / 10) s = 10 ticks; late ones are in a row.
    assert late == list(range(30, late[-1] + 1))
    assert late[-1] <= 30 + 10 + 6
    assert moved.q == wanted


def test_nothing_is_caught_up_with_after_changes():
    """A change counts from where it is, so a clamped one shortens the way for good."""
    moved, way = axis(), []
    for change in [0.01] * 20 + [0.0] * 20:
        moved.shift(change)
        way.append(moved.q)
    assert way[19] < 0.2 - 0.005  # It could not start at once.
    assert max(np.diff(way)) <= 0.01 + 1e-12  # No faster than wanted, ever.
    assert way[-1] == way[-10]
    assert way == sorted(way)


@pytest.mark.parametrize("wanted", [1e308, -1e308, 5.0])
def test_a_limit_of_position_is_approached_and_not_passed(wanted):
    moved = axis()
    assert moved.move(wanted) is Reason.POSITION
    for _ in range(200):
        assert moved.move(wanted) is Reason.POSITION
    assert moved.q == math.copysign(2.0, wanted)
    assert moved.is_at_rest or moved.v == 0


@pytest.mark.parametrize("change", [0.03, -0.03])
def test_changes_towards_a_limit_of_position_end_there(change):
    moved = axis()
    for _ in range(200):
        moved.shift(change)
    assert moved.q == pytest.approx(math.copysign(2.0, change), abs=1e-3)
    assert abs(moved.q) <= 2.0


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ([0.0005, 0.2], Reason.VELOCITY),  # 10 unit/s
        ([0.0005, 0.0155], Reason.ACCELERATION),  # (0.015 - 0.0005) / DT**2 = 36
        ([0.0005, -0.003], Reason.JERK),  # -0.0035, -0.004 and -0.0045 a tick
        ([0.0005, 2.5], Reason.POSITION),
        ([0.0005, 0.001], None),
    ],
)
def test_the_reason_is_the_limit_that_was_not_kept(wanted, reason):
    moved = axis(acceleration=12.5)
    assert moved.move(wanted[0]) is None
    assert moved.move(wanted[1]) is reason


def test_what_float32_rounds_beyond_a_limit_is_not_counted():
    moved = axis(low=-0.2, high=0.2, velocity=INF, acceleration=INF, jerk=INF)
    assert float(np.float32(0.2)) > 0.2
    assert moved.move(float(np.float32(0.2))) is None
    assert moved.q == 0.2


def test_changes_that_end_a_rounding_beyond_a_limit_end_at_it():
    moved = axis(low=-0.2, high=0.2, acceleration=INF, jerk=INF)
    ways = []
    for change in (0.01,) * 19 + (0.01 + 1e-8,):
        assert moved.shift(change) is None
        ways.append(moved.v)
    assert moved.q == 0.2
    assert sum(ways) == pytest.approx(0.2, abs=1e-14)  # Not 0.2 + 1e-8.


@given(st.lists(st.floats(-1e300, 1e300) | st.floats(-3, 3), max_size=30))
def test_without_limits_of_motion_positions_are_clipped_and_nothing_else(stream):
    moved = axis(velocity=INF, acceleration=INF, jerk=INF)
    for wanted in stream:
        reason = moved.move(wanted)
        assert moved.q == min(max(wanted, -2.0), 2.0)
        assert reason is (None if moved.q == wanted else Reason.POSITION)
        moved.brake()
        assert moved.q == min(max(wanted, -2.0), 2.0)
        assert moved.is_at_rest


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.sampled_from([50.0, 500.0, INF]))
def test_a_stream_within_the_limits_passes_untouched(targets, jerk):
    """What one axis commands is within limits, whatever it was asked; so another lets it pass."""
    first = axis(low=-INF, high=INF, jerk=jerk)
    second = axis(low=-INF, high=INF, jerk=jerk)
    for target in targets:
        for _ in range(8):
            first.move(target)
            assert second.move(first.q) is None
            assert second.q == first.q
