"""Shares, ranges and shapes of the patterns of noise levels."""

import math

import pytest
import torch

from policy.diffusion.corruption import LogUniform, Mixture

DENSITY = LogUniform(0.01, 20.0)
N, TP = 4000, 16


def mixture(**changes):
    settings = {
        "density": DENSITY,
        "constant": 0.5,
        "ladder": 0.4,
        "prefix": 0.1,
        "max_rise": 2.0,
        "max_prefix": 7,
    }
    return Mixture(**{**settings, **changes})


def only(pattern, **changes):
    shares = {"constant": 0.0, "ladder": 0.0, "prefix": 0.0, pattern: 1.0}
    return mixture(**shares, **changes)


def draw(m, n=N, steps=TP, seed=0):
    return m(n, steps, torch.Generator().manual_seed(seed))


def test_levels_are_log_uniform():
    u = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(DENSITY(u), torch.tensor([0.01, math.sqrt(0.2), 20.0]))


def test_patterns_have_their_shares():
    sigma = draw(mixture())
    is_prefix = sigma[:, 0] == 0
    is_constant = (sigma == sigma[:, :1]).all(dim=1)
    # Four standard deviations of a binomial; a ladder held at one end of the range looks constant
    # in few samples, which the constant share allows for.
    spread = 4 * math.sqrt(0.25 / N)
    assert abs(is_prefix.float().mean() - 0.1) < spread
    assert 0.5 - spread < is_constant.float().mean() < 0.5 + 0.05 + spread


def test_past_actions_are_facts_in_their_share_of_every_pattern():
    for pattern in ("constant", "ladder"):
        sigma = draw(only(pattern, n_past=3, past_known=0.7))
        is_known = (sigma[:, :3] == 0).all(dim=1)
        assert ((sigma[:, :3] == 0).any(dim=1) == is_known).all()
        assert abs(is_known.float().mean() - 0.7) < 4 * math.sqrt(0.25 / N)
        assert (sigma[:, 3:] > 0).all()


def test_constant_level_is_uniform_in_its_logarithm():
    sigma = draw(only("constant"))
    assert (sigma == sigma[:, :1]).all()
    quantile = (sigma[:, 0].log() - math.log(0.01)) / math.log(2000)
    counts = torch.histc(quantile, bins=10, min=0, max=1)
    assert (counts - N / 10).abs().max() < 5 * math.sqrt(N / 10)
    assert sigma.min() >= 0.01 * (1 - 1e-5)
    assert sigma.max() <= 20 * (1 + 1e-5)


def test_ladder_rises_linearly_in_the_logarithm_within_the_range():
    sigma = draw(only("ladder"))
    steps = sigma.log().diff(dim=1)
    assert (steps > -1e-5).all()
    assert sigma.min() >= 0.01 * (1 - 1e-5)
    assert sigma.max() <= 20 * (1 + 1e-5)
    is_inside = (sigma[:, 0] > 0.0101) & (sigma[:, -1] < 19.9)
    inner = steps[is_inside]
    assert len(inner) > N / 10
    torch.testing.assert_close(inner, inner[:, :1].expand_as(inner), rtol=0, atol=1e-4)
    # Slopes and phases are random.
    assert inner[:, 0].std() > 0.05
    assert sigma[:, 0].log().std() > 1


def test_prefix_is_clean_and_the_rest_has_one_level():
    sigma = draw(only("prefix"))
    n_clean = (sigma == 0).sum(dim=1)
    assert n_clean.min() == 1
    assert n_clean.max() == 7
    assert (torch.bincount(n_clean, minlength=8)[1:] > N / 7 * 0.7).all()
    is_clean = torch.arange(TP) < n_clean[:, None]
    assert torch.equal(sigma == 0, is_clean)
    level = sigma[:, -1:]
    assert torch.equal(sigma[~is_clean], level.expand_as(sigma)[~is_clean])


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_prefix_leaves_one_action_of_a_short_chunk(steps):
    assert (draw(only("prefix"), steps=steps)[:, -1] > 0).all()


def test_same_generator_state_same_levels():
    assert torch.equal(draw(mixture(), seed=3), draw(mixture(), seed=3))
    assert not torch.equal(draw(mixture(), seed=3), draw(mixture(), seed=4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"constant": 0.6}, "add up to 1"),
        ({"constant": 1.1, "prefix": -0.5}, "add up to 1"),
        ({"max_rise": 0.0}, "max_rise is 0"),
        ({"max_prefix": 0}, "max_prefix is 0"),
        ({"past_known": 1.5}, "past_known is 1"),
        ({"n_past": -1}, "n_past is -1"),
    ],
)
def test_impossible_mixtures_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        mixture(**changes)


def test_a_chunk_that_lies_in_the_past_is_refused():
    with pytest.raises(ValueError, match="n_past is 16, a chunk has 16"):
        draw(mixture(n_past=16))


def test_impossible_range_is_refused():
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        LogUniform(1.0, 0.5)
