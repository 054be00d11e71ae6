"""Turns: their order, what is timed, and what ratios say."""

import gc
import itertools

import numpy as np
import pytest

from policy.benches import rounds
from policy.benches.rounds import fastest, percentiles, percentiles_ms, ratio, take_turns


class Clock:
    """A clock that only calls move on."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def call(self, seconds, log=None, name=""):
        """A call that takes so long, or as long as the next of several."""
        durations = iter(seconds) if isinstance(seconds, list) else itertools.repeat(seconds)

        def run():
            self.now += next(durations)
            if log is not None:
                log.append(name)

        return run


def test_contestants_take_turns_and_each_turn_begins_with_a_call_that_is_not_timed():
    clock, log = Clock(), []
    calls = {name: clock.call(0.01, log, name) for name in "AB"}
    times = take_turns(calls, rounds=2, seconds=9, per_turn=2, warm_up=1, clock=clock)
    assert "".join(log) == "AB" + 2 * "AAABBB"
    assert {name: turns.shape for name, turns in times.items()} == {"A": (2, 2), "B": (2, 2)}


def test_only_the_timed_calls_count():
    clock = Clock()
    # One to warm up, then (before, timed, timed) of each of two rounds.
    call = clock.call([0.04, 0.03, 0.01, 0.02, 0.03, 0.05, 0.06])
    times = take_turns({"A": call}, rounds=2, seconds=9, per_turn=2, warm_up=1, clock=clock)
    np.testing.assert_allclose(times["A"], [[0.01, 0.02], [0.05, 0.06]])


def test_a_long_call_is_made_once_a_turn():
    clock, log = Clock(), []
    long = clock.call(2 * rounds.LONG, log, "A")
    times = take_turns({"A": long}, rounds=3, seconds=9, per_turn=4, warm_up=2, clock=clock)
    assert len(log) == 2 + 3
    assert times["A"].shape == (3, 1)


def test_rounds_end_when_their_time_is_over_but_not_before_there_are_some():
    clock = Clock()
    take = clock.call(1.0)
    assert len(take_turns({"A": take}, rounds=100, seconds=20.5, clock=clock)["A"]) == 21
    assert len(take_turns({"A": take}, rounds=100, seconds=0, clock=clock)["A"]) == 5
    assert len(take_turns({"A": take}, rounds=3, seconds=0, clock=clock)["A"]) == 3


def test_garbage_is_not_collected_meanwhile():
    seen = []

    def look():
        seen.append(gc.isenabled())

    def fail():
        raise RuntimeError("broken")

    assert gc.isenabled()
    take_turns({"A": look}, rounds=1, seconds=0, warm_up=0)
    assert seen == [False] * 4
    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="broken"):
        take_turns({"A": fail}, rounds=1, seconds=0, warm_up=0)
    assert gc.isenabled()


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"rounds": 1, "per_turn": 0}])
def test_no_turns_are_refused(wrong):
    with pytest.raises(ValueError, match="is 0, it must be at least 1"):
        take_turns({}, seconds=1, **wrong)


def test_percentiles_are_of_all_calls():
    times = np.arange(101).reshape(101, 1) / 1e3
    assert percentiles(times) == {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99, "timed": 101}


def test_a_call_by_itself_is_timed_as_often_as_asked():
    calls = []
    found = percentiles_ms(lambda: calls.append(0), repeats=7, warm_up=2)
    assert len(calls) == 9
    assert found["repeats"] == 7
    assert 0 <= found["p50_ms"] <= found["p99_ms"]


def test_the_fastest_turn_is_judged_by_its_median():
    assert fastest(np.array([[1.0, 9.0, 9.0], [4.0, 5.0, 6.0]])) == 5


def test_disturbances_of_a_round_cancel_in_a_ratio():
    disturbed = np.random.default_rng(0).lognormal(sigma=1.0, size=(40, 1))
    times = np.tile(disturbed, (1, 3))
    found = ratio(3 * times, times)
    np.testing.assert_allclose([found.value, found.low, found.high], 3)


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        slow, fast = (m * rng.lognormal(sigma=0.3, size=(30, 3)) for m in (2.0, 1.0))
        found = ratio(slow, fast, resamples=300)
        held += found.low <= 2 <= found.high
    # Of 200 at 95 % fewer than 176 would be a 4.5 sigma event; 200 would mean useless intervals.
    assert 176 <= held < 200


def test_what_did_not_take_turns_has_no_ratio():
    with pytest.raises(ValueError, match="3 rounds of the one and 4 of the other"):
        ratio(np.ones((3, 1)), np.ones((4, 1)))
