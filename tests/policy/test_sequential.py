"""Samplers with the exact denoiser of Gaussian data."""

import itertools
import math
from functools import partial

import pytest
import torch

from data.types import Horizons
from policy.diffusion.schedule import cosine_vp, karras, log_uniform
from policy.diffusion.step import (
    adams_bashforth_2,
    ancestral,
    dpmpp_2m,
    dpmpp_2m_sde,
    heun,
)
from policy.sampling.descent import Descent
from policy.sampling.sequential import Sequential, fitted
from policy.types import ChunkSpace

TP, DA = 4, 2
SPACE = ChunkSpace(Horizons(obs=1, pred=TP, action=2), action_size=DA)
MEAN, STD = 0.4, 0.15


def descent(name, clip=None):
    solvers = {
        "ddim": partial(ancestral, eta=0.0),
        "ddpm": partial(ancestral, eta=1.0),
        "heun": partial(ancestral, eta=0.0),
        "2m": dpmpp_2m,
        "2m sde": dpmpp_2m_sde,
        "ab2": adams_bashforth_2,
    }
    return Descent(solvers[name], heun if name == "heun" else None, clip)


def sampler(name, grid, clip=None):
    return Sequential(space=SPACE, grid=grid, descent=descent(name, clip))


def gaussian(x, sigma, cond):
    """The exact denoiser of actions that are normal with MEAN and STD."""
    s = sigma[..., None]
    return (STD**2 * x + s**2 * MEAN) / (STD**2 + s**2)


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def sample(a_sampler, batch, generator, denoiser=gaussian):
    cond = torch.zeros(batch, 1)
    carry = a_sampler.start(denoiser, cond, generator)
    return a_sampler(denoiser, cond, carry, generator)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "2m", "2m sde", "ab2"])
def test_samples_have_mean_and_deviation_of_the_data(name):
    a_sampler = sampler(name, log_uniform(100, sigma_min=0.01, sigma_max=20.0))
    x, _ = sample(a_sampler, 2500, torch.Generator().manual_seed(0))
    # 20,000 values: four standard errors of mean and deviation, and 2 % for 100 finite steps.
    assert x.mean().item() == pytest.approx(MEAN, abs=4 * STD / math.sqrt(20_000) + 0.003)
    assert x.std().item() == pytest.approx(STD, rel=4 / math.sqrt(40_000) + 0.02)


def deviation_after(name, n_steps):
    """Deviation that a deterministic solver gives, from two noises: it is linear in x here."""
    grid = log_uniform(n_steps, sigma_min=0.05, sigma_max=2.0)[:-1].double()
    x = torch.tensor([[[2.0]], [[-2.0]]], dtype=torch.float64)
    levels = [x.new_full((2, 1), level) for level in grid.tolist()]
    # A further level, never reached, so that the last step too is mended.
    levels.append(levels[-1] / 2)
    x, history = descent(name)(gaussian, torch.zeros(2, 1), x, levels, noise=no_noise)
    return (history.x[0] - history.x[1]).item() / 2


def no_noise():
    raise AssertionError("a deterministic solver draws no noise")


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("2m", 2), ("heun", 2), ("ab2", 2)])
def test_order_of_convergence(name, order):
    """The flow of a Gaussian is known: deviations from the mean scale as sqrt(STD^2 + sigma^2)."""
    exact = 2.0 * math.sqrt((STD**2 + 0.05**2) / (STD**2 + 2.0**2))
    ns = [64, 128, 256, 512]
    errors = [abs(deviation_after(name, n) - exact) for n in ns]
    log_n, log_e = torch.tensor(ns).double().log(), torch.tensor(errors).double().log()
    centred = log_n - log_n.mean()
    slope = (centred * log_e).sum() / (centred**2).sum()
    assert -slope.item() == pytest.approx(order, abs=0.15)


def test_few_step_ddpm_has_the_variance_of_its_own_grid():
    """Each step must use the level it really came from. The variance follows by recursion."""
    grid = karras(10, sigma_min=0.02, sigma_max=20.0)
    variance = float(grid[0]) ** 2
    for s, s_next in itertools.pairwise(grid.tolist()):
        gain = STD**2 / (STD**2 + s**2)  # of the denoiser
        keep = s_next**2 / s**2
        variance = (gain + keep * (1 - gain)) ** 2 * variance + s_next**2 * (1 - keep)
    x, _ = sample(sampler("ddpm", grid), 2500, torch.Generator().manual_seed(0))
    assert x.std().item() == pytest.approx(math.sqrt(variance), rel=4 / math.sqrt(40_000))


@pytest.mark.parametrize("name", ["ddim", "ddpm", "2m", "2m sde", "ab2"])
def test_nfe_is_true_and_each_call_gets_one_level(name):
    seen = []

    def counting(x, sigma, cond):
        assert x.shape == (3, TP, DA)
        assert sigma.shape == (3, TP)
        assert (sigma == sigma[0, 0]).all()
        seen.append(sigma[0, 0].item())
        return gaussian(x, sigma, cond)

    grid = karras(5, sigma_min=0.01, sigma_max=20.0)
    a_sampler = sampler(name, grid)
    sample(a_sampler, 3, seeded(1, 2, 3), counting)
    assert len(seen) == a_sampler.nfe == 5
    assert seen == pytest.approx(grid[:-1].tolist())


@pytest.mark.parametrize("name", ["ddim", "ddpm", "2m", "2m sde", "ab2"])
def test_stream_does_not_depend_on_its_neighbours(name):
    a_sampler = sampler(name, karras(4, sigma_min=0.01, sigma_max=20.0))
    together, _ = sample(a_sampler, 3, seeded(1, 2, 3))
    alone, _ = sample(a_sampler, 1, seeded(2))
    assert torch.equal(together[1:2], alone)


def test_same_seed_same_chunk_and_a_new_chunk_each_call():
    a_sampler = sampler("ddim", karras(4, sigma_min=0.01, sigma_max=20.0))
    generator = torch.Generator().manual_seed(0)
    first, carry = sample(a_sampler, 2, generator)
    carry = a_sampler.shift(carry, 2)
    second, _ = a_sampler(gaussian, torch.zeros(2, 1), carry, generator)
    again, _ = sample(a_sampler, 2, torch.Generator().manual_seed(0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_one_call_returns_the_prediction():
    a_sampler = sampler("2m", torch.tensor([20.0, 0.0]))
    x, _ = sample(a_sampler, 2, torch.Generator(), lambda x, s, c: torch.full_like(x, 0.3))
    torch.testing.assert_close(x, torch.full((2, TP, DA), 0.3))


def test_carry_has_the_chunk():
    a_sampler = sampler("ddim", torch.tensor([20.0, 0.0]))
    start = a_sampler.start(gaussian, torch.zeros(3, 1), seeded(1, 2, 3))
    x, carry = sample(a_sampler, 3, seeded(1, 2, 3))
    assert start.x.shape == carry.x.shape == (3, TP, DA)
    assert start.sigma.shape == carry.sigma.shape == (3, TP)
    assert torch.equal(carry.x, x)


def test_clip_limits_the_prediction():
    grid = cosine_vp(10)
    limited = sampler("ddpm", grid, clip=1.0)
    x, _ = sample(limited, 2, torch.Generator().manual_seed(0), lambda x, s, c: x * 50)
    assert x.abs().max() <= 1


@pytest.mark.parametrize(
    "solver",
    [
        partial(ancestral, eta=1.0),
        ancestral,
        dpmpp_2m,
        partial(lambda x, *levels, eta: x, eta=0.0),
        dpmpp_2m_sde,
        adams_bashforth_2,
    ],
)
def test_corrector_mends_steps_of_ddim_only(solver):
    with pytest.raises(ValueError, match="the corrector mends steps of DDIM, the solver is"):
        Descent(solver, heun)
    assert Descent(partial(ancestral, eta=0.0), heun).nfe(3) == 5


def test_levels_below_the_trained_ones_are_refused():
    space = ChunkSpace(SPACE.horizons, DA, sigma_min=0.0251234567, sigma_max=20.0)
    low = karras(4, sigma_min=0.01, sigma_max=20.0)
    with pytest.raises(
        ValueError, match=r"sigma 0\.01, .* give grid\.sigma_min=0\.0251235 or more"
    ):
        Sequential(space=space, grid=low, descent=descent("ddim"))
    for lowest in (0.0251235, 0.0251234):  # As an error may print it, rounded either way.
        grid = karras(4, sigma_min=lowest, sigma_max=20.0)
        assert Sequential(space=space, grid=grid, descent=descent("ddim")).nfe == 4


@pytest.mark.parametrize("grid", [[1.0], [1.0, 0.5], [0.5, 1.0, 0.0], [1.0, 1.0, 0.0]])
def test_grid_that_does_not_decrease_to_zero_is_refused(grid):
    with pytest.raises(ValueError, match="must decrease and end in 0"):
        sampler("ddim", torch.tensor(grid))


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan])
def test_impossible_clip_is_refused(clip):
    with pytest.raises(ValueError, match=f"clip is {clip}"):
        sampler("ddim", torch.tensor([1.0, 0.0]), clip=clip)


def test_fitted_grid_is_that_of_the_checkpoint():
    grid = torch.tensor([3.0, 1.0, 0.0])
    space = ChunkSpace(SPACE.horizons, DA, grids={2: grid})
    assert fitted(space=space, n_steps=2, descent=descent("ddim")).sigmas == (3.0, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"no fitted grid of 4 steps, there are \[2\]"):
        fitted(space=space, n_steps=4, descent=descent("ddim"))


def test_heun_costs_a_second_call_in_all_steps_but_the_last():
    calls = []

    def counting(x, sigma, cond):
        calls.append(sigma[0, 0].item())
        return gaussian(x, sigma, cond)

    a_sampler = sampler("heun", torch.tensor([3.0, 1.0, 0.0]))
    sample(a_sampler, 1, seeded(0), counting)
    assert calls == [3.0, 1.0, 1.0]
    assert a_sampler.nfe == 3


def test_more_executed_actions_than_a_chunk_has_are_refused():
    a_sampler = sampler("ddim", torch.tensor([3.0, 0.0]))
    carry = a_sampler.start(gaussian, torch.zeros(1, 1), torch.Generator())
    with pytest.raises(ValueError, match="5 actions were executed, a chunk has 4"):
        a_sampler.shift(carry, 5)
