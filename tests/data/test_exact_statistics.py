"""Statistics block by block: those of numpy over everything at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.streaming import order_statistics, quantiles, summarized


def cut(values: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """Blocks of these sizes, and one of the rest."""
    parts = np.split(values, np.cumsum(sizes))
    return [part for part in parts if len(part)]


NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=40),
    sizes=st.lists(st.integers(1, 10), max_size=5),
    share=st.floats(0, 1),
)
def test_quantiles_are_those_of_numpy(values, sizes, share):
    array = np.array(values, np.float64)
    shares = [0.01, share, 0.99]
    ours = quantiles(cut(array, sizes), shares, n=len(array), bits=32)
    theirs = np.quantile(array, shares, axis=0)
    # One rounding of the numbers between which is interpolated.
    size = np.abs(array).max(axis=0)
    assert (np.abs(ours - theirs) <= 4e-16 * size).all()


@pytest.mark.parametrize("bits", [32, 64])
def test_every_rank_is_that_of_the_sorted_numbers(bits):
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(300, 3)) * 10.0 ** rng.integers(-30, 30, (300, 3))
    wide[:20] = 0.0
    wide[20:30] = -0.0
    wide[30:60] = wide[60:90]  # Ties.
    values = wide.astype(f"f{bits // 8}").astype(np.float64)
    found = order_statistics(cut(values, [7, 100, 50]), range(300), bits=bits)
    np.testing.assert_array_equal(found, np.sort(values, axis=0))


def test_numbers_that_differ_in_the_last_bit_are_told_apart():
    values = np.array([[1.0], [np.nextafter(1.0, 2.0)], [np.nextafter(1.0, 0.0)]])
    found = order_statistics([values], [0, 1, 2], bits=64)
    assert found.ravel().tolist() == sorted(values.ravel().tolist())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 200),
    offset=st.floats(-1e4, 1e4),
    sizes=st.lists(st.integers(1, 60), max_size=5),
)
def test_moments_and_limits_are_those_of_numpy(seed, n, offset, sizes):
    values = offset + np.random.default_rng(seed).normal(size=(n, 2))
    summary = summarized(cut(values, sizes))
    assert summary.n == n
    np.testing.assert_allclose(summary.mean, values.mean(axis=0), rtol=1e-13, atol=1e-13)
    # The rounding of numbers of the size of the offset, squared deviations of which are summed.
    np.testing.assert_allclose(summary.std, values.std(axis=0), rtol=1e-10, atol=1e-11)
    np.testing.assert_array_equal(summary.low, values.min(axis=0))
    np.testing.assert_array_equal(summary.high, values.max(axis=0))


def test_one_block_gives_what_numpy_gives_bit_for_bit():
    values = np.random.default_rng(0).normal(size=(1000, 3)) * [1, 1e6, 1e-6]
    summary = summarized([values])
    np.testing.assert_array_equal(summary.mean, values.mean(axis=0))
    np.testing.assert_array_equal(summary.std, values.std(axis=0))


def test_a_small_spread_on_a_large_offset_is_not_lost():
    # A sum of squares would leave no digit of it.
    values = 1e8 + np.tile([[0.0], [1.0]], (5000, 1))
    summary = summarized(cut(values, [3, 1000, 10]))
    assert summary.std.item() == pytest.approx(0.5, rel=1e-6)


def test_nothing_has_no_statistics():
    with pytest.raises(ValueError, match="zero steps have no statistics"):
        summarized([])
