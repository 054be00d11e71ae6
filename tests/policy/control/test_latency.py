"""Percentiles equal hand-computed ones; memory does not grow."""

import json

import pytest

from policy.control.latency import TimingLog
from policy.control.samples import Samples, Summary


def test_percentiles_interpolate_linearly_between_order_statistics():
    # 0..100 in a scrambled order: percentile p is p. One more sample, 1000, moves rank p to
    # p/100 * 101, so p99 lies at rank 99.99 = 99 + 0.99 * (100 - 99).
    samples = [float((37 * i) % 101) for i in range(101)]
    summary = Summary.of(samples)
    assert summary is not None
    assert (summary.n, summary.mean, summary.max) == (101, 50.0, 100.0)
    assert (summary.p50, summary.p95, summary.p99) == pytest.approx((50.0, 95.0, 99.0))
    longer = Summary.of([*samples, 1000.0])
    assert longer is not None
    assert longer.p99 == pytest.approx(99.99)


def test_no_samples_have_no_summary():
    assert Summary.of([]) is None


def test_report_is_json_and_counts_what_was_logged():
    log = TimingLog(0.5)
    for episode in range(2):
        log.start_episode()
        log.add_latency(0.25)
        log.add_command(
            time=10.0 * episode + 1.0,
            due=10.0 * episode + 0.75,
            woken=10 * episode + 0.875,
            kept=0.0625,
        )
        log.add_command(
            time=10.0 * episode + 2.0, due=10.0 * episode + 2.0, woken=10 * episode + 2.0, kept=0.0
        )
    log.n_missed, log.n_held = 3, 1
    report = json.loads(json.dumps(log.report().to_json()))
    assert report["n_commands"] == 4
    assert (report["n_missed"], report["n_held"], report["n_unsafe"]) == (3, 1, 0)
    assert report["period"]["n"] == 2
    assert report["period"]["p50"] == 1.0
    assert report["latency"]["max"] == 0.25
    assert report["delay"]["mean"] == 0.125
    assert (report["wake"]["max"], report["work"]["max"]) == (0.125, 0.125)
    assert report["n_stalls"] == 2  # Of 0.0625 s each.
    assert report["own_delay"]["max"] == 0.25 - 0.0625


@pytest.mark.parametrize(
    ("passed", "kept", "stalled"),
    [
        (1.25, 0.0, 0),  # Two ticks of half a second are over, by our own doing.
        (1.25, 0.5, 1),  # Without what was kept, 0.75 s: one would be.
        (1.25, 1.0, 2),
        (1.25, 1.25, 2),
        (1.0, 0.0, 0),
    ],
)
def test_a_missed_tick_is_the_system_s_if_it_had_not_been_without_the_stall(passed, kept, stalled):
    log = TimingLog(0.5)
    log.add_missed(2, passed=passed, kept=kept)
    assert (log.n_missed, log.n_missed_stalled) == (2, stalled)


def test_what_was_kept_before_a_late_tick_is_not_taken_off_its_delay():
    log = TimingLog(0.5)
    # Kept for 1.25 s from the begin of a tick: the third one is commanded a quarter into it.
    log.add_command(time=1.25, due=1.0, woken=1.25, kept=1.25)
    report = log.report()
    assert report.own_delay is not None
    assert (report.own_delay.max, report.n_stalls) == (0.0, 1)


def test_delays_are_counted_in_ticks_and_late_is_what_was_not_reckoned_with():
    log = TimingLog(0.5)
    for n_ticks in (0, 2, 2, 3):
        log.add_delay(n_ticks, reckoned=2)
    report = log.report()
    assert report.delays == {0: 1, 2: 2, 3: 1}
    assert report.n_late == 1


def test_r3_samples_keep_the_newest_in_order_and_their_memory():
    samples = Samples(capacity=4)
    for number in range(3):
        samples.add(number)
    assert samples.newest().tolist() == [0, 1, 2]
    for number in range(3, 11):
        samples.add(number)
    assert samples.newest().tolist() == [7, 8, 9, 10]
    assert [samples.last(n).tolist() for n in (0, 2, 9)] == [[], [9, 10], [7, 8, 9, 10]]
    assert samples.n == 11
    summary = samples.summary()
    assert summary is not None
    assert (summary.mean, summary.max) == (8.5, 10)
