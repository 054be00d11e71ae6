"""Candidates are compared with the plain call, timed by a clock of the test, and recorded."""

import json
import math

import pytest
import torch

from policy.control.engine import Candidate, Records, Timing, UnavailableError, choose

EXAMPLES = [[torch.tensor([1.0, 2.0])], [torch.tensor([3.0, -1.0])]]


class Clock:
    """Moves by what calls take."""

    def __init__(self):
        self.now, self.n_calls = 0.0, {}

    def __call__(self):
        return self.now

    def call(self, name, seconds, function=lambda x: 2 * x):
        def timed(x):
            self.now += seconds
            self.n_calls[name] = self.n_calls.get(name, 0) + 1
            return [function(x)]

        return timed

    def candidate(self, name, seconds, function=lambda x: 2 * x):
        return Candidate(name, lambda: self.call(name, seconds, function))


def error(plain, other):
    return float((plain[0] - other[0]).abs().amax())


def chosen(clock, *candidates, **settings):
    settings = {"error": error, "tolerance": 0.1, "clock": clock, **settings}
    return choose(candidates, clock.call("eager", 0.010), EXAMPLES, **settings)


def unavailable():
    raise UnavailableError("there is no compiler")


def test_the_fastest_is_taken():
    clock = Clock()
    choice = chosen(clock, clock.candidate("a", 0.004), clock.candidate("b", 0.002))
    assert choice.name == "b"
    assert choice.call(torch.ones(1))[0] == 2
    assert {name: timing.p50 for name, timing in choice.timings.items()} == pytest.approx(
        {"eager": 0.010, "a": 0.004, "b": 0.002}
    )
    assert choice.notes == ()
    assert not choice.is_recorded


def test_the_plain_call_stays_where_it_is_the_fastest():
    clock = Clock()
    assert chosen(clock, clock.candidate("slow", 0.020)).name == "eager"


def test_a_named_candidate_is_taken_however_slow():
    clock = Clock()
    assert chosen(clock, clock.candidate("slow", 0.020), is_named=True).name == "slow"


def test_what_is_wrong_is_refused_and_said():
    clock = Clock()
    wrong = clock.candidate("wrong", 0.001, lambda x: 2 * x + torch.tensor([0.0, 0.25]))
    choice = chosen(clock, wrong, clock.candidate("right", 0.005, lambda x: 2 * x + 0.05))
    assert choice.name == "right"
    assert choice.error == pytest.approx(0.05, abs=1e-6)
    (note,) = choice.notes
    assert note.startswith("not wrong: its actions are off by 25 % of their range")
    assert "tolerance is 10 %" in note
    with pytest.raises(UnavailableError, match="off by 25 %"):
        chosen(clock, wrong, is_named=True)


def test_an_error_that_is_no_number_is_refused():
    clock = Clock()
    broken = clock.candidate("broken", 0.001, lambda x: torch.where(x > 2.5, math.nan, 2 * x))
    choice = chosen(clock, broken)
    assert choice.name == "eager"
    assert "are no numbers: check the checkpoint" in choice.notes[0]
    # The last example being right does not help.
    first = clock.candidate("broken", 0.001, lambda x: torch.where(x == 2, math.nan, 2 * x))
    assert chosen(clock, first).name == "eager"


def test_what_cannot_be_made_is_said():
    clock = Clock()
    choice = chosen(clock, Candidate("gone", unavailable), clock.candidate("a", 0.001))
    assert choice.name == "a"
    assert choice.notes == ("not gone: there is no compiler",)
    with pytest.raises(UnavailableError, match="there is no compiler"):
        chosen(clock, Candidate("gone", unavailable), is_named=True)


def test_a_candidate_that_writes_over_its_results_is_compared_by_what_it_gave():
    clock, kept = Clock(), torch.zeros(2)
    choice = chosen(clock, clock.candidate("a", 0.001, lambda x: kept.copy_(2 * x)))
    assert choice.name == "a"
    assert choice.error == 0


def test_a_slow_call_is_measured_a_few_times_only():
    clock = Clock()
    chosen(clock, clock.candidate("slow", 7.0), clock.candidate("quick", 0.001), seconds=0.2)
    # Two examples compared, three to warm up, and five measured.
    assert clock.n_calls["slow"] == 2 + 3 + 5
    assert clock.n_calls["quick"] == pytest.approx(2 + 3 + 200, abs=2)


def test_a_choice_is_recorded_and_taken_up_without_measuring(tmp_path):
    records, clock = Records(tmp_path / "made"), Clock()
    candidates = (clock.candidate("a", 0.004), clock.candidate("b", 0.002))
    first = chosen(clock, *candidates, records=records, key="k")
    later = Clock()
    never = Candidate("a", lambda: pytest.fail("what is not taken is not made"))
    again = chosen(later, never, later.candidate("b", 0.5), records=records, key="k")
    assert again.name == "b"
    assert again.is_recorded
    assert again.timings == first.timings
    assert later.n_calls["b"] == len(EXAMPLES)  # It is compared all the same.
    other = chosen(clock, *candidates, records=records, key="another")
    assert not other.is_recorded


def test_measuring_again_replaces_the_record(tmp_path):
    records, clock = Records(tmp_path), Clock()
    chosen(clock, clock.candidate("a", 0.004), records=records)
    slow = clock.candidate("a", 0.5)
    assert chosen(clock, slow, records=records, remeasure=True).name == "eager"
    again = chosen(clock, slow, records=records)
    assert again.is_recorded
    assert again.name == "eager"


def test_a_record_is_not_taken_up_where_its_choice_fails_now(tmp_path):
    records, clock = Records(tmp_path), Clock()
    chosen(clock, clock.candidate("a", 0.004), clock.candidate("b", 0.002), records=records)
    choice = chosen(
        clock, clock.candidate("a", 0.004), Candidate("b", unavailable), records=records
    )
    assert choice.name == "a"
    assert not choice.is_recorded
    assert choice.notes == ("not b: there is no compiler",)


NO_NUMBER = '{"a": {"p50": "quick", "p95": 1, "p99": 1, "n": 1}}'
NONE = '{"a": {"p50": null, "p95": 1, "p99": 1, "n": 1}}'


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 3}', '{"a": {"p50": 1}}', NO_NUMBER, NONE])
def test_a_damaged_record_is_as_none(tmp_path, text):
    (tmp_path / "k.json").write_text(text)
    assert Records(tmp_path).timings("k") == {}


def test_a_record_is_readable_and_one_that_cannot_be_written_is_no_error(tmp_path):
    timing = Timing(p50=0.1, p95=0.2, p99=0.3, n=7)
    Records(tmp_path).write("k", {"a": timing})
    assert json.loads((tmp_path / "k.json").read_text())["a"]["p50"] == 0.1
    assert Records(tmp_path).timings("k") == {"a": timing}
    assert [path.name for path in tmp_path.iterdir()] == ["k.json"]
    (tmp_path / "file").write_text("")
    Records(tmp_path / "file").write("k", {"a": timing})
    assert Records(tmp_path / "file").timings("k") == {}
