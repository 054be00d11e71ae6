"""What a control loop did in time: periods, latencies, ages, delays, seams, missed deadlines."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from policy.control.course import Course
from policy.control.samples import Samples, Summary

# A tick in which the operating system keeps control from running for longer is a stall [s].
STALL = 0.002
ROUNDING = 1e-6  # Part of a tick by which sums of times are off.


@dataclass(frozen=True)
class TimingReport:
    """Timing of one or several episodes.

    Args:
        control_dt: wanted period [s].
        n_commands: ticks a command was sent in time for, holding included.
        n_missed: control ticks that ended without a command sent for them.
        n_missed_stalled: those that would not have been, had the operating system kept nothing.
        n_stalls: commands from which the operating system kept more than 2 ms (`control.stall`).
        n_held: ticks that the plan did not reach, so that the robot came to a hold.
        n_unsafe: chunks refused because a number was not finite or the shape was wrong.
        n_failed: requests that brought no plan.
        n_late: chunks that came later than reckoned with.
        delays: control ticks from a request's observation until its chunk was there -> how often.
        period: from one command to the next [s].
        latency: from a request to its reply [s].
        wake: from the begin of a tick until the loop ran [s].
        work: from there to the command [s].
        delay: from the begin of a tick to its command [s].
        own_delay: the same less what the operating system kept from control [s].
        age: of the observation that an action was planned from, when it was sent [s].
        seam_jump: between actions where a new chunk begins, root mean square over the elements, as
            a share of their range.
        inner_jump: the same within a chunk.
    """

    control_dt: float
    n_commands: int
    n_missed: int
    n_missed_stalled: int
    n_stalls: int
    n_held: int
    n_unsafe: int
    n_failed: int
    n_late: int
    delays: Mapping[int, int]
    period: Summary | None
    latency: Summary | None
    wake: Summary | None
    work: Summary | None
    delay: Summary | None
    own_delay: Summary | None
    age: Summary | None
    seam_jump: Summary | None
    inner_jump: Summary | None

    def to_json(self) -> dict:
        """JSON form; durations in seconds."""
        delays = {str(ticks): n for ticks, n in self.delays.items()}  # JSON's keys are texts.
        return asdict(self) | {"delays": delays}


@dataclass
class TimingLog:
    """Collects what a control loop does; kept by the caller, so it outlives an interrupted loop.

    Its memory does not grow: summaries are of the last 100,000 samples of each kind.

    Args:
        control_dt: wanted period [s].
        course: what was sent in the last ticks of the episode, and what is planned.
    """

    control_dt: float
    periods: Samples = field(default_factory=Samples)
    latencies: Samples = field(default_factory=Samples)
    wakes: Samples = field(default_factory=Samples)
    works: Samples = field(default_factory=Samples)
    delays: Samples = field(default_factory=Samples)
    own_delays: Samples = field(default_factory=Samples)
    ages: Samples = field(default_factory=Samples)
    seam_jumps: Samples = field(default_factory=Samples)
    inner_jumps: Samples = field(default_factory=Samples)
    delays_in_ticks: Counter[int] = field(default_factory=Counter)
    course: Course = field(default_factory=Course)
    n_missed: int = 0
    n_missed_stalled: int = 0
    n_stalls: int = 0
    n_held: int = 0
    n_unsafe: int = 0
    n_failed: int = 0
    n_late: int = 0
    _last_command: float | None = None

    def start_episode(self) -> None:
        """The time since the last command of another episode is not a period."""
        self._last_command = None

    def add_latency(self, seconds: float) -> None:
        """The policy was asked and took so long."""
        self.latencies.add(seconds)

    def add_delay(self, n_ticks: int, *, reckoned: int) -> None:
        """A chunk came `n_ticks` after its observation, when it was reckoned after `reckoned`."""
        self.delays_in_ticks[n_ticks] += 1
        self.n_late += n_ticks > reckoned

    def add_missed(self, n_ticks: int, *, passed: float, kept: float) -> None:
        """Ticks ended without a command.

        Args:
            n_ticks: how many.
            passed: time since the begin of the first of them [s].
            kept: part of that which the operating system kept from control [s].
        """
        self.n_missed += n_ticks
        n_own = math.floor((passed - kept) / self.control_dt + ROUNDING)
        self.n_missed_stalled += max(n_ticks - max(n_own, 0), 0)

    def add_command(self, *, time: float, due: float, woken: float, kept: float) -> None:
        """A command was sent.

        Args:
            time: when [s].
            due: begin of its tick [s].
            woken: when the loop woke up for it [s].
            kept: what the operating system kept from control until then [s]; where ticks were
                missed, part of it is before `due`.
        """
        if self._last_command is not None:
            self.periods.add(time - self._last_command)
        self._last_command = time
        self.wakes.add(woken - due)
        self.works.add(time - woken)
        self.delays.add(time - due)
        self.own_delays.add(max(time - due - kept, 0.0))
        self.n_stalls += kept > STALL

    def add_jump(self, size: float, *, is_seam: bool) -> None:
        """Two actions one tick apart differ by `size`."""
        (self.seam_jumps if is_seam else self.inner_jumps).add(size)

    def report(self) -> TimingReport:
        """Summary of everything so far."""
        return TimingReport(
            control_dt=self.control_dt,
            n_commands=self.delays.n,
            n_missed=self.n_missed,
            n_missed_stalled=self.n_missed_stalled,
            n_stalls=self.n_stalls,
            n_held=self.n_held,
            n_unsafe=self.n_unsafe,
            n_failed=self.n_failed,
            n_late=self.n_late,
            delays=dict(sorted(self.delays_in_ticks.items())),
            period=self.periods.summary(),
            latency=self.latencies.summary(),
            wake=self.wakes.summary(),
            work=self.works.summary(),
            delay=self.delays.summary(),
            own_delay=self.own_delays.summary(),
            age=self.ages.summary(),
            seam_jump=self.seam_jumps.summary(),
            inner_jump=self.inner_jumps.summary(),
        )
