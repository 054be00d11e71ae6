"""The grid of a few steps that stays closest to a trajectory of many, by dynamic programming.

A student that may take `n` of the reference's `N` steps chooses at which of its levels to look, and
goes straight on from there to the next level chosen. The best student of `j` steps to a level is
found from the best ones of `j - 1` steps to all the levels before it, so that the choice of one
grid costs about `n N^2 / 2` comparisons and no call of the network.

Source: Pei et al. 2025, Optimal Stepsize for Diffusion Sampling, arXiv:2503.21774.

Differences from the paper:

1. A student's slope at a level is the one that the reference had there, not the network's at the
   student's own state. This makes the fit a function of one trajectory, without a call of the
   network; it counts the errors of the steps, and leaves out by how much the steps that follow
   shrink them. For Gaussian data, whose best grid is known, its end is a few percent farther off.
   It is the slope and not x0_hat that is taken over: a last step to 0 ends in x0_hat wherever it
   began, so that with the reference's x0_hat the end would say nothing of the way.
2. The costs are means over all chunks, so one grid comes out and not one per chunk.
3. A grid has exactly `n` steps, where the paper's may have fewer.
4. The amplitudes of the student's states are not calibrated.

Shape legend: `N` steps of the reference, `M` chunks, `Tp` actions of a chunk, `Da` action size,
`C` condition size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from policy.diffusion.schedule import check_grid
from policy.diffusion.step import ancestral_moments
from policy.types import Denoiser


@dataclass(frozen=True)
class Trajectory:
    """Chunks on their way from noise to actions.

    Args:
        grid: [N + 1] decreasing levels ending in 0.
        x: [N + 1, M, Tp, Da] chunks at these levels.
        x0_hat: [N, M, Tp, Da] predictions at all levels but the last.

    Raises:
        ValueError: the grid does not decrease to 0, or the numbers of levels differ.
    """

    grid: Tensor
    x: Tensor
    x0_hat: Tensor

    def __post_init__(self):
        check_grid(self.grid)
        if not len(self.grid) == len(self.x) == len(self.x0_hat) + 1:
            raise ValueError(
                f"the grid has {len(self.grid)} levels, there are chunks at {len(self.x)} and "
                f"predictions at {len(self.x0_hat)}: need chunks at all and predictions at all "
                f"but the last"
            )

    @property
    def end(self) -> Tensor:
        """[M, Tp, Da] chunks at level 0."""
        return self.x[-1]


def trajectory(denoiser: Denoiser, cond: Tensor, x: Tensor, grid: Tensor) -> Trajectory:
    """The way of DDIM down a grid.

    Args:
        denoiser: predicts the clean chunk.
        cond: [M, C] encoded observations.
        x: [M, Tp, Da] chunks at the grid's first level.
        grid: [N + 1] decreasing levels ending in 0.
    """
    states, predictions = [x], []
    levels = [x.new_full(x.shape[:2], sigma) for sigma in grid.tolist()]
    for sigma, sigma_next in pairwise(levels):
        x0_hat = denoiser(x, sigma, cond)
        x, _ = ancestral_moments(x, x0_hat, sigma, sigma_next, eta=0.0)
        states.append(x)
        predictions.append(x0_hat)
    return Trajectory(grid, torch.stack(states), torch.stack(predictions))


def fit_grids(reference: Trajectory, n_steps: Sequence[int]) -> dict[int, Tensor]:
    """The best grid of each number of steps.

    Args:
        reference: of N steps.
        n_steps: numbers of steps, each in 1..N.

    Returns:
        Number of steps n -> [n + 1] levels of the reference, the first and the last among them.

    Raises:
        ValueError: a number of steps is outside 1..N.
    """
    n_reference = len(reference.x0_hat)
    impossible = [n for n in n_steps if not 1 <= n <= n_reference]
    if impossible:
        raise ValueError(
            f"n_steps is {impossible}, a reference of {n_reference} steps has grids of "
            f"1 to {n_reference} steps"
        )
    predecessors = _predecessors(reference, max(n_steps, default=0))
    return {n: reference.grid[_path(predecessors, n)] for n in n_steps}


def _predecessors(reference: Trajectory, n_steps: int) -> Tensor:
    """[n_steps + 1, N + 1] where the best student of j steps to level i came from."""
    x = reference.x.double().flatten(1)  # [N + 1, M Tp Da]
    sigma = reference.grid.to(x)
    slope = (x[:-1] - reference.x0_hat.double().flatten(1)) / sigma[:-1, None]
    n_reference = len(slope)
    predecessors = torch.zeros(n_steps + 1, n_reference + 1, dtype=torch.int64)
    # z[i]: state at level i of the best student of j steps; i < j cannot be reached.
    z = x
    for j in range(1, n_steps + 1):
        z_next = torch.zeros_like(z)
        for i in range(j, n_reference + 1):
            # With no step taken there is no student but at the first level.
            before = slice(j - 1, i if j > 1 else 1)
            candidates = z[before] + (sigma[i] - sigma[before, None]) * slope[before]
            best = (candidates - x[i]).square().mean(dim=1).argmin()
            z_next[i] = candidates[best]
            predecessors[j, i] = j - 1 + best
        z = z_next
    return predecessors


def _path(predecessors: Tensor, n_steps: int) -> list[int]:
    """The levels [n_steps + 1] of the best student, from the first to the last."""
    path = [predecessors.shape[1] - 1]
    for j in range(n_steps, 0, -1):
        path.append(int(predecessors[j, path[-1]]))
    return path[::-1]
