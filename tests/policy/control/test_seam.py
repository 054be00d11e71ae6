"""Seams in closed form."""

import math

import numpy as np
import pytest

from policy.control.seam import blend, ensemble, switch

OLD, NEW = np.zeros((3, 2)), np.ones((3, 2))
ONE = np.ones(3, int)


def test_switch_takes_the_new_actions():
    assert switch(OLD, NEW, ONE) is NEW


def test_blend_goes_along_a_straight_line():
    assert blend(OLD, NEW, ONE, n_ticks=3)[:, 0].tolist() == [0.25, 0.5, 0.75]
    assert blend(OLD, NEW, ONE, n_ticks=1)[:, 0].tolist() == [0.5, 1.0, 1.0]
    assert blend(OLD, NEW, ONE, n_ticks=0).tolist() == NEW.tolist()
    with pytest.raises(ValueError, match="n_ticks is -1"):
        blend(OLD, NEW, ONE, n_ticks=-1)


@pytest.mark.parametrize("decay", [0.0, 0.01, 0.7, -0.5])
def test_ensemble_is_the_weighted_mean_of_all_chunks(decay):
    rng = np.random.default_rng(0)
    chunks = rng.normal(size=(5, 3, 2))
    mean = chunks[0]
    for i in range(1, len(chunks)):
        mean = ensemble(mean, chunks[i], np.full(3, i), decay=decay)
    weights = np.array([math.exp(-decay * i) for i in range(5)])
    expected = np.einsum("i,ijk->jk", weights, chunks) / weights.sum()
    np.testing.assert_allclose(mean, expected, rtol=1e-12)  # Five roundings.


def test_ensemble_refuses_a_decay_that_is_no_number():
    with pytest.raises(ValueError, match="nan"):
        ensemble(OLD, NEW, ONE, decay=math.nan)
