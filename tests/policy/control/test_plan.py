"""Plans by absolute tick: merged by consumed ticks, decided actions stay, no end is passed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.types import Contract, Field
from policy.control.plan import Plan, UnsafeActionError
from policy.control.seam import blend
from policy.types import ActionChunk

FIELD = Field(shape=(1,))
CONTRACT = Contract({"state": FIELD}, FIELD, control_dt=0.1)


def chunk(tick0, length, *, number=0):
    """Action for tick k of chunk c is 1000 c + k."""
    ticks = np.arange(tick0, tick0 + length, dtype=np.float64)
    return ActionChunk(1000.0 * number + ticks[:, None], tick0, CONTRACT)


def action(plan, tick):
    step = plan.step(tick)
    return None if step is None else step.action.item()


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 12), st.integers(0, 5), st.integers(0, 12)),
        min_size=1,
        max_size=6,
    )
)
def test_s11_every_tick_has_its_own_action_of_the_right_chunk_or_none(steps):
    """Against a model that writes down, tick by tick, whose action it has to be."""
    plan, owner, tick0, present = Plan(FIELD), {}, 0, 0
    for number, (advance, length, decided, late) in enumerate(steps):
        tick0 += advance
        present = max(present, tick0 + late)  # Time never runs backwards.
        plan.merge(chunk(tick0, length, number=number), tick=present, observed=0.0, decided=decided)
        taken = [t for t in range(tick0, tick0 + length) if t >= present]
        while taken and taken[0] < tick0 + decided and taken[0] in owner:
            taken.pop(0)
        if taken:
            owner = {t: c for t, c in owner.items() if t < taken[0]}
        owner |= dict.fromkeys(taken, number)
        for tick in range(present, tick0 + 30):
            expected = 1000.0 * owner[tick] + tick if tick in owner else None
            assert action(plan, tick) == expected


def test_a_late_chunk_begins_with_what_time_has_not_consumed():
    plan = Plan(FIELD)
    swap = plan.merge(chunk(10, 4), tick=12, observed=0.0)
    assert [action(plan, tick) for tick in range(10, 15)] == [None, None, 12, 13, None]
    assert (swap.tick, swap.overlap, swap.jump) == (12, 0, None)


def test_what_is_decided_stays_though_the_chunk_is_early():
    plan = Plan(FIELD)
    plan.merge(chunk(0, 8), tick=0, observed=1.0)
    swap = plan.merge(chunk(4, 8, number=1), tick=4, observed=2.0, decided=2)
    assert [action(plan, tick) for tick in range(4, 8)] == [4, 5, 1006, 1007]
    assert (swap.tick, swap.overlap) == (6, 2)
    assert swap.jump is not None
    assert swap.jump.tolist() == [1000.0]
    steps = [plan.step(tick) for tick in (5, 6, 7)]
    assert [(s.observed, s.is_seam) for s in steps if s] == [(1.0, False), (2.0, True), (2, False)]


def test_a_chunk_whose_end_has_passed_changes_nothing():
    plan = Plan(FIELD)
    plan.merge(chunk(0, 12), tick=0, observed=0.0)
    swap = plan.merge(chunk(4, 2, number=1), tick=6, observed=0.0)
    assert (swap.tick, swap.overlap) == (6, 0)
    assert action(plan, 7) == 7


def test_s10_an_empty_plan_starves():
    assert Plan(FIELD).step(0) is None


def test_a_seam_mixes_the_ticks_that_both_speak_of_and_no_others():
    def seam(old, new, n_merged):
        return blend(old, new, n_merged, n_ticks=1)

    plan = Plan(FIELD, seam=seam)
    plan.merge(chunk(0, 6), tick=0, observed=0.0)
    plan.merge(chunk(3, 6, number=1), tick=3, observed=0.0)
    # Half of 3 and 1003, then the new chunk.
    assert [action(plan, tick) for tick in range(3, 9)] == [503, 1004, 1005, 1006, 1007, 1008]


def test_discrete_elements_are_never_mixed():
    field = Field(shape=(2,), discrete=(1,))
    contract = Contract({"state": FIELD}, field, control_dt=0.1)

    def mean(old, new, n_merged):
        return (old + new) / 2

    plan = Plan(field, seam=mean)
    plan.merge(ActionChunk(np.zeros((4, 2)), 0, contract), tick=0, observed=0.0)
    plan.merge(ActionChunk(np.ones((4, 2)), 0, contract), tick=0, observed=0.0)
    step = plan.step(0)
    assert step is not None
    assert step.action.tolist() == [0.5, 1.0]


@pytest.mark.parametrize("shape", [(4,), (0, 1), (4, 2), (1, 4, 1)])
def test_wrong_shape_is_refused_and_the_old_plan_stays(shape):
    plan = Plan(FIELD)
    plan.merge(chunk(0, 4), tick=0, observed=0.0)
    with pytest.raises(UnsafeActionError, match="shape"):
        plan.merge(ActionChunk(np.zeros(shape), 2, CONTRACT), tick=2, observed=0.0)
    assert action(plan, 3) == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_s1_a_chunk_that_is_not_finite_is_refused_by_name(bad):
    plan, wrong = Plan(FIELD), chunk(7, 4)
    wrong.actions[3] = bad
    with pytest.raises(UnsafeActionError, match=r"tick 7 is .* in action 3, element 0"):
        plan.merge(wrong, tick=7, observed=0.0)
    assert plan.step(7) is None


def test_chunks_out_of_order_are_an_error():
    plan = Plan(FIELD)
    plan.merge(chunk(5, 4), tick=5, observed=0.0)
    with pytest.raises(ValueError, match="tick 4 came after one for tick 5"):
        plan.merge(chunk(4, 4), tick=5, observed=0.0)
