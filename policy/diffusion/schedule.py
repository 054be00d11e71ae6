"""Grids of noise levels: 1-D tensors of decreasing sigmas that end in 0, and the cosine schedule.

A grid of `n_steps` noisy levels costs `n_steps` denoiser calls.

Sources: Karras et al. 2022, EDM, arXiv:2206.00364, equation 5 (`karras`); Nichol and Dhariwal
2021, arXiv:2102.09672, equation 17 (`cosine_vp_*`), whose variance-preserving chunk
`sqrt(abar_k) x0 + sqrt(1 - abar_k) eps` is `x0 + sigma eps` divided by `sqrt(1 + sigma^2)`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

COSINE_OFFSET = 0.008
COSINE_MAX_BETA = 0.999


def check_grid(grid: Tensor) -> None:
    """Raise ValueError where a grid [K + 1] does not decrease to 0."""
    if len(grid) < 2 or grid[-1] != 0 or not (grid[:-1] > grid[1:]).all():
        raise ValueError(f"the grid is {grid.tolist()}, it must decrease and end in 0")


def _with_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _check_range(n_steps: int, sigma_min: float, sigma_max: float) -> None:
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}, a grid needs at least 1")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"sigma_min is {sigma_min} and sigma_max {sigma_max}: need 0 < sigma_min < sigma_max, "
            f"both finite"
        )


def karras(n_steps: int, *, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Grid [n_steps + 1] with steps that grow with sigma to the power 1 - 1 / rho (EDM, eq. 5).

    Raises:
        ValueError: `n_steps` < 1, or the range is not positive, increasing and finite, or `rho` is
            not positive and finite.
    """
    _check_range(n_steps, sigma_min, sigma_max)
    if not 0 < rho < math.inf:
        raise ValueError(f"rho is {rho}, it must be positive and finite")
    ramp = torch.linspace(
        sigma_max ** (1 / rho), sigma_min ** (1 / rho), n_steps, dtype=torch.float64
    )
    return _with_zero(ramp**rho).float()


def check_path(n_steps: int, *, sigma_min: float, rho: float) -> None:
    """Raise ValueError where there is no `karras_path` with these settings."""
    if n_steps < 1 or not 0 < sigma_min < math.inf or not 0 < rho < math.inf:
        raise ValueError(
            f"n_steps is {n_steps}, sigma_min {sigma_min} and rho {rho}: "
            f"need n_steps >= 1, and sigma_min and rho > 0 and finite"
        )


def karras_path(sigma: Tensor, n_steps: int, *, sigma_min: float, rho: float) -> list[Tensor]:
    """`karras` for each element: `n_steps` + 1 levels [B, Tp], from sigma to 0.

    Elements that start at or below sigma_min stay there until the last step.

    Args:
        sigma: [B, Tp] >= 0, where each element starts.
        n_steps: of the path.
        sigma_min: last level before 0.
        rho: as of `karras`.
    """
    check_path(n_steps, sigma_min=sigma_min, rho=rho)
    is_clean = sigma == 0
    # A root has no gradient at 0, so any positive level stands in for a clean element.
    s = torch.where(is_clean, 1.0, sigma)
    root, end = s ** (1 / rho), s.clamp(max=sigma_min) ** (1 / rho)
    ramps = (i / max(1, n_steps - 1) for i in range(1, n_steps))
    inner = [torch.where(is_clean, 0.0, torch.lerp(root, end, ramp) ** rho) for ramp in ramps]
    return [sigma, *inner, torch.zeros_like(sigma)]


def explicit(sigmas: Sequence[float]) -> Tensor:
    """Grid of given levels.

    Raises:
        ValueError: they do not decrease to 0.
    """
    grid = torch.tensor([float(sigma) for sigma in sigmas])
    check_grid(grid)
    return grid


def truncated(grid: Tensor, *, sigma_start: float) -> Tensor:
    """The part of a grid below a level, with that level first.

    Raises:
        ValueError: the level is not positive or above the whole grid.
    """
    if not 0 < sigma_start <= grid[0]:
        raise ValueError(
            f"sigma_start is {sigma_start}, it must be positive and at most {float(grid[0]):g}"
        )
    return torch.cat([grid.new_tensor([sigma_start]), grid[grid < sigma_start]])


def log_uniform(n_steps: int, *, sigma_min: float, sigma_max: float) -> Tensor:
    """Grid [n_steps + 1] whose noisy levels have a constant ratio.

    Raises:
        ValueError: `n_steps` < 1, or the range is not positive, increasing and finite.
    """
    _check_range(n_steps, sigma_min, sigma_max)
    ramp = torch.linspace(math.log(sigma_max), math.log(sigma_min), n_steps, dtype=torch.float64)
    return _with_zero(ramp.exp()).float()


def cosine_vp_sigmas(n_indices: int = 100) -> Tensor:
    """Increasing sigma [n_indices] of each training index k of the cosine schedule, float64."""
    u = torch.arange(n_indices + 1, dtype=torch.float64) / n_indices
    f = torch.cos((u + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2
    betas = (1 - f[1:] / f[:-1]).clamp(max=COSINE_MAX_BETA)
    alphas_bar = torch.cumprod(1 - betas, dim=0)
    return ((1 - alphas_bar) / alphas_bar).sqrt()


def cosine_vp(n_steps: int, *, n_indices: int = 100, first_index: int = 96) -> Tensor:
    """Grid [n_steps + 1] over training indices of the cosine schedule, evenly spaced.

    Args:
        n_steps: noisy levels, from `first_index` down to index 0.
        n_indices: training indices of the schedule.
        first_index: where to start. The last index has sigma 2029, where an eps-network's error
            is multiplied by as much; 96 has sigma 21.

    Raises:
        ValueError: there are fewer indices than steps, or no such index.
    """
    if not 1 <= n_steps <= first_index + 1 <= n_indices:
        raise ValueError(
            f"n_steps is {n_steps} and first_index {first_index}: "
            f"need 1 <= n_steps <= first_index + 1 <= {n_indices}"
        )
    indices = torch.linspace(first_index, 0, n_steps).round().long()
    return _with_zero(cosine_vp_sigmas(n_indices)[indices].float())


def cosine_vp_index(sigma: Tensor, *, n_indices: int = 100) -> Tensor:
    """Training index of the cosine schedule at a level, between indices a fraction; -1 is clean.

    Inverts `abar(k) = f((k + 1) / n) / f(0)`. Exact but for the very last index, where the table
    caps beta.
    """
    f0 = math.cos(COSINE_OFFSET / (1 + COSINE_OFFSET) * math.pi / 2)
    angle = torch.acos(f0 * torch.rsqrt(1 + sigma**2))
    u = angle * 2 / math.pi * (1 + COSINE_OFFSET) - COSINE_OFFSET
    return u * n_indices - 1
