"""Numbers of a control loop, kept in memory that does not grow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Summary:
    """Distribution of numbers, percentiles interpolated linearly between samples."""

    n: int
    mean: float
    p50: float
    p95: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, samples: Sequence[float] | np.ndarray) -> Self | None:
        """Summary of numbers; None where there are none."""
        if len(samples) == 0:
            return None
        p50, p95, p99, p999 = (float(p) for p in np.percentile(samples, (50, 95, 99, 99.9)))
        mean, largest = float(np.mean(samples)), float(np.max(samples))
        return cls(len(samples), mean, p50, p95, p99, p999, largest)


class Samples:
    """The last numbers of a series.

    Args:
        capacity: how many are kept; their memory is taken at once.
    """

    def __init__(self, capacity: int = 100_000):
        self._ring = np.zeros(capacity)
        self.n = 0  # that were ever added

    def add(self, value: float) -> None:
        """Take in one more; the oldest one is forgotten where there is no room."""
        self._ring[self.n % len(self._ring)] = value
        self.n += 1

    def newest(self) -> np.ndarray:
        """[n] the numbers that are kept, in the order in which they came."""
        if self.n <= len(self._ring):
            return self._ring[: self.n].copy()
        return np.roll(self._ring, -(self.n % len(self._ring)))

    def last(self, n: int) -> np.ndarray:
        """[at most n] the newest numbers, in the order in which they came."""
        n = min(n, self.n, len(self._ring))
        return self._ring[np.arange(self.n - n, self.n) % len(self._ring)]

    def summary(self) -> Summary | None:
        """Distribution of those that are kept; None where there are none."""
        return Summary.of(self.newest())
