"""The step kernel: from noise level sigma to sigma_next, given the predicted clean chunk.

Everything is elementwise in sigma, so that one level per action costs nothing, and clean actions
(sigma 0) come back as they are. A level that stays the same is the identity.

Sources: Ho et al. 2020, DDPM, arXiv:2006.11239, equation 7; Song et al. 2021, DDIM,
arXiv:2010.02502, equation 12; Karras et al. 2022, EDM, arXiv:2206.00364, algorithm 1 (`heun`);
Lu et al. 2022, DPM-Solver++, arXiv:2211.01095, algorithm 2 and equation 10 of its SDE form; Zhang
and Chen 2023, DEIS, arXiv:2204.13902, rho-AB1, which is PNDM's multi-step rule (Liu et al. 2022,
arXiv:2202.09778) at second order and for any grid. All are written here for `x = x0 + sigma * eps`,
in which the variance-preserving forms of the papers are the same up to the factor
`1 / sqrt(1 + sigma^2)` of x.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Standard normal noise [B, Tp, Da], new at every call; a solver without noise never calls it.
Noise = Callable[[], Tensor]


@dataclass(frozen=True)
class History:
    """What a multi-step solver knows of the step before.

    Args:
        x: [B, Tp, Da] chunk at the previous level.
        x0_hat: [B, Tp, Da] prediction at the previous level.
        sigma: [B, Tp] previous level; 0 where there was none.
    """

    x: Tensor
    x0_hat: Tensor
    sigma: Tensor


def no_history(x: Tensor) -> History:
    """The history before the first step of a chunk x [B, Tp, Da]."""
    return History(
        x=torch.zeros_like(x), x0_hat=torch.zeros_like(x), sigma=x.new_zeros(x.shape[:2])
    )


class Solver(Protocol):
    """One step of a chunk to a lower noise level, from one prediction."""

    def __call__(
        self,
        x: Tensor,
        x0_hat: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        *,
        history: History,
        noise: Noise,
    ) -> Tensor:
        """The chunk [B, Tp, Da] at sigma_next [B, Tp] <= sigma."""
        ...


class Corrector(Protocol):
    """Mends a step by a second prediction, at the level it arrived at."""

    def __call__(
        self,
        x: Tensor,
        x0_hat: Tensor,
        sigma: Tensor,
        x_next: Tensor,
        x0_hat_next: Tensor,
        sigma_next: Tensor,
    ) -> Tensor:
        """The chunk [B, Tp, Da] at sigma_next, mended."""
        ...


def ancestral_moments(
    x: Tensor,
    x0_hat: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    *,
    eta: float,
    min_std: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of p(x_next | x, x0_hat).

    With `min_std` the step adds at least so much noise, and keeps so much less of that of x that
    the chunk is at sigma_next all the same, as far as that level allows: below `min_std`, and so at
    0, nothing of x's noise is kept and the chunk is noisier than sigma_next says.

    Args:
        x: [B, Tp, Da] noisy chunk.
        x0_hat: [B, Tp, Da] predicted clean chunk.
        sigma: [B, Tp] level of x.
        sigma_next: [B, Tp] level to reach, at most sigma.
        eta: 0 for DDIM, which is Euler's method on the flow; 1 for DDPM.
        min_std: of the noise of a step, on the variance-preserving scale, in which x is divided by
            sqrt(1 + sigma_next^2); clean actions have none.

    Returns:
        Mean [B, Tp, Da] and standard deviation [B, Tp, 1].

    Raises:
        ValueError: `eta` is outside 0..1, where more noise would be added than sigma_next allows,
            or `min_std` is negative.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}, it must be in 0..1: 0 is DDIM, 1 is DDPM")
    if not min_std >= 0:
        raise ValueError(f"min_std is {min_std}, it must be at least 0")
    sigma, sigma_next = sigma[..., None], sigma_next[..., None]
    is_clean = sigma == 0
    # Where x is clean, any positive level keeps value and gradient of the branch not taken finite.
    s = torch.where(is_clean, 1.0, sigma)
    noise_share = eta * _root(1 - (sigma_next / s) ** 2) if eta else 0.0 * s
    std = sigma_next * noise_share
    keep = sigma_next * _root(1 - noise_share**2) / s
    if min_std:
        least = min_std * (1 + sigma_next**2).sqrt()
        keep = torch.where(std < least, _root(sigma_next**2 - least**2) / s, keep)
        std = torch.maximum(std, least)
    std = torch.where(is_clean, 0.0, std)
    mean = torch.where(is_clean, x, x0_hat + keep * (x - x0_hat))
    return mean, std


def _root(square: Tensor) -> Tensor:
    """Square root, 0 where `square` <= 0, with gradient 0 instead of infinity there."""
    is_positive = square > 0
    return torch.where(is_positive, torch.where(is_positive, square, 1.0).sqrt(), 0.0)


def ancestral(
    x: Tensor,
    x0_hat: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    *,
    history: History,
    noise: Noise,
    eta: float,
) -> Tensor:
    """The next chunk [B, Tp, Da] by DDIM (eta 0), DDPM (eta 1), or between.

    Args: as of `ancestral_moments`; `history` is not used, `noise` only if eta > 0.
    """
    mean, std = ancestral_moments(x, x0_hat, sigma, sigma_next, eta=eta)
    return mean + std * noise() if eta else mean


def _extrapolated(x0_hat: Tensor, sigma: Tensor, sigma_next: Tensor, history: History) -> Tensor:
    """Prediction of the step's middle, linear in ln sigma; x0_hat where there is no step before.

    To sigma 0, where ln sigma ends, it is x0_hat too. Levels are [B, Tp, 1].
    """
    sigma_previous = history.sigma[..., None]
    is_second_order = (sigma_previous > sigma) & (sigma > sigma_next) & (sigma_next > 0)
    # Where the second order does not apply, e / 1 stands in for the ratio: a level of 0 within it
    # would make the gradient of the branch not taken infinite, and times 0 that is no number.
    above = torch.where(is_second_order, sigma_previous, torch.e)
    h_previous = (above / torch.where(is_second_order, sigma, 1.0)).log()
    above = torch.where(is_second_order, sigma, torch.e)
    h = (above / torch.where(is_second_order, sigma_next, 1.0)).log()
    slope = torch.where(is_second_order, h / (2 * h_previous), 0.0)
    return x0_hat + slope * (x0_hat - history.x0_hat)


def dpmpp_2m(
    x: Tensor,
    x0_hat: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    *,
    history: History,
    noise: Noise,
) -> Tensor:
    """The next chunk [B, Tp, Da] by DPM-Solver++(2M), second order in ln sigma.

    First order, as DDIM, where there is no step before, and to sigma 0, where ln sigma ends.

    Args: as of `ancestral_moments`; `history` of the step before, `noise` is not used.
    """
    sigma, sigma_next = sigma[..., None], sigma_next[..., None]
    is_clean = sigma == 0
    target = _extrapolated(x0_hat, sigma, sigma_next, history)
    keep = sigma_next / torch.where(is_clean, 1.0, sigma)
    return torch.where(is_clean, x, target + keep * (x - target))


def dpmpp_2m_sde(
    x: Tensor,
    x0_hat: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    *,
    history: History,
    noise: Noise,
) -> Tensor:
    """The next chunk [B, Tp, Da] by SDE-DPM-Solver++(2M): `dpmpp_2m` with the noise of DDPM.

    Args: as of `ancestral_moments`; `history` of the step before.
    """
    sigma, sigma_next = sigma[..., None], sigma_next[..., None]
    is_clean = sigma == 0
    target = _extrapolated(x0_hat, sigma, sigma_next, history)
    keep = (sigma_next / torch.where(is_clean, 1.0, sigma)) ** 2
    std = sigma_next * _root(1 - keep)
    return torch.where(is_clean, x, target + keep * (x - target) + std * noise())


def adams_bashforth_2(
    x: Tensor,
    x0_hat: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    *,
    history: History,
    noise: Noise,
) -> Tensor:
    """The next chunk [B, Tp, Da] with the predicted noise extrapolated linearly in sigma.

    First order, as DDIM, where there is no step before.

    Args: as of `ancestral_moments`; `history` of the step before, `noise` is not used.
    """
    sigma_previous = history.sigma[..., None]
    sigma, sigma_next = sigma[..., None], sigma_next[..., None]
    is_clean = sigma == 0
    s = torch.where(is_clean, 1.0, sigma)
    eps = (x - x0_hat) / s
    is_second_order = (sigma_previous > sigma) & ~is_clean
    s_previous = torch.where(is_second_order, sigma_previous, s + 1)
    eps_previous = (history.x - history.x0_hat) / s_previous
    step = sigma_next - s
    slope = torch.where(is_second_order, step / (2 * (s - s_previous)), 0.0)
    return torch.where(is_clean, x, x + step * (eps + slope * (eps - eps_previous)))


def heun(
    x: Tensor,
    x0_hat: Tensor,
    sigma: Tensor,
    x_next: Tensor,
    x0_hat_next: Tensor,
    sigma_next: Tensor,
) -> Tensor:
    """A step of DDIM mended to second order: by the mean of the noises predicted at both its ends.

    Args:
        x: [B, Tp, Da] chunk at sigma.
        x0_hat: [B, Tp, Da] prediction there.
        sigma: [B, Tp] level of x.
        x_next: [B, Tp, Da] chunk that DDIM gave at sigma_next; kept where either level is 0.
        x0_hat_next: [B, Tp, Da] prediction there.
        sigma_next: [B, Tp] level of x_next.
    """
    sigma, sigma_next = sigma[..., None], sigma_next[..., None]
    is_mended = (sigma > 0) & (sigma_next > 0)
    eps = (x - x0_hat) / torch.where(is_mended, sigma, 1.0)
    eps_next = (x_next - x0_hat_next) / torch.where(is_mended, sigma_next, 1.0)
    return torch.where(is_mended, x + (sigma_next - sigma) * (eps + eps_next) / 2, x_next)
