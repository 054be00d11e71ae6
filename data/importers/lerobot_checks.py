"""What the rows of a LeRobot episode are held against: counting, the rate, their statistics.

Shape legend: `L` steps of an episode.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from data.importers.importer import ImporterError
from data.importers.lerobot_meta import EpisodeEntry
from data.lerobot_layout import Feature

FLOAT32 = float(np.finfo(np.float32).eps)
EPISODE_BYTES = 32 * 1024**3  # more is no episode, but a file made to fill the memory


def check_size(entry: EpisodeEntry, features: Iterable[Feature]) -> None:
    """Raise ImporterError where an episode would take more memory than any has."""
    step_bytes = sum(
        math.prod(feature.shape) * (1 if feature.is_picture else np.dtype(feature.dtype).itemsize)
        for feature in features
    )
    if entry.n_steps * step_bytes > EPISODE_BYTES:
        raise ImporterError(
            f"{entry.table}: episode {entry.number} would have {entry.n_steps} steps and "
            f"{entry.n_steps * step_bytes / 1e9:.0f} GB, an episode may have "
            f"{EPISODE_BYTES / 1e9:.0f} GB: the data set is damaged, or take less of it with "
            f"take=[...]"
        )


def check_count(entry: EpisodeEntry, rows: Mapping[str, np.ndarray]) -> None:
    """Raise ImporterError unless the rows are those of the episode, in order.

    Args:
        entry: where the episode is.
        rows: column -> [L, ...].
    """
    steps = np.arange(entry.n_steps)
    expected = {
        "episode_index": np.full(entry.n_steps, entry.number),
        "frame_index": steps,
        "index": entry.first_index + steps,
    }
    for key, values in expected.items():
        found = rows[key][:, 0]
        if not np.array_equal(found, values):
            step = int(np.argmax(found != values))
            raise ImporterError(
                f"{entry.table}: {key} is {found[step]} in step {step} of episode "
                f"{entry.number}, it must be {values[step]}: rows are missing or out of order; "
                f"copy or download the data set again"
            )


def check_rate(
    entry: EpisodeEntry, rows: Mapping[str, np.ndarray], *, fps: float, tolerance: float
) -> None:
    """Raise ImporterError unless the steps follow each other at the rate.

    Args:
        entry: where the episode is.
        rows: column -> [L, ...].
        fps: the rate [1/s].
        tolerance: of the time between two steps [s].
    """
    times = rows["timestamp"][:, 0].astype(np.float64)
    # Times are float32, whose own rounding grows with the time.
    slack = tolerance + 2 * float(np.spacing(np.float32(np.abs(times).max())))
    apart = np.diff(times)
    is_bad = ~(np.abs(apart - 1 / fps) <= slack)
    if not np.isfinite(times[0]) or is_bad.any():
        step = int(np.argmax(is_bad)) if len(apart) else 0
        found = f"{apart[step]:.6g} s pass after it" if len(apart) else f"its time is {times[0]}"
        raise ImporterError(
            f"{entry.table}: step {step} of episode {entry.number}: {found}, but {fps:g} steps a "
            f"second are {1 / fps:.6g} s apart: allow it with format.tolerance_s=..., or resample "
            f"the data set"
        )


def check_statistics(
    entry: EpisodeEntry, rows: Mapping[str, np.ndarray], said: Mapping[str, Mapping[str, object]]
) -> None:
    """Raise ImporterError where numbers are not what the episode's statistics say.

    Statistics that are missing, not finite or of another shape say nothing.

    Args:
        entry: where the episode is.
        rows: column -> [L, ...].
        said: column -> "min", "max", "mean" -> numbers.
    """
    for key, statistics in said.items():
        values = rows[key].astype(np.float64)
        size = np.maximum(np.abs(values).max(axis=0), np.finfo(np.float32).tiny)
        found = {"min": values.min(axis=0), "max": values.max(axis=0), "mean": values.mean(axis=0)}
        for name, number in found.items():
            stated = _as_numbers(statistics.get(name), number.shape)
            # LeRobot adds up float32 numbers one by one.
            rounding = FLOAT32 * (len(values) + 8 if name == "mean" else 1)
            if stated is not None and (np.abs(number - stated) > rounding * size).any():
                raise ImporterError(
                    f"{entry.table}: {key} of episode {entry.number} has the {name} "
                    f"{_shown(number)}, but {entry.described} says {_shown(stated)}: the numbers "
                    f"were changed, or the statistics are not theirs; copy or download the data "
                    f"set again, or believe the numbers with format.verify=false"
                )


def _as_numbers(stated: object, shape: tuple[int, ...]) -> np.ndarray | None:
    """Statistics as an array, None where they say nothing."""
    try:
        numbers = np.asarray(stated, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if numbers.shape == shape and np.isfinite(numbers).all() else None


def _shown(numbers: np.ndarray) -> str:
    return np.array2string(numbers, precision=6, threshold=8)
