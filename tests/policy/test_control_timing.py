"""Clocks keep their promises; percentiles equal hand-computed ones."""

import json

import pytest

from policy.control.clock import VirtualClock, WallClock
from policy.control.latency import Summary, TimingLog


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
        log.add_command(time=10.0 * episode + 1.0, due=10.0 * episode + 0.75)
        log.add_command(time=10.0 * episode + 2.0, due=10.0 * episode + 2.0)
    log.n_missed, log.n_held = 3, 1
    report = json.loads(json.dumps(log.report().to_json()))
    assert report["n_commands"] == 4
    assert (report["n_missed"], report["n_held"], report["n_unsafe"]) == (3, 1, 0)
    assert report["period"]["n"] == 2
    assert report["period"]["p50"] == 1.0
    assert report["latency"]["max"] == 0.25
    assert report["delay"]["mean"] == 0.125


def test_virtual_clock_moves_only_forwards():
    clock = VirtualClock(start=2.0)
    clock.sleep_until(3.5)
    clock.sleep_until(1.0)
    assert clock.now() == 3.5
    clock.advance(0.25)
    assert clock.now() == 3.75
    with pytest.raises(ValueError, match="-1"):
        clock.advance(-1.0)


@pytest.mark.parametrize("spin", [0.0, 0.001])
def test_wall_clock_never_returns_early(spin):
    clock = WallClock(spin=spin)
    deadline = clock.now() + 0.01
    clock.sleep_until(deadline)
    after = clock.now()
    assert after >= deadline
    clock.sleep_until(deadline)
    assert clock.now() >= after
