"""Anchored sampling finds the anchor that fits."""

import math
from functools import partial

import pytest
import torch

from data.types import Horizons
from policy.diffusion.step import ancestral
from policy.sampling.anchored import Anchored
from policy.sampling.descent import Descent
from policy.types import ChunkSpace

TP, DA = 4, 2
ANCHORS = torch.tensor([-1.0, 0.0, 1.0])[:, None, None].expand(3, TP, DA)
SPACE = ChunkSpace(Horizons(obs=1, pred=TP, action=2), action_size=DA, anchors=ANCHORS)


def anchored(space=SPACE, **settings):
    values = {"n_steps": 2, "start_sigma": 0.5, "sigma_min": 0.05, "rho": 7.0, "temperature": 0.0}
    descent = Descent(partial(ancestral, eta=0.0))
    return Anchored(space=space, descent=descent, **{**values, **settings})


def narrow(x, sigma, cond):
    """The exact denoiser of actions with mean cond and deviation 0.1."""
    s = sigma[..., None]
    return (0.1**2 * x + s**2 * cond[:, None]) / (0.1**2 + s**2)


def test_scores_follow_the_distance_to_what_the_observation_says():
    cond = torch.tensor([[-1.0], [0.1], [1.0]])
    candidates, scores = anchored().candidates(narrow, cond, torch.Generator().manual_seed(0))
    assert candidates.shape == (3, 3, TP, DA)
    assert scores.shape == (3, 3)
    assert (scores <= 0).all()
    assert scores.argmax(dim=0).tolist() == [0, 1, 2]


def test_the_chunk_is_near_what_the_observation_says():
    cond = torch.tensor([[-1.0], [0.1], [1.0]])
    sampler = anchored()
    carry = sampler.start(narrow, cond, torch.Generator())
    x, _ = sampler(narrow, cond, carry, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(dim=(1, 2)), cond[:, 0], rtol=0, atol=0.2)


def test_temperature_spreads_the_choice():
    """Two modes as good as one another: both are drawn; where it is cold, the best score wins."""

    def two_modes(x, sigma, cond):
        return torch.tanh(x / sigma[..., None] ** 2)

    space = ChunkSpace(SPACE.horizons, DA, anchors=ANCHORS[[0, 2]])
    cond, generator = torch.zeros(200, 1), torch.Generator().manual_seed(0)
    warm = anchored(space, temperature=10.0)
    x, _ = warm(two_modes, cond, warm.start(two_modes, cond, generator), generator)
    assert 0.35 < (x.mean(dim=(1, 2)) > 0).float().mean() < 0.65
    cold = anchored(space)
    candidates, scores = cold.candidates(two_modes, cond, torch.Generator().manual_seed(1))
    x, _ = cold(
        two_modes,
        cond,
        cold.start(two_modes, cond, generator),
        torch.Generator().manual_seed(1),
    )
    assert torch.equal(x, candidates[scores.argmax(dim=0), torch.arange(200)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space": ChunkSpace(SPACE.horizons, DA)}, "no anchors"),
        ({"start_sigma": 0.01}, r"sigma_min is 0\.05, it must be at most start_sigma \(0\.01\)"),
        ({"temperature": -1.0}, r"temperature is -1\.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        (
            {"space": ChunkSpace(SPACE.horizons, DA, sigma_min=0.1, anchors=ANCHORS)},
            r"the last level before 0 is sigma 0\.05, .* give sigma_min=0\.1",
        ),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        anchored(**settings)
