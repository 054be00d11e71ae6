"""Fitted grids, against what is known of Gaussian data and against every possible choice."""

import itertools
import math

import pytest
import torch

from policy.diffusion.grid_fit import Trajectory, fit_grids, trajectory
from policy.diffusion.schedule import karras, log_uniform

M, TP, DA = 8, 4, 2
MEAN, STD = 0.2, 0.3
SIGMA_MAX = 20.0


def gaussian(x, sigma, cond):
    """The exact denoiser of actions that are normal with MEAN and STD."""
    s = sigma[..., None]
    return (STD**2 * x + s**2 * MEAN) / (STD**2 + s**2)


def noise(m=M, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, TP, DA, generator=generator, dtype=torch.float64)


def exact_flow(grid):
    """Where the flow of Gaussian data leads: deviations scale as sqrt(STD^2 + sigma^2)."""
    sigma = grid.double()[:, None, None, None]
    width = (STD**2 + sigma**2).sqrt()
    x = MEAN + (SIGMA_MAX * noise() - MEAN) * width / width[0]
    x0_hat = (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)
    return Trajectory(grid, x, x0_hat[:-1])


def crooked(n, seed=0):
    """A trajectory that no denoiser made: every slope is drawn."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n + 1, M, TP, DA)
    x, x0_hat = (torch.randn(shape, generator=generator).double() for _ in range(2))
    return Trajectory(karras(n, sigma_min=0.05, sigma_max=SIGMA_MAX), x, x0_hat[:-1])


def error_at(reference, path):
    """Mean squared distance of a student from the reference at the last level of its path."""
    z = reference.x[0].clone()
    for here, there in itertools.pairwise(path):
        slope = (reference.x[here] - reference.x0_hat[here]) / float(reference.grid[here])
        z += (float(reference.grid[there]) - float(reference.grid[here])) * slope
    return (z - reference.x[path[-1]]).square().mean().item()


def sampled_end(grid):
    """Where DDIM with the exact denoiser ends, from the noise of `exact_flow`."""
    x = SIGMA_MAX * noise()
    for sigma, sigma_next in itertools.pairwise(grid.tolist()):
        x0_hat = gaussian(x, torch.full((M, TP), sigma, dtype=x.dtype), None)
        x = x0_hat + sigma_next / sigma * (x - x0_hat)
    return x


def indices_in(grid, levels):
    return [grid.tolist().index(level) for level in levels.tolist()]


def test_as_many_steps_as_the_reference_are_the_reference():
    for reference in (exact_flow(karras(9, sigma_min=0.01, sigma_max=SIGMA_MAX)), crooked(9)):
        assert torch.equal(fit_grids(reference, [9])[9], reference.grid)


def test_one_step_goes_from_the_first_level_to_zero():
    assert fit_grids(crooked(9), [1])[1].tolist() == pytest.approx([SIGMA_MAX, 0.0])


@pytest.mark.parametrize("seed", range(5))
def test_two_steps_are_the_best_of_all_choices(seed):
    reference = crooked(12, seed)
    errors = {middle: error_at(reference, [0, middle, 12]) for middle in range(1, 12)}
    best = min(errors, key=errors.__getitem__)
    assert indices_in(reference.grid, fit_grids(reference, [2])[2]) == [0, best, 12]


def test_grids_decrease_from_the_first_level_to_zero_and_are_made_together_or_alone():
    reference = crooked(12)
    together = fit_grids(reference, [1, 3, 5, 8])
    assert list(together) == [1, 3, 5, 8]
    for n, grid in together.items():
        assert len(grid) == n + 1
        assert grid[0] == reference.grid[0]
        assert grid[-1] == 0
        assert (grid[:-1] > grid[1:]).all()
        assert torch.equal(grid, fit_grids(reference, [n])[n])


def test_each_step_is_the_best_way_on_from_the_best_ways_before():
    """The recursion written out for three steps, with plain loops."""
    reference, n = crooked(10), 10
    best_of_two = {
        i: min(range(1, i), key=lambda middle: error_at(reference, [0, middle, i]))
        for i in range(2, n)
    }
    paths = [[0, middle, i, n] for i, middle in best_of_two.items()]
    best = min(paths, key=lambda path: error_at(reference, path))
    assert indices_in(reference.grid, fit_grids(reference, [3])[3]) == best


def test_where_the_prediction_never_changes_every_grid_is_exact():
    grid = karras(10, sigma_min=0.05, sigma_max=SIGMA_MAX)
    target = noise(seed=1)

    def constant(x, sigma, cond):
        return target

    reference = trajectory(constant, torch.zeros(M, 1), SIGMA_MAX * noise(), grid)
    for fitted in fit_grids(reference, [1, 2, 4, 7]).values():
        # float32 levels against float64 chunks of size 20: 20 times 1e-7.
        assert error_at(reference, indices_in(grid, fitted)) < (20 * 1e-7) ** 2
        assert (fitted[:-1] > fitted[1:]).all()


def test_trajectory_is_that_of_ddim():
    grid = karras(5, sigma_min=0.05, sigma_max=SIGMA_MAX)
    way = trajectory(gaussian, torch.zeros(M, 1), SIGMA_MAX * noise(), grid)
    torch.testing.assert_close(way.end, sampled_end(grid), rtol=1e-9, atol=1e-9)
    assert way.x.shape == (6, M, TP, DA)
    assert way.x0_hat.shape == (5, M, TP, DA)
    torch.testing.assert_close(way.x0_hat[-1], way.end)  # a step to 0 ends in the prediction


def true_error(grid):
    """Relative deviation of DDIM's end from the flow's: the same for all chunks."""
    exact = exact_flow(grid).end
    ratio = (sampled_end(grid) - MEAN) / (exact - MEAN)
    return abs(1 - ratio).mean().item()


@pytest.mark.parametrize("n", [2, 4, 8])
def test_fitted_grid_of_a_gaussian_ends_near_the_best_possible(n):
    """A DDIM step shrinks deviations by cos(a - a') cos(a) / cos(a') where tan(a) = sigma / STD.

    The end is off by the product of the cosines of the steps in a, which is largest for equal ones.
    """
    fine = karras(128, sigma_min=0.01, sigma_max=SIGMA_MAX)
    fitted = fit_grids(exact_flow(fine), [n])[n]
    best = 1 - math.cos(math.atan(SIGMA_MAX / STD) / n) ** n
    angles = torch.atan(fitted / STD)
    cosines = torch.cos(angles[:-1] - angles[1:])
    assert true_error(fitted) == pytest.approx(1 - cosines.prod().item(), rel=1e-4)
    # Slopes of the reference choose a little differently than the true end would.
    assert best * (1 - 1e-6) <= true_error(fitted) < 1.1 * best
    for usual in (karras, log_uniform):
        assert true_error(fitted) < true_error(usual(n, sigma_min=0.01, sigma_max=SIGMA_MAX))


@pytest.mark.parametrize("n", [0, -1, 10])
def test_impossible_number_of_steps_is_refused(n):
    with pytest.raises(ValueError, match=rf"n_steps is \[{n}\], a reference of 9 steps"):
        fit_grids(crooked(9), [2, n])


def test_trajectory_whose_parts_do_not_fit_is_refused():
    grid = karras(3, sigma_min=0.05, sigma_max=SIGMA_MAX)
    x = torch.zeros(4, M, TP, DA)
    with pytest.raises(ValueError, match="the grid has 4 levels, there are chunks at 4"):
        Trajectory(grid, x, x)
    with pytest.raises(ValueError, match="must decrease and end in 0"):
        Trajectory(grid[:-1], x[:-1], x[:-2])
