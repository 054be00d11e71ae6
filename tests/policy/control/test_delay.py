"""The delay is the longest of the last ones, warm-up aside."""

import pytest

from policy.control.delay import DelayEstimate


def test_it_is_the_longest_of_the_window_and_forgets():
    delay = DelayEstimate(window=3, n_warm_up=0)
    assert delay.ticks == 0
    seen = []
    for n_ticks in (2, 5, 1, 1, 1):
        delay.add(n_ticks)
        seen.append(delay.ticks)
    assert seen == [2, 5, 5, 5, 1]


def test_t4_a_cold_start_is_not_counted():
    delay = DelayEstimate(n_warm_up=1)
    delay.add(40)
    assert delay.ticks == 0
    delay.add(2)
    assert delay.ticks == 2


def test_a_margin_is_added_to_what_was_seen_and_a_fixed_one_stays():
    delay = DelayEstimate(n_warm_up=0, margin=2)
    assert delay.ticks == 0  # Nothing is known yet.
    delay.add(1)
    assert delay.ticks == 3
    fixed = DelayEstimate(fixed=4)
    fixed.add(9)
    fixed.add(9)
    assert fixed.ticks == 4


@pytest.mark.parametrize(
    "wrong", [{"window": 0}, {"n_warm_up": -1}, {"margin": -1}, {"fixed": -1}, {"fixed": 1.5}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DelayEstimate(**wrong)
