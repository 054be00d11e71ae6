"""Weights of the squared error of the predicted clean chunk, as functions of the noise level.

How much a level teaches is its weight times its density (policy/diffusion/density.py).

Sources: Karras et al. 2022, EDM, arXiv:2206.00364, section 5 (`raw_output`); Hang et al. 2023,
arXiv:2303.09556 (`MinSNR`); Choi et al. 2022, arXiv:2204.00227 (`P2`).

The papers' `x_t = alpha x0 + s eps`, `alpha^2 + s^2 = 1`, is `alpha (x0 + sigma eps)` with
`sigma = s / alpha`. Hence

    SNR = alpha^2 / s^2 = 1 / sigma^2,      |eps_hat - eps|^2 = SNR |x0_hat - x0|^2,

and a weight of the noise's error times SNR is one of the clean chunk's. Like the papers, this SNR
asks not for the data's variance: their images and our actions span [-1, 1], so that the published
settings carry over. With sigma_data^2 / sigma^2 in its place, gamma of `MinSNR` and k of `P2` would
be those here times sigma_data^2 and the loss as a whole be scaled, so it is no setting of its own.

Differences from the papers: levels are drawn by a density of sigma, not uniformly from the
training indices of a schedule; clean actions have weight 0.

Shape legend: `B` batch, `Tp` actions of a chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from policy.diffusion.precond import Preconditioning, loss_weight

# (sigma [B, Tp], preconditioning) -> weight [B, Tp] >= 0, finite, 0 for clean actions
Weight = Callable[[Tensor, Preconditioning], Tensor]


def raw_output(sigma: Tensor, preconditioning: Preconditioning) -> Tensor:
    """1 / c_out^2 [B, Tp]: the error of the network's raw output has weight 1 at every level."""
    return loss_weight(preconditioning, sigma)


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) = min(1 / sigma^2, gamma), whatever the parameterisation.

    The noise's error counts alike at all levels above 1 / sqrt(gamma), the clean chunk's at all
    below. The paper writes it as min(SNR, gamma) / SNR for networks that predict the noise and as
    min(SNR, gamma) / (SNR + 1) for v: the same loss.

    Args:
        gamma: largest weight; 5 in the paper.

    Raises:
        ValueError: `gamma` is not positive.
    """

    gamma: float

    def __post_init__(self):
        if not self.gamma > 0:
            raise ValueError(f"gamma is {self.gamma}, it must be positive")

    def __call__(self, sigma: Tensor, preconditioning: Preconditioning) -> Tensor:
        """Weight [B, Tp] at levels sigma [B, Tp]."""
        return _snr(sigma).clamp(max=self.gamma)


@dataclass(frozen=True)
class P2:
    """SNR / (k + SNR)^gamma, whatever the parameterisation.

    The paper's 1 / (k + SNR)^gamma of the noise's error: less for low levels, where only details
    are left to clean up. With k = gamma = 1 it is 1 / (1 + sigma^2).

    Args:
        k: keeps the weight of the noise's error from growing without bound with sigma; 1 in the
            paper.
        gamma: 0.5 or 1 in the paper; 0 is the plain error of the noise.

    Raises:
        ValueError: `k` is not positive, or `gamma` is negative.
    """

    k: float
    gamma: float

    def __post_init__(self):
        if not (self.k > 0 and self.gamma >= 0):
            raise ValueError(f"k is {self.k} and gamma {self.gamma}: need k > 0 and gamma >= 0")

    def __call__(self, sigma: Tensor, preconditioning: Preconditioning) -> Tensor:
        """Weight [B, Tp] at levels sigma [B, Tp]."""
        snr = _snr(sigma)
        return snr * (self.k + snr) ** -self.gamma


def _snr(sigma: Tensor) -> Tensor:
    """1 / sigma^2; 0 for clean actions, which nothing predicts."""
    is_clean = sigma == 0
    return torch.where(is_clean, 0.0, torch.where(is_clean, 1.0, sigma) ** -2)
