"""Picard iteration gives what sequential sampling gives."""

from functools import partial

import pytest
import torch

from data.types import Horizons
from policy.diffusion.schedule import karras
from policy.diffusion.step import ancestral, dpmpp_2m, heun
from policy.sampling.descent import Descent
from policy.sampling.picard import Picard
from policy.sampling.sequential import Sequential
from policy.types import ChunkSpace

SPACE = ChunkSpace(Horizons(obs=1, pred=4, action=2), action_size=2)
GRID = karras(8, sigma_min=0.01, sigma_max=20.0)


def bimodal(x, sigma, cond):
    """The exact denoiser of actions that are 1 or -1, which is far from linear."""
    s = sigma[..., None].clamp(min=1e-3)
    return torch.tanh(x / s**2 + cond[:, None])


def chunks(sampler, n=5):
    cond = torch.linspace(-1, 1, n)[:, None]
    generator = [torch.Generator().manual_seed(i) for i in range(n)]
    carry = sampler.start(bimodal, cond, generator)
    return sampler(bimodal, cond, carry, generator)[0]


@pytest.mark.parametrize(
    "solver", [partial(ancestral, eta=0.0), partial(ancestral, eta=1.0), dpmpp_2m]
)
def test_as_many_sweeps_as_steps_are_exact(solver):
    descent = Descent(solver)
    expected = chunks(Sequential(space=SPACE, grid=GRID, descent=descent))
    got = chunks(Picard(space=SPACE, grid=GRID, descent=descent, n_sweeps=8))
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


def test_more_sweeps_come_closer():
    descent = Descent(partial(ancestral, eta=0.0))
    expected = chunks(Sequential(space=SPACE, grid=GRID, descent=descent))
    errors = [
        (chunks(Picard(space=SPACE, grid=GRID, descent=descent, n_sweeps=n)) - expected).norm()
        for n in (2, 5, 8)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_what_was_wrong_at_a_high_level_is_forgotten():
    # Summed as they were, the steps would still be off by 0.15 after six sweeps.
    descent = Descent(partial(ancestral, eta=0.0))
    expected = chunks(Sequential(space=SPACE, grid=GRID, descent=descent), n=50)
    got = chunks(Picard(space=SPACE, grid=GRID, descent=descent, n_sweeps=6), n=50)
    assert float((got - expected).abs().mean()) < 1e-3


@pytest.mark.parametrize("n_sweeps", [0, 9])
def test_impossible_number_of_sweeps_is_refused(n_sweeps):
    descent = Descent(dpmpp_2m)
    with pytest.raises(ValueError, match=f"n_sweeps is {n_sweeps}, it must be in 1..8"):
        Picard(space=SPACE, grid=GRID, descent=descent, n_sweeps=n_sweeps)


def test_corrector_is_refused():
    descent = Descent(partial(ancestral, eta=0.0), heun)
    with pytest.raises(ValueError, match="no corrector"):
        Picard(space=SPACE, grid=GRID, descent=descent, n_sweeps=2)
