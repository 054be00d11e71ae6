"""The end of a run and the learning rate along the way."""

import math

import pytest

from policy.budget import Budget, learning_rate_scale


def test_whichever_comes_first_ends_the_run():
    budget = Budget(steps=100, minutes=2.0)
    assert budget.progress(50, 30.0) == 0.5  # by steps; by time it is 0.25
    assert budget.progress(10, 60.0) == 0.5  # by time; by steps it is 0.1
    assert Budget(steps=100, minutes=None).progress(100, 1e9) == 1.0
    assert Budget(steps=None, minutes=1.0).progress(10**9, 30.0) == 0.5


@pytest.mark.parametrize(("steps", "minutes"), [(None, None), (0, None), (10, -1.0)])
def test_a_run_without_an_end_is_refused(steps, minutes):
    with pytest.raises(ValueError, match=r"steps|minutes"):
        Budget(steps=steps, minutes=minutes)


def test_rate_warms_up_linearly_and_falls_as_a_cosine():
    # Step 0 already moves: its factor is 1 / warmup_steps.
    assert learning_rate_scale(0, 0.0, warmup_steps=10) == pytest.approx(0.1)
    assert learning_rate_scale(4, 0.0, warmup_steps=10) == pytest.approx(0.5)
    assert learning_rate_scale(99, 0.25, warmup_steps=10) == pytest.approx(
        0.5 * (1 + math.sqrt(0.5))
    )
    assert learning_rate_scale(99, 1.0, warmup_steps=10) == pytest.approx(0.0)
    assert learning_rate_scale(-3, 0.5, warmup_steps=0) == 0
    assert learning_rate_scale(99, 0.5, warmup_steps=0, end=0.2) == pytest.approx(0.6)
    assert learning_rate_scale(99, 1.0, warmup_steps=0, end=0.2) == pytest.approx(0.2)
