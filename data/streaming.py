"""Moments, limits and exact quantiles of numbers that are gone through block by block.

Mean and variance are joined block by block (Chan, Golub and LeVeque, 1983), which does not lose
digits as sums of squares do. Quantiles are found by counting: numbers are taken as keys that sort
as they do, and each pass fixes the next binary digits of the wanted one, so that memory is bounded
whatever the number of steps.

Shape legend: `n` numbers of a block, `d` elements, `R` wanted ranks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

DIGIT = 11  # bits that a pass fixes: 3 passes for float32, 6 for float64


@dataclass(frozen=True)
class Summary:
    """Of all numbers, each element on its own, in float64.

    Args:
        n: number of steps.
        mean: [d].
        variance: [d], divided by n.
        low: [d].
        high: [d].
    """

    n: int
    mean: np.ndarray
    variance: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def std(self) -> np.ndarray:
        """[d] standard deviation."""
        return np.sqrt(self.variance)

    def joined(self, other: "Summary") -> "Summary":
        """The summary of the numbers of both."""
        n = self.n + other.n
        share, distance = other.n / n, other.mean - self.mean
        variance = self.variance * (self.n / n) + other.variance * share
        return Summary(
            n=n,
            mean=self.mean + distance * share,
            variance=variance + distance * distance * (self.n / n) * share,
            low=np.minimum(self.low, other.low),
            high=np.maximum(self.high, other.high),
        )


def summarized(blocks: Iterable[np.ndarray]) -> Summary:
    """The summary of float64 blocks [n, d].

    Raises:
        ValueError: there are none.
    """
    summary: Summary | None = None
    for block in blocks:
        own = Summary(
            n=len(block),
            mean=block.mean(axis=0),
            variance=block.var(axis=0),
            low=block.min(axis=0),
            high=block.max(axis=0),
        )
        summary = own if summary is None else summary.joined(own)
    if summary is None:
        raise ValueError("zero steps have no statistics: give at least one")
    return summary


def quantiles(
    blocks: Iterable[np.ndarray], shares: Sequence[float], *, n: int, bits: int
) -> np.ndarray:
    """[len(shares), d] exact quantiles, between two numbers interpolated, as `np.quantile`.

    Args:
        blocks: finite float64 [n, d], gone through several times.
        shares: 0..1.
        n: number of steps of all blocks.
        bits: 64, or 32 where all numbers are whole float32.
    """
    position = np.asarray(shares) * (n - 1)
    lower = np.floor(position).astype(np.int64)
    upper = np.minimum(lower + 1, n - 1)
    found = order_statistics(blocks, [*lower.tolist(), *upper.tolist()], bits=bits)
    a, b = found[: len(lower)], found[len(lower) :]
    t = (position - lower)[:, None]
    # From the nearer end, so that the ends themselves are met.
    return np.where(t >= 0.5, b - (b - a) * (1 - t), a + (b - a) * t)


def order_statistics(
    blocks: Iterable[np.ndarray], ranks: Sequence[int], *, bits: int
) -> np.ndarray:
    """[R, d] float64, of each element the numbers that come at the ranks (from 0) when sorted.

    Args:
        blocks: finite float64 [n, d], gone through once for each digit.
        ranks: 0 .. number of steps - 1.
        bits: 64, or 32 where all numbers are whole float32.
    """
    known: np.ndarray | None = None  # [R, d] digits fixed so far
    rest = np.asarray(ranks, np.int64)[:, None]  # rank among those that have these digits
    shift = bits
    while shift:
        width = min(DIGIT, shift)
        shift -= width
        counts = _counted(blocks, known, bits=bits, shift=shift, width=width, n_ranks=len(ranks))
        total = counts.cumsum(axis=-1)
        digit = (total <= rest[..., None]).sum(axis=-1)
        before = np.take_along_axis(total - counts, digit[..., None], axis=-1)[..., 0]
        rest = rest - before
        digits = digit.astype(np.uint64)
        known = digits if known is None else known << np.uint64(width) | digits
    assert known is not None
    return _numbers(known, bits)


def _counted(
    blocks: Iterable[np.ndarray],
    known: np.ndarray | None,
    *,
    bits: int,
    shift: int,
    width: int,
    n_ranks: int,
) -> np.ndarray:
    """[R, d, 2^width] how many numbers that begin with the known digits have which digit next."""
    counts: np.ndarray | None = None
    for block in blocks:
        n_elements, n_digits = block.shape[1], 2**width
        if counts is None:
            counts = np.zeros((n_ranks, n_elements, n_digits), np.int64)
        keys = _keys(block, bits) >> np.uint64(shift)
        digit = (keys & np.uint64(n_digits - 1)).astype(np.int64)
        index = digit + n_digits * np.arange(n_elements)
        for rank in range(n_ranks):
            if known is None:
                chosen = index.ravel()
            else:
                chosen = index[keys >> np.uint64(width) == known[rank]]
            own = np.bincount(chosen, minlength=n_elements * n_digits)
            counts[rank] += own.reshape(n_elements, n_digits)
    assert counts is not None
    return counts


def _keys(values: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned keys that sort as the numbers do: signs flipped, negative ones turned round."""
    kind = np.dtype(f"u{bits // 8}")
    raw = (values + 0.0).astype(f"f{bits // 8}").view(kind)  # -0.0 + 0.0 is 0.0.
    sign = kind.type(1 << (bits - 1))
    return np.where(raw & sign, ~raw, raw | sign).astype(np.uint64)


def _numbers(keys: np.ndarray, bits: int) -> np.ndarray:
    """The numbers of keys, as float64."""
    kind = np.dtype(f"u{bits // 8}")
    raw, sign = keys.astype(kind), kind.type(1 << (bits - 1))
    return np.where(raw & sign, raw ^ sign, ~raw).view(f"f{bits // 8}").astype(np.float64)
