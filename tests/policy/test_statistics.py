"""Intervals against published values and exact cases."""

import math
import tracemalloc

import numpy as np
import pytest

from policy.statistics import bootstrap_interval, sign_test, wilson_interval


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


@pytest.mark.parametrize(("n", "resamples"), [(7, 10_000), (701, 4_001), (2_501, 999)])
def test_bootstrap_in_slices_is_that_of_one_draw(n, resamples):
    values = np.random.default_rng(1).normal(3.0, 2.0, n)
    drawn = np.random.default_rng(5).integers(0, n, (resamples, n))
    expected = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    assert bootstrap_interval(values.tolist(), resamples=resamples, seed=5) == tuple(expected)


def test_bootstrap_of_many_values_takes_little_memory():
    values = np.random.default_rng(1).normal(size=50_000)
    tracemalloc.start()
    bootstrap_interval(values.tolist(), resamples=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # 160 MB in one piece


def test_bootstrap_needs_values():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])


def test_sign_test_counts_the_outcomes_of_fair_coins():
    assert sign_test(0, 5) == pytest.approx(2 / 2**5)
    assert sign_test(9, 1) == pytest.approx(2 * (1 + 10) / 2**10)
    assert sign_test(9, 1) == sign_test(1, 9)
    assert sign_test(4, 4) == 1
    assert sign_test(0, 0) == 1


@pytest.mark.parametrize(("wins", "losses"), [(3, 17), (60, 41), (512, 600)])
def test_sign_test_agrees_with_the_binomial_sum(wins, losses):
    n, few = wins + losses, min(wins, losses)
    assert sign_test(wins, losses) == 2 * (sum(math.comb(n, k) for k in range(few + 1)) / 2**n)


def test_sign_test_is_right_as_often_as_it_says():
    # Of fair coins, 20 a time, a p-value up to 0.05 comes in at most 5 % of all cases.
    chances = [math.comb(20, k) / 2**20 for k in range(21)]
    hits = sum(chance for k, chance in enumerate(chances) if sign_test(k, 20 - k) <= 0.05)
    assert 0.02 < hits <= 0.05


def test_impossible_pairs_are_refused():
    with pytest.raises(ValueError, match="-1 wins"):
        sign_test(-1, 3)
