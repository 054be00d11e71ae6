"""Intervals for what an evaluation measures.

Sources: E. B. Wilson, "Probable inference", JASA 1927 (score interval of a proportion);
B. Efron, "Bootstrap methods", Annals of Statistics 1979 (percentile bootstrap of a mean);
Q. McNemar, "Sampling error of the difference between correlated proportions", Psychometrika 1947
(here exact, by the binomial distribution).
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

_AT_ONCE = 1_000_000  # resampled values in memory, 8 MB each of their indices and of themselves


def wilson_interval(
    successes: int, trials: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson score interval of a success rate.

    Args:
        successes: number of successes, 0..trials.
        trials: number of trials, at least 1.
        confidence: coverage, in (0, 1).

    Returns:
        Lower and upper end, within [0, 1].
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials} trials is impossible")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2)) / (1 + z * z / trials)
    # At 0 and at all successes an end is exact; rounding must not push it past.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, the same for the same values.

    Args:
        values: one value per episode, at least one.
        confidence: coverage, in (0, 1).
        resamples: number of resampled means.
        seed: of the resampling.

    Returns:
        Lower and upper end.
    """
    if len(values) == 0:
        raise ValueError("an interval needs at least one value")
    rng = np.random.default_rng(seed)
    array = np.asarray(values, dtype=np.float64)
    n, means = len(array), np.empty(resamples)
    n_rows = max(1, _AT_ONCE // n)
    # In slices, whose random numbers are those of one draw of all.
    for first in range(0, resamples, n_rows):
        part = means[first : first + n_rows]
        part[:] = array[rng.integers(0, n, (len(part), n))].mean(axis=1)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def sign_test(wins: int, losses: int) -> float:
    """Probability of so uneven a share, or a more uneven one, if both were as likely; two-sided.

    Args:
        wins: pairs that one side wins.
        losses: pairs that the other side wins; ties are left out.
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"{wins} wins and {losses} losses are impossible")
    n, few = wins + losses, min(wins, losses)
    ways = tail = 1  # n over k, and the sum of it up to k
    for k in range(few):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * (tail / 2**n))
