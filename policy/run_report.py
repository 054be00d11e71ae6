"""What `cadence run` tells of its episodes: a table of the timing, and one line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from policy.control.governed import Governed
from policy.control.latency import TimingLog
from policy.control.samples import Summary


@dataclass(frozen=True)
class Episode:
    """What became of one start on the robot.

    Args:
        seed: of the start and of the policy's noise.
        success: whether the task was done.
        ticks: control ticks that passed.
        clipped: commands that were moved to the robot's limits.
        mode: way taken, where the task has several; 0 is none.
        fault: what the governor stopped the robot for; "" for nothing.
    """

    seed: int
    success: bool
    ticks: int
    clipped: int
    mode: int
    fault: str = ""


def timing_table(log: TimingLog) -> str:
    """Period, latency, delay and age in milliseconds, and what was missed, for a terminal."""
    report = log.report()
    lines = [f"{'[ms]':<18}{'mean':>9}{'p50':>9}{'p95':>9}{'p99':>9}{'p99.9':>9}{'max':>9}"]
    for name, summary in (
        (f"period (want {1e3 * report.control_dt:g})", report.period),
        ("policy latency", report.latency),
        ("wake-up", report.wake),
        ("work to command", report.work),
        ("command delay", report.delay),
        ("  of it our own", report.own_delay),
        ("age at command", report.age),
    ):
        lines.append(f"{name:<18}{_milliseconds(summary)}")
    late = ", ".join(f"{n} x {ticks}" for ticks, n in report.delays.items()) or "none"
    lines += [
        f"commands {report.n_commands}  missed deadlines {report.n_missed} "
        f"({report.n_missed_stalled} by the system)  "
        f"stalls of the system {report.n_stalls}  held {report.n_held}",
        f"chunks late by [ticks]: {late}  later than reckoned {report.n_late}  "
        f"failed requests {report.n_failed}  refused chunks {report.n_unsafe}",
    ]
    return "\n".join(lines)


def _milliseconds(summary: Summary | None) -> str:
    if summary is None:
        return "  no samples"
    s = summary
    return "".join(f"{1e3 * value:>9.2f}" for value in (s.mean, s.p50, s.p95, s.p99, s.p999, s.max))


def refusals_of(governed: Governed) -> Mapping[str, int]:
    """How often the governor met each reason to send something else."""
    return {reason.value: n for reason, n in governed.governor.counts.items() if n}


def summary_line(governed: Governed, finished: Sequence[Episode]) -> str:
    """Successes, and what was changed on the way to the robot."""
    refusals = ", ".join(f"{reason} {n}" for reason, n in refusals_of(governed).items()) or "none"
    return (
        f"successes {sum(e.success for e in finished)} of {len(finished)} episodes, "
        f"commands clipped by the robot: {sum(e.clipped for e in finished)}, "
        f"changed by the governor: {refusals}"
    )
