"""One sampler call as fast as this machine makes it: candidates, compared and measured.

Every candidate computes the same function of tensors. It is compared with the plain one in fp32 on
some examples first, and refused where it is further off than a tolerance; of those that are left
the fastest is taken. The outcome is recorded, so that a later start measures nothing.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

# Tensors to tensors; the first results are what is waited for, on the host or on the device.
Call = Callable[..., Sequence[Tensor]]

# How far results (second) are off the plain ones (first), in shares of what matters.
Error = Callable[[Sequence[Tensor], Sequence[Tensor]], float]

WARM_UP = 3  # calls before the first that is measured
LEAST, MOST = 5, 300  # measured calls of each candidate


class UnavailableError(RuntimeError):
    """A candidate cannot be made here; the message says why and what would do."""


@dataclass(frozen=True)
class Candidate:
    """A way to compute the function.

    Args:
        name: as users call it.
        make: gives the call; may take long.
    """

    name: str
    make: Callable[[], Call]


@dataclass(frozen=True)
class Timing:
    """Warm, synchronised calls [s].

    Args:
        p50: median.
        p95: 95th percentile.
        p99: 99th percentile.
        n: measured calls.
    """

    p50: float
    p95: float
    p99: float
    n: int


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why.

    Args:
        name: of the candidate.
        call: computes the function.
        error: of its results, as of the error that was given.
        timings: candidate -> timing, in this start or an earlier one.
        notes: why others were not taken, a line each.
        is_recorded: whether the timings are of an earlier start.
    """

    name: str
    call: Call
    error: float
    timings: Mapping[str, Timing]
    notes: tuple[str, ...]
    is_recorded: bool


class Records:
    """Outcomes of earlier starts, a JSON file for each key.

    A file that is damaged, or cannot be written, costs a measurement and nothing else.

    Args:
        folder: of the files; made when it is needed.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def timings(self, key: str) -> dict[str, Timing]:
        """Candidate -> timing; empty where there is no record."""
        try:
            found = json.loads(self._path(key).read_text())
            return {str(name): _read(timing) for name, timing in found.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def write(self, key: str, timings: Mapping[str, Timing]) -> None:
        """Keep an outcome, in the place of an earlier one."""
        text = json.dumps({name: asdict(timing) for name, timing in timings.items()}, indent=2)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                written = Path(folder) / self._path(key).name
                written.write_text(text)
                os.replace(written, self._path(key))
        except OSError:
            return

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"


def choose(
    candidates: Sequence[Candidate],
    plain: Call,
    examples: Sequence[Sequence[Tensor]],
    *,
    error: Error,
    tolerance: float,
    is_named: bool = False,
    records: Records | None = None,
    key: str = "",
    remeasure: bool = False,
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """The fastest candidate that is right, or the plain call ("eager").

    Args:
        candidates: besides the plain call; at least one.
        plain: the function as it is, in fp32.
        examples: inputs, each of one call; at least one.
        error: of results.
        tolerance: largest error.
        is_named: whether the first candidate is taken however fast it is.
        records: of earlier starts; None: measure, and keep nothing.
        key: of the record; all that a timing depends on.
        remeasure: whether to measure even where there is a record, which is replaced.
        seconds: to measure each candidate for, about.
        clock: of the measurement [s].

    Raises:
        UnavailableError: the named candidate cannot be made, or is too far off.
    """
    expected = [_kept(plain(*example)) for example in examples]
    calls: dict[str, Call] = {"eager": plain}
    errors: dict[str, float] = {"eager": 0.0}
    notes: list[str] = []

    def make(candidate: Candidate) -> None:
        try:
            call = candidate.make()
            worst = compared(call, examples, expected, error=error, tolerance=tolerance)
        except UnavailableError as reason:
            if is_named:
                raise
            notes.append(f"not {candidate.name}: {reason}")
        else:
            calls[candidate.name], errors[candidate.name] = call, worst

    def chosen(timings: Mapping[str, Timing], *, is_recorded: bool) -> Choice:
        best = candidates[0].name if is_named else _fastest(timings)
        return Choice(best, calls[best], errors[best], timings, tuple(notes), is_recorded)

    known = records.timings(key) if records and not remeasure else {}
    if known.keys() >= {"eager", *(candidate.name for candidate in candidates)}:
        best = candidates[0].name if is_named else _fastest(known)
        for candidate in candidates:
            if candidate.name == best:
                make(candidate)
        if best in calls:
            return chosen(known, is_recorded=True)
        notes.clear()
    for candidate in candidates:
        make(candidate)
    timings = measure(calls, examples, seconds=seconds, clock=clock)
    if records:
        records.write(key, timings)
    return chosen(timings, is_recorded=False)


def _read(found: Mapping[str, float]) -> Timing:
    """A timing of a file; KeyError, TypeError or ValueError where it is none."""
    return Timing(*(float(found[name]) for name in ("p50", "p95", "p99")), n=int(found["n"]))


def _fastest(timings: Mapping[str, Timing]) -> str:
    return min(timings, key=lambda name: timings[name].p50)


def compared(
    call: Call,
    examples: Sequence[Sequence[Tensor]],
    expected: Sequence[Sequence[Tensor]],
    *,
    error: Error,
    tolerance: float,
) -> float:
    """The largest error of a call on the examples.

    Args:
        call: of a candidate.
        examples: inputs, each of one call.
        expected: the results of the plain call.
        error: of results.
        tolerance: largest error.

    Raises:
        UnavailableError: the error is larger, or no number.
    """
    errors = [
        error(plain, _kept(call(*example)))
        for example, plain in zip(examples, expected, strict=True)
    ]
    # A maximum would lose what is no number.
    worst = next((e for e in errors if not e <= tolerance), max(errors))
    if worst != worst:
        raise UnavailableError(
            "its results or those of the plain network are no numbers: check the checkpoint "
            "(cadence doctor)"
        )
    if not worst <= tolerance:
        raise UnavailableError(
            f"its actions are off by {100 * worst:.3g} % of their range from those of the plain "
            f"network, the tolerance is {100 * tolerance:g} %: give engine.weights=fp32, or a "
            f"larger engine.tolerance"
        )
    return worst


def measure(
    calls: Mapping[str, Call],
    examples: Sequence[Sequence[Tensor]],
    *,
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """How long each call takes until its first result is on the host.

    All take turns, so that a load of the machine that comes and goes meets all of them.

    Args:
        calls: by name.
        examples: inputs, each of one call, in turn.
        seconds: to measure each for, about.
        clock: monotonic [s].
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for i in range(WARM_UP):
            call(*examples[i % len(examples)])[0].cpu()
    for i in range(MOST):
        example = examples[i % len(examples)]
        for name, call in calls.items():
            # What is slow has had its time sooner.
            if i >= LEAST and sum(times[name]) > seconds:
                continue
            start = clock()
            call(*example)[0].cpu()
            times[name].append(clock() - start)
    return {name: _timing(of_call) for name, of_call in times.items()}


def _timing(times: Sequence[float]) -> Timing:
    p50, p95, p99 = (float(p) for p in np.percentile(times, [50, 95, 99]))
    return Timing(p50, p95, p99, len(times))


def _kept(results: Sequence[Tensor]) -> list[Tensor]:
    """Results that a later call does not write to."""
    return [result.detach().clone() for result in results]
