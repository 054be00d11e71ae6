"""The step kernel: from noise level sigma to sigma_next, given the predicted clean chunk.

Everything is elementwise in sigma, so that one level per action costs nothing, and clean actions
(sigma 0) come back as they are. A level that stays the same is the identity.

Sources: Ho et al. 2020, DDPM, arXiv:2006.11239, equation 7; Song et al. 2021, DDIM,
arXiv:2010.02502, equation 12; Lu et al. 2022, DPM-Solver++, arXiv:2211.01095, algorithm 2. All are
written here for `x = x0 + sigma * eps`, in which the variance-preserving forms of the papers are
the same up to the factor `1 / sqrt(1 + sigma^2)` of x.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from policy.diffusion.noise import randn
from policy.types import Generator


@dataclass(frozen=True)
class History:
    """What a multi-step solver knows of the step before.

    Args:
        x0_hat: [B, Tp, Da] prediction at the previous level.
        sigma: [B, Tp] previous level; 0 where there was none.
    """

    x0_hat: Tensor
    sigma: Tensor


def no_history(x: Tensor) -> History:
    """The history before the first step of a chunk x [B, Tp, Da]."""
    return History(x0_hat=torch.zeros_like(x), sigma=x.new_zeros(x.shape[:2]))


def ancestral_moments(
    x: Tensor, x0_hat: Tensor, sigma: Tensor, sigma_next: Tensor, *, eta: float
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of p(x_next | x, x0_hat).

    Args:
        x: [B, Tp, Da] noisy chunk.
        x0_hat: [B, Tp, Da] predicted clean chunk.
        sigma: [B, Tp] level of x.
        sigma_next: [B, Tp] level to reach, at most sigma.
        eta: 0 for DDIM, which is Euler's method on the flow; 1 for DDPM.

    Returns:
        Mean [B, Tp, Da] and standard deviation [B, Tp, 1].

    Raises:
        ValueError: `eta` is outside 0..1, where more noise would be added than sigma_next allows.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}, it must be in 0..1: 0 is DDIM, 1 is DDPM")
    sigma, sigma_next = sigma[..., None], sigma_next[..., None]
    is_clean = sigma == 0
    # Where x is clean, any positive level keeps value and gradient of the branch not taken finite.
    s = torch.where(is_clean, 1.0, sigma)
    noise_share = eta * (1 - (sigma_next / s) ** 2).clamp(min=0).sqrt() if eta else 0.0 * s
    std = torch.where(is_clean, 0.0, sigma_next * noise_share)
    keep = sigma_next * (1 - noise_share**2).sqrt() / s
    mean = torch.where(is_clean, x, x0_hat + keep * (x - x0_hat))
    return mean, std


def ancestral(
    x: Tensor,
    x0_hat: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    *,
    history: History,
    generator: Generator,
    eta: float,
) -> Tensor:
    """The next chunk [B, Tp, Da] by DDIM (eta 0), DDPM (eta 1), or between.

    Args: as of `ancestral_moments`; `history` is not used, `generator` only if eta > 0.
    """
    mean, std = ancestral_moments(x, x0_hat, sigma, sigma_next, eta=eta)
    return mean + std * randn(x.shape, generator) if eta else mean


def dpmpp_2m(
    x: Tensor,
    x0_hat: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    *,
    history: History,
    generator: Generator,
) -> Tensor:
    """The next chunk [B, Tp, Da] by DPM-Solver++(2M), second order in ln sigma.

    First order, as DDIM, where there is no step before, and to sigma 0, where ln sigma ends.

    Args: as of `ancestral_moments`; `history` of the step before, `generator` is not used.
    """
    sigma_previous = history.sigma[..., None]
    sigma, sigma_next = sigma[..., None], sigma_next[..., None]
    is_clean = sigma == 0
    is_second_order = (sigma_previous > sigma) & (sigma > sigma_next) & (sigma_next > 0)
    # Levels 1 > 1/e > 1/e^2 stand in where the second order does not apply.
    h_previous = torch.where(is_second_order, sigma_previous / sigma, torch.e).log()
    h = torch.where(is_second_order, sigma / sigma_next, torch.e).log()
    slope = torch.where(is_second_order, h / (2 * h_previous), 0.0)
    extrapolated = x0_hat + slope * (x0_hat - history.x0_hat)
    keep = sigma_next / torch.where(is_clean, 1.0, sigma)
    return torch.where(is_clean, x, extrapolated + keep * (x - extrapolated))
