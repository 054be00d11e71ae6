"""Latencies from steps, in closed form."""

import numpy as np
import pytest

from policy.control.calibration import Step, command_latency, observation_latency

PERIOD = 0.1  # s, between two readings


def step(sent, latency, *, age=0.0, jump=1.0):
    """Readings every period; the position jumps `latency` after `sent`."""
    captured = PERIOD * np.arange(20)
    return Step(sent, captured + age, captured, jump * (captured > sent + latency))


def test_one_step_bounds_the_latency_by_two_readings():
    latency = command_latency([step(0.52, 0.13)], threshold=0.5)
    # It moved at 0.65: captured at rest at 0.6, moved at 0.7.
    assert (latency.low, latency.high) == pytest.approx((0.08, 0.18))
    assert latency.middle == pytest.approx(0.13)


def test_steps_at_different_phases_narrow_it_down():
    latency = command_latency([step(0.5 + p, 0.13) for p in np.arange(0, 0.1, 0.01)], threshold=0.5)
    assert latency.low <= 0.13 <= latency.high
    assert latency.high - latency.low <= 0.0101  # As fine as the phases.


def test_a_latency_that_varies_gives_the_range():
    latency = command_latency([step(0.5, 0.01), step(0.5, 0.42)], threshold=0.5)
    assert (latency.low, latency.high) == pytest.approx((0.0, 0.5))


def test_age_of_readings_is_that_of_their_stamps():
    latency = observation_latency([step(0.5, 0.1, age=0.03)])
    assert (latency.low, latency.high) == pytest.approx((0.03, 0.03))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(step(0.5, 0.1, jump=0.1), "nothing moved"), (step(0.5, -0.3), "before it was commanded")],
)
def test_what_cannot_be_judged_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        command_latency([wrong], threshold=0.5)
