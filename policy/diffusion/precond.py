"""Parameterisations: what a network's raw output means, and how its input is scaled.

All are of one form, elementwise in sigma, so that a network may be trained in any of them and
samplers never know:

    x0_hat = c_skip x + c_out net(c_in x, c_noise, cond)

Sources: Karras et al. 2022, EDM, arXiv:2206.00364, table 1 (`EDM`); Ho et al. 2020,
arXiv:2006.11239 (`Eps`); Salimans and Ho 2022, arXiv:2202.00512 (`V`); Liu et al. 2022, Rectified
Flow, arXiv:2209.03003 (`Flow`).

Differences from the papers:

1. A clean action (sigma 0) passes through unchanged, with finite gradients.
2. `c_noise` spans about a hundred in all of them, the scale of Diffusion Policy's training index,
   so that one embedding serves all: -1 to 100 by index, -62 to 30 by 10 ln(sigma) in `EDM`, where
   the paper has ln(sigma) / 4.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from policy.diffusion.schedule import cosine_vp_index

# EDM's c_noise of a clean action is that of this level, well below any that is trained on.
CLEAN_SIGMA = 0.002
EDM_NOISE_SCALE = 10.0


@dataclass(frozen=True)
class Coefficients:
    """Of one parameterisation at levels sigma; all of sigma's shape.

    Args:
        c_skip: factor of the noisy chunk in x0_hat.
        c_out: factor of the raw output in x0_hat.
        c_in: factor of the noisy chunk on its way into the network.
        c_noise: the noise level as the network sees it.
    """

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


Preconditioning = Callable[[Tensor], Coefficients]


def loss_weight(preconditioning: Preconditioning, sigma: Tensor) -> Tensor:
    """Weight of the squared error of x0_hat with which the raw output's error has weight 1.

    `1 / c_out^2`: for EDM 1 / sigma^2 + 1 / sigma_data^2, for eps 1 / sigma^2, for x0 1. It is 0
    for clean actions, which nothing predicts.
    """
    c_out = preconditioning(sigma).c_out
    is_clean = c_out == 0
    return torch.where(is_clean, 0.0, 1 / torch.where(is_clean, 1.0, c_out) ** 2)


@dataclass(frozen=True)
class EDM:
    """Raw output of unit variance at every level, for data of standard deviation sigma_data."""

    sigma_data: float = 0.5

    def __call__(self, sigma: Tensor) -> Coefficients:
        """Coefficients at levels sigma >= 0."""
        total = sigma**2 + self.sigma_data**2
        return Coefficients(
            c_skip=self.sigma_data**2 / total,
            c_out=sigma * self.sigma_data * total.rsqrt(),
            c_in=total.rsqrt(),
            c_noise=EDM_NOISE_SCALE * sigma.clamp(min=CLEAN_SIGMA).log(),
        )


@dataclass(frozen=True)
class Eps:
    """Raw output is the noise, as in DDPM and Diffusion Policy."""

    n_indices: int = 100

    def __call__(self, sigma: Tensor) -> Coefficients:
        """Coefficients at levels sigma >= 0."""
        return Coefficients(
            c_skip=torch.ones_like(sigma),
            c_out=-sigma,
            c_in=(1 + sigma**2).rsqrt(),
            c_noise=cosine_vp_index(sigma, n_indices=self.n_indices),
        )


@dataclass(frozen=True)
class V:
    """Raw output is the velocity v = (eps - sigma x0) / sqrt(1 + sigma^2)."""

    n_indices: int = 100

    def __call__(self, sigma: Tensor) -> Coefficients:
        """Coefficients at levels sigma >= 0."""
        alpha = (1 + sigma**2).rsqrt()
        return Coefficients(
            c_skip=alpha**2,
            c_out=-sigma * alpha,
            c_in=alpha,
            c_noise=cosine_vp_index(sigma, n_indices=self.n_indices),
        )


@dataclass(frozen=True)
class X0:
    """Raw output is the clean chunk."""

    n_indices: int = 100

    def __call__(self, sigma: Tensor) -> Coefficients:
        """Coefficients at levels sigma >= 0."""
        is_clean = (sigma == 0).to(sigma.dtype)
        return Coefficients(
            c_skip=is_clean,
            c_out=1 - is_clean,
            c_in=(1 + sigma**2).rsqrt(),
            c_noise=cosine_vp_index(sigma, n_indices=self.n_indices),
        )


@dataclass(frozen=True)
class Flow:
    """Raw output is the velocity eps - x0 of a rectified flow, (1 - t) x0 + t eps.

    Its t is sigma / (1 + sigma), and its chunk is ours divided by 1 + sigma. Source: Liu et al.
    2022, arXiv:2209.03003; there t = 1 is the data.
    """

    def __call__(self, sigma: Tensor) -> Coefficients:
        """Coefficients at levels sigma >= 0."""
        t = sigma / (1 + sigma)
        return Coefficients(c_skip=1 - t, c_out=-t, c_in=1 - t, c_noise=100 * t)
