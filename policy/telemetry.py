"""What a control loop tells those who watch it, ten times a second, from a thread of its own.

It only reads what the control thread writes, and hands it to a policy server, which shows it on its
page. A planner that is no server has nobody who watches.
"""

import logging
import math
import threading
from collections.abc import Sequence
from typing import Self

import numpy as np

from policy.control.course import Waypoint
from policy.control.governed import Governed
from policy.control.latency import TimingLog
from policy.control.samples import Samples
from policy.serving.client import RemotePlanner
from policy.serving.errors import WireError
from policy.serving.messages import Value
from policy.serving.wire import MAX_LIST
from policy.types import Planner

log = logging.getLogger(__name__)

PERIOD = 0.1  # s
N_SHOWN = 100  # Newest samples of each kind, as a curve.
N_JUDGED = 1000  # Newest samples of each kind, for their percentiles.
N_TICKS = 50  # That the course is told of: so many back, and so many ahead.
MAX_NUMBERS = 1000  # Of actions sent, and of actions planned; less than a list may hold.
TINY = 1e-9  # Numbers are told to so many digits of this at least.
DIGITS = 5  # Of the largest number of a list; more cannot be seen.


class Telemetry:
    """Reports while it is open, and once more when it ends.

    Args:
        planner: told, if it is a policy server.
        governed: whose state and refusals are told.
        log: whose newest samples are told.
    """

    def __init__(self, planner: Planner, governed: Governed, log: TimingLog):
        self._planner, self._governed, self._log = planner, governed, log
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        if isinstance(self._planner, RemotePlanner):
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def values(self) -> dict[str, Value]:
        """What is told; durations in milliseconds, what is not known left out."""
        log = self._log
        values = self._state() | _delays(log.delays_in_ticks)
        for name, samples, factor in (
            ("period_ms", log.periods, 1e3),
            ("command_delay_ms", log.delays, 1e3),
            ("policy_latency_ms", log.latencies, 1e3),
            ("age_ms", log.ages, 1e3),
            ("seam_jump", log.seam_jumps, 1.0),
            ("inner_jump", log.inner_jumps, 1.0),
        ):
            values |= _distribution(name, samples, factor)
        n_ticks = min(N_TICKS, MAX_NUMBERS // self._governed.contract.action.size)
        return (
            values
            | _course("sent", log.course.sent(n_ticks))
            | _course("planned", log.course.planned(n_ticks))
        )

    def _state(self) -> dict[str, Value]:
        """What the governor says, and what was counted."""
        log, governed = self._log, self._governed
        fault, counts = governed.fault, governed.governor.counts
        return {
            "control_dt_ms": 1e3 * log.control_dt,
            "state": governed.state.value,
            "fault": "" if fault is None else fault.value,
            "refusals": sum(counts.values()),
            **{f"refused_{reason.name.lower()}": n for reason, n in counts.items() if n},
            "commands": log.delays.n,
            "missed": log.n_missed,
            "stalls": log.n_stalls,
            "held": log.n_held,
            "failed": log.n_failed,
            "late": log.n_late,
        }

    def _work(self) -> None:
        assert isinstance(self._planner, RemotePlanner)
        is_over = False
        while not is_over:
            is_over = self._ended.wait(PERIOD)
            try:
                self._planner.report(self.values())
            except WireError as error:  # What cannot be told is not worth stopping a robot for.
                log.warning("nothing more is told to those who watch: %s", error)
                return


def _distribution(name: str, samples: Samples, factor: float) -> dict[str, Value]:
    """The newest samples, as a curve and summed up."""
    newest = factor * samples.last(N_JUDGED)
    newest = newest[np.isfinite(newest)]
    if not len(newest):
        return {}
    p50, p99, largest = np.percentile(newest, (50, 99, 100)).tolist()
    return {
        name: _numbers(newest[-N_SHOWN:]),
        f"{name}_p50": p50,
        f"{name}_p99": p99,
        f"{name}_max": largest,
    }


def _delays(delays_in_ticks: dict[int, int]) -> dict[str, Value]:
    """How many chunks came so many ticks after what they were planned from."""
    pairs = sorted(dict(delays_in_ticks).items())[:MAX_LIST]
    return {
        "delay_ticks": [float(ticks) for ticks, _ in pairs],
        "delay_counts": [float(n) for _, n in pairs],
    }


def _course(name: str, points: Sequence[Waypoint]) -> dict[str, Value]:
    """Actions tick after tick, all elements of each, and the ticks at which chunks begin."""
    if not points:
        return {}
    return {
        f"{name}_ticks": [float(point.tick) for point in points],
        f"{name}_actions": _numbers(np.concatenate([point.action for point in points])),
        f"{name}_seams": [float(point.tick) for point in points if point.is_seam],
    }


def _numbers(values: np.ndarray) -> list[float]:
    """Numbers with as many decimals as the largest of them needs for `DIGITS` digits."""
    largest = float(np.abs(values).max())
    decimals = DIGITS - 1 - math.floor(math.log10(max(largest, TINY)))
    return np.round(values, decimals).tolist()
