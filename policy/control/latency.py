"""What the timing of a control loop was: periods, latencies, delays, missed deadlines."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Summary:
    """Distribution of durations [s], percentiles interpolated linearly between samples."""

    n: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self | None:
        """Summary of durations [s]; None where there are none."""
        if len(samples) == 0:
            return None
        p50, p95, p99 = (float(p) for p in np.percentile(samples, (50, 95, 99)))
        return cls(len(samples), float(np.mean(samples)), p50, p95, p99, float(max(samples)))


@dataclass(frozen=True)
class TimingReport:
    """Timing of one or several episodes.

    Args:
        control_dt: wanted period [s].
        n_commands: ticks a command was sent in time for, holding included.
        n_missed: control ticks that ended without a command sent for them.
        n_held: commands that held still because the plan did not reach their tick.
        n_unsafe: chunks refused because a number was not finite or the shape was wrong.
        period: from one command to the next.
        latency: of one call of the policy.
        delay: from the begin of a tick to its command.
    """

    control_dt: float
    n_commands: int
    n_missed: int
    n_held: int
    n_unsafe: int
    period: Summary | None
    latency: Summary | None
    delay: Summary | None

    def to_json(self) -> dict:
        """JSON form; durations in seconds."""
        return asdict(self)


@dataclass
class TimingLog:
    """Collects what a control loop does; kept by the caller, so it outlives an interrupted loop.

    Args:
        control_dt: wanted period [s].
    """

    control_dt: float
    periods: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    n_missed: int = 0
    n_held: int = 0
    n_unsafe: int = 0
    _last_command: float | None = None

    def start_episode(self) -> None:
        """The time since the last command of another episode is not a period."""
        self._last_command = None

    def add_latency(self, seconds: float) -> None:
        """The policy was called and took so long."""
        self.latencies.append(seconds)

    def add_command(self, *, time: float, due: float) -> None:
        """A command was sent at `time` [s] for the tick that began at `due` [s]."""
        if self._last_command is not None:
            self.periods.append(time - self._last_command)
        self._last_command = time
        self.delays.append(time - due)

    def report(self) -> TimingReport:
        """Summary of everything so far."""
        return TimingReport(
            control_dt=self.control_dt,
            n_commands=len(self.delays),
            n_missed=self.n_missed,
            n_held=self.n_held,
            n_unsafe=self.n_unsafe,
            period=Summary.of(self.periods),
            latency=Summary.of(self.latencies),
            delay=Summary.of(self.delays),
        )
