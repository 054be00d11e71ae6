"""What a control loop tells those who watch it, ten times a second, from a thread of its own.

It only reads what the control thread writes, and hands it to a policy server, which shows it on its
page. A planner that is no server has nobody who watches.
"""

import threading
from typing import Self

import numpy as np

from policy.control.governed import Governed
from policy.control.latency import TimingLog
from policy.serving.client import RemotePlanner
from policy.serving.errors import WireError
from policy.types import Planner

PERIOD = 0.1  # s
N_RECENT = 100  # ticks that are shown


class Telemetry:
    """Reports while it is open.

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

    def values(self) -> dict[str, float | int | str | list[float]]:
        """What is told; durations in milliseconds."""
        log, governed = self._log, self._governed
        refusals = sum(governed.governor.counts.values())
        fault = governed.fault
        return {
            "control_dt_ms": 1e3 * log.control_dt,
            "state": governed.state.value,
            "fault": fault.value if fault else "",
            "refusals": refusals,
            "commands": log.delays.n,
            "missed": log.n_missed,
            "stalls": log.n_stalls,
            "held": log.n_held,
            "failed": log.n_failed,
            "late": log.n_late,
            "period_ms": _recent(log.periods.newest(), 1e3),
            "command_delay_ms": _recent(log.delays.newest(), 1e3),
            "policy_latency_ms": _recent(log.latencies.newest(), 1e3),
            "seam_jump": _recent(log.seam_jumps.newest(), 1.0),
            "inner_jump": _recent(log.inner_jumps.newest(), 1.0),
            "age_ms": _recent(log.ages.newest(), 1e3),
        }

    def _work(self) -> None:
        assert isinstance(self._planner, RemotePlanner)
        while not self._ended.wait(PERIOD):
            try:
                self._planner.report(self.values())
            except WireError:  # What cannot be told is not worth stopping a robot for.
                return


def _recent(samples: np.ndarray, factor: float) -> list[float]:
    return (factor * samples[-N_RECENT:]).round(4).tolist()
