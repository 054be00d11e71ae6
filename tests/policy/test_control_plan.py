"""Plans by absolute tick: merged by consumed ticks, never read past the horizon."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.types import Contract, Field, Kind
from policy.control.plan import Plan, UnsafeActionError, hold
from policy.types import ActionChunk

FIELD = Field(shape=(1,))
CONTRACT = Contract({"state": FIELD}, FIELD, control_dt=0.1)


def chunk(tick0, length, *, chunk_number=0):
    """Action for tick k of chunk c is 1000 c + k."""
    ticks = np.arange(tick0, tick0 + length, dtype=np.float64)
    return ActionChunk(1000.0 * chunk_number + ticks[:, None], tick0, CONTRACT)


@given(
    steps=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12)), min_size=1, max_size=6),
    tick=st.integers(0, 80),
)
def test_an_action_is_the_newest_chunks_for_that_very_tick_or_none(steps, tick):
    plan, tick0 = Plan(FIELD), 0
    for number, (advance, length) in enumerate(steps):
        tick0 += advance
        plan.merge(chunk(tick0, length, chunk_number=number))
    action = plan.action(tick)
    if tick0 <= tick < tick0 + length:
        assert action is not None
        assert action.tolist() == [1000.0 * number + tick]
    else:
        assert action is None
    assert plan.consumed(tick) == tick - tick0


@given(tick0=st.integers(0, 50), length=st.integers(1, 16), delay=st.integers(0, 20))
def test_a_late_chunk_begins_with_what_time_has_not_consumed(tick0, length, delay):
    plan = Plan(FIELD)
    plan.merge(chunk(tick0, length))
    left = [plan.action(tick) for tick in range(tick0 + delay, tick0 + delay + length)]
    present = [action.item() for action in left if action is not None]
    assert present == list(range(tick0 + delay, tick0 + length))


def test_empty_plan_starves():
    plan = Plan(FIELD)
    assert plan.action(0) is None
    assert plan.consumed(7) is None


@pytest.mark.parametrize("shape", [(4,), (0, 1), (4, 2), (1, 4, 1)])
def test_wrong_shape_is_refused_and_the_old_plan_stays(shape):
    plan = Plan(FIELD)
    plan.merge(chunk(0, 4))
    with pytest.raises(UnsafeActionError, match="shape"):
        plan.merge(ActionChunk(np.zeros(shape), 2, CONTRACT))
    assert plan.consumed(3) == 3


def test_chunks_out_of_order_are_an_error():
    plan = Plan(FIELD)
    plan.merge(chunk(5, 4))
    with pytest.raises(ValueError, match="tick 4 came after one for tick 5"):
        plan.merge(chunk(4, 4))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("absolute", [3.0, 4.0]), ("delta", [0.0, 4.0]), ("relative", [0.0, 4.0])],
)
def test_hold_stands_still_and_keeps_discrete_elements(kind: Kind, expected):
    field = Field(shape=(2,), kind=kind, discrete=(1,))
    last = np.array([3.0, 4.0])
    assert hold(last, field).tolist() == expected
    assert last.tolist() == [3.0, 4.0]
