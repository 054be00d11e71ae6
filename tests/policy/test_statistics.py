"""Intervals against published values and exact cases."""

import numpy as np
import pytest

from policy.statistics import bootstrap_interval, wilson_interval


def test_wilson_agrees_with_a_published_example():
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263, score method.
    low, high = wilson_interval(81, 263)
    assert low == pytest.approx(0.2553, abs=1e-4)
    assert high == pytest.approx(0.3662, abs=1e-4)


def test_wilson_at_the_ends():
    # With no success the upper end is z^2 / (n + z^2).
    assert wilson_interval(0, 10)[0] == 0
    assert wilson_interval(0, 10)[1] == pytest.approx(1.959964**2 / (10 + 1.959964**2), abs=1e-6)
    assert wilson_interval(10, 10)[1] == 1


@pytest.mark.parametrize(("successes", "trials"), [(3, 2), (-1, 5), (0, 0)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match="impossible"):
        wilson_interval(successes, trials)


def test_bootstrap_of_a_constant_is_that_constant():
    assert bootstrap_interval([0.7] * 5) == pytest.approx((0.7, 0.7))


def test_bootstrap_has_the_width_of_the_normal_interval():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = bootstrap_interval(values.tolist())
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (high - low) / 2 == pytest.approx(half, rel=0.05)
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=0.1 * half)


def test_bootstrap_needs_values():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])
