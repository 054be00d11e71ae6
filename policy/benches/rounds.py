"""Timing several calls fairly: they take turns, so that whatever disturbs hits all alike.

A round is one turn of each contestant (A B C, A B C, ...), a turn one call that is not timed, which
brings its weights back into the caches, and some that are; of a long call one that is timed will
do. Python's garbage collector is off meanwhile. Ratios are of medians over rounds, and their
intervals come from drawing rounds, not calls: calls of one turn share their disturbances.

Shape legend: `R` rounds, `n` timed calls of a turn.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

Call = Callable[[], object]
LEAST_ROUNDS = 5  # however long they take
LONG = 0.05  # s; a call that takes longer brings its weights back itself


@dataclass(frozen=True)
class Interval:
    """An estimate with the interval that holds the true value about 95 times in a hundred.

    It does so of tens of rounds; of a handful it is too narrow, and of one it is a point.
    """

    value: float
    low: float
    high: float


def take_turns(
    contestants: Mapping[str, Call],
    *,
    rounds: int,
    seconds: float,
    per_turn: int = 3,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Seconds [R, n] of each contestant's calls; of long ones n is 1.

    Args:
        contestants: name -> a call that returns when its result is there.
        rounds: most rounds, R.
        seconds: after which no further round begins, once there are `LEAST_ROUNDS` (or `rounds`).
        per_turn: timed calls of a turn, n.
        warm_up: calls of each contestant before the first round.
        clock: what time it is [s].

    Raises:
        ValueError: there is no round, or no timed call in one.
    """
    for name, count in (("rounds", rounds), ("per_turn", per_turn)):
        if count < 1:
            raise ValueError(f"{name} is {count}, it must be at least 1")
    # Calls of each turn that are not timed, and that are.
    turns = {name: _shape(call, per_turn, warm_up, clock) for name, call in contestants.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in contestants}
    start = clock()
    with without_garbage_collection():
        for done in range(rounds):
            if done >= LEAST_ROUNDS and clock() - start >= seconds:
                break
            for name, call in contestants.items():
                times[name].append(_turn(call, *turns[name], clock))
    return {name: np.array(turns) for name, turns in times.items()}


def _shape(call: Call, per_turn: int, warm_up: int, clock: Callable[[], float]) -> tuple[int, int]:
    """Calls of a turn that are not timed, and that are, by how long a warm one takes."""
    last = 0.0
    for _ in range(warm_up):
        start = clock()
        call()
        last = clock() - start
    return (0, 1) if last > LONG else (1, per_turn)


def _turn(call: Call, n_before: int, n: int, clock: Callable[[], float]) -> list[float]:
    for _ in range(n_before):
        call()
    durations = []
    for _ in range(n):
        start = clock()
        call()
        durations.append(clock() - start)
    return durations


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collect garbage now, and not within."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def percentiles(times: np.ndarray) -> dict[str, float]:
    """Median, 95th and 99th percentile [ms] of all calls, and how many they are.

    Args:
        times: [R, n] seconds.
    """
    p50, p95, p99 = (float(ms) for ms in 1e3 * np.percentile(times, [50, 95, 99]))
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "timed": times.size}


def percentiles_ms(call: Call, *, repeats: int, warm_up: int = 5) -> dict[str, float]:
    """`percentiles` of one call that has nobody to take turns with, and `repeats`."""
    for _ in range(warm_up):
        call()
    with without_garbage_collection():
        times = np.array([_turn(call, 0, repeats, time.perf_counter)])
    found = percentiles(times)
    return {name: found[name] for name in ("p50_ms", "p95_ms", "p99_ms")} | {"repeats": repeats}


def fastest(times: np.ndarray) -> float:
    """The fastest turn's median call [s]: what is possible here, disturbances aside.

    Args:
        times: [R, n] seconds.
    """
    return float(np.median(times, axis=1).min())


def ratio(slow: np.ndarray, fast: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """How many times as long the one takes as the other, medians over the same rounds.

    Args:
        slow: [R, n] seconds.
        fast: [R, m] seconds, of the same rounds.
        resamples: draws of R rounds, for the interval.
        seed: of the draws.

    Raises:
        ValueError: they did not take turns.
    """
    if len(slow) != len(fast):
        raise ValueError(
            f"{len(slow)} rounds of the one and {len(fast)} of the other: compare what took turns"
        )
    a, b = np.median(slow, axis=1), np.median(fast, axis=1)
    rounds = np.random.default_rng(seed).integers(len(a), size=(resamples, len(a)))
    drawn = np.median(a[rounds], axis=1) / np.median(b[rounds], axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(np.median(a) / np.median(b)), float(low), float(high))
