"""Grids of noise levels, and the cosine schedule against published values."""

import math

import pytest
import torch

from policy.diffusion.schedule import (
    cosine_vp,
    cosine_vp_index,
    cosine_vp_sigmas,
    explicit,
    karras,
    karras_path,
    log_uniform,
    truncated,
)

# Levels of training indices of the cosine schedule, three digits, as published checkpoints use.
PUBLISHED = {
    0: 0.025,
    1: 0.042,
    10: 0.186,
    20: 0.353,
    49: 1.01,
    75: 2.55,
    90: 7.08,
    98: 64,
    99: 2029,
}


@pytest.mark.parametrize("n_steps", [1, 2, 8])
@pytest.mark.parametrize("grid_of", [karras, log_uniform])
def test_grid_decreases_from_sigma_max_to_sigma_min_and_zero(grid_of, n_steps):
    grid = grid_of(n_steps, sigma_min=0.01, sigma_max=20.0)
    assert grid.shape == (n_steps + 1,)
    assert grid[-1] == 0
    assert grid[0].item() == pytest.approx(20, rel=1e-5)
    assert (grid.diff() < 0).all()
    if n_steps > 1:
        assert grid[-2].item() == pytest.approx(0.01, rel=1e-4)


def test_karras_is_even_in_the_rhoth_root():
    root = karras(5, sigma_min=0.1, sigma_max=10.0, rho=3.0)[:-1].double() ** (1 / 3)
    torch.testing.assert_close(root.diff(), root.diff()[:1].expand(4), rtol=1e-4, atol=0)


def test_log_uniform_has_a_constant_ratio():
    grid = log_uniform(5, sigma_min=0.01, sigma_max=100.0)[:-1]
    torch.testing.assert_close(grid, torch.tensor([100.0, 10, 1, 0.1, 0.01]))


def test_cosine_levels_are_those_of_published_checkpoints():
    sigmas = cosine_vp_sigmas(100)
    for k, sigma in PUBLISHED.items():
        assert sigmas[k].item() == pytest.approx(sigma, rel=0.02)


def test_cosine_grid_takes_levels_of_the_table():
    grid = cosine_vp(97)
    assert grid[-1] == 0
    torch.testing.assert_close(grid[:-1], cosine_vp_sigmas(100)[:97].flip(0).float())
    assert cosine_vp(5, first_index=80).shape == (6,)


def test_cosine_index_inverts_the_table_and_is_minus_one_for_clean():
    sigmas = cosine_vp_sigmas(100)[:99]
    k = torch.arange(99, dtype=torch.float64)
    torch.testing.assert_close(cosine_vp_index(sigmas), k, rtol=0, atol=1e-9)
    torch.testing.assert_close(cosine_vp_index(sigmas.float()), k.float(), rtol=0, atol=1e-2)
    assert cosine_vp_index(torch.zeros(())).item() == pytest.approx(-1, abs=1e-2)
    assert math.isfinite(cosine_vp_index(torch.tensor(1e9)).item())


@pytest.mark.parametrize("grid_of", [karras, log_uniform])
def test_impossible_grids_are_refused(grid_of):
    with pytest.raises(ValueError, match="n_steps is 0"):
        grid_of(0, sigma_min=0.01, sigma_max=1.0)
    with pytest.raises(ValueError, match=r"sigma_min is 2.* 0 < sigma_min < sigma_max"):
        grid_of(4, sigma_min=2.0, sigma_max=1.0)
    with pytest.raises(ValueError, match="sigma_min is 0"):
        grid_of(4, sigma_min=0.0, sigma_max=1.0)
    with pytest.raises(ValueError, match=r"sigma_max inf: .* both finite"):
        grid_of(4, sigma_min=0.1, sigma_max=math.inf)


@pytest.mark.parametrize("rho", [0.0, -1.0, math.nan, math.inf])
def test_impossible_rho_is_refused(rho):
    with pytest.raises(ValueError, match=f"rho is {rho}, it must be positive and finite"):
        karras(4, sigma_min=0.01, sigma_max=1.0, rho=rho)


def test_more_steps_than_indices_are_refused():
    with pytest.raises(ValueError, match="n_steps is 98"):
        cosine_vp(98, first_index=96)
    with pytest.raises(ValueError, match="first_index 100"):
        cosine_vp(10, first_index=100)


def test_path_of_each_element_is_its_own_grid():
    starts = torch.tensor([[20.0, 1.0, 0.005, 0.0]])
    path = torch.stack(karras_path(starts, 4, sigma_min=0.01, rho=7.0))[:, 0]  # [5, 4]
    for i, start in enumerate((20.0, 1.0)):
        grid = karras(4, sigma_min=0.01, sigma_max=start)
        torch.testing.assert_close(path[:, i], grid, rtol=1e-4, atol=1e-6)
    assert path[:, 2].tolist() == pytest.approx([0.005] * 4 + [0])
    assert path[:, 3].tolist() == [0] * 5


@pytest.mark.parametrize("rho", [0.5, 7.0])
def test_gradients_of_a_path_are_finite_where_it_is_clean_and_exact_elsewhere(rho):
    def inner(sigma):
        return torch.stack(karras_path(sigma, 4, sigma_min=0.01, rho=rho)[1:-1])

    noisy = torch.tensor([[20.0, 1.0, 0.005]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(inner, noisy)
    sigma = torch.tensor([[20.0, 1.0, 0.005, 0.0]], dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(inner(sigma).sum(), sigma)
    (expected,) = torch.autograd.grad(inner(noisy).sum(), noisy)
    torch.testing.assert_close(got[:, :3], expected)
    assert got[0, 3] == 0


@pytest.mark.parametrize(
    "settings",
    [(0, 0.01, 7.0), (3, -1.0, 7.0), (3, 0.01, 0.0), (3, math.inf, 7.0), (3, 0.01, math.nan)],
)
def test_impossible_paths_are_refused(settings):
    n_steps, sigma_min, rho = settings
    with pytest.raises(ValueError, match=f"n_steps is {n_steps}, sigma_min {sigma_min}"):
        karras_path(torch.ones(1, 2), n_steps, sigma_min=sigma_min, rho=rho)


def test_explicit_and_truncated_grids():
    grid = explicit([20, 5, 1, 0])
    assert grid.tolist() == [20, 5, 1, 0]
    assert truncated(grid, sigma_start=4.0).tolist() == [4, 1, 0]
    assert truncated(grid, sigma_start=5.0).tolist() == [5, 1, 0]
    with pytest.raises(ValueError, match="must decrease and end in 0"):
        explicit([1, 2, 0])
    with pytest.raises(ValueError, match="sigma_start is 30"):
        truncated(grid, sigma_start=30.0)
