"""How probable a denoising step is: the Gaussian of the same moments that drew it.

Sources: Black et al. 2023, DDPO, arXiv:2305.13301, and Ren et al. 2024, DPPO, arXiv:2409.00588,
section 4, for denoising as a chain of Gaussian decisions; the floors are DPPO's, section 4.3.

Differences from the papers: the moments are those of `x = x0 + sigma * eps`, so that one function
serves whatever the network predicts (noise, v, x0, EDM, flow); a chunk on the variance-preserving
scale is the same divided by sqrt(1 + sigma^2), which changes a density by a constant and no ratio.
A floor takes its noise out of what is kept of x (see `ancestral_moments`), where DPPO adds it on
top. Log-probabilities are those of whole actions, to be summed over the executed ones and not
averaged: their differences are then those of the joint density, and a clip range means what it
means elsewhere.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size.
"""

import math

import torch
from torch import Tensor


def step_log_prob(x_next: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-probability [B, Tp] of each action of a step to x_next; 0 where the step has no noise.

    Args:
        x_next: [B, Tp, Da] chunk that was reached.
        mean: [B, Tp, Da] of the step.
        std: [B, Tp, 1] of the step.
    """
    is_drawn = std > 0
    safe = torch.where(is_drawn, std, 1.0)
    log_density = -0.5 * ((x_next - mean) / safe) ** 2 - safe.log() - 0.5 * math.log(2 * math.pi)
    return (log_density * is_drawn).sum(dim=-1)


def step_kl(mean: Tensor, other: Tensor, std: Tensor) -> Tensor:
    """Divergence [B, Tp] of each action of two steps of one standard deviation.

    Both directions are the same: half the squared distance of the means in units of `std`.

    Args:
        mean: [B, Tp, Da] of one step.
        other: [B, Tp, Da] mean of the other.
        std: [B, Tp, 1] of both, positive.
    """
    return 0.5 * ((mean - other) / std).square().sum(dim=-1)


def step_entropy(std: Tensor, *, action_size: int) -> Tensor:
    """Entropy [B, Tp] of each action of a step in nats.

    Args:
        std: [B, Tp, 1] of the step, positive.
        action_size: Da.
    """
    return action_size * (std[..., 0].log() + 0.5 * math.log(2 * math.pi * math.e))
