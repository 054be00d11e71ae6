"""Real-time chunking: a new chunk that agrees with the last one where that is being executed.

    weight   1   1   1  .6  .3  .1   0   0   0   0
             | delay |   fades out    |  executed  |   of Tp actions of the last chunk

Source: Black et al. 2025, RTC, arXiv:2506.07339, equations 2 to 5.

Differences from the paper:

1. In the coordinate `x = x0 + sigma eps`, the guided prediction is
   `x0_hat + kappa J^T W (Y - x0_hat)` with J the Jacobian of x0_hat, W the weights, Y the last
   chunk and `kappa = min(1 + sigma^2 / sigma_data^2, max_weight * sigma)`. The paper's form is
   sigma_data = 1.
2. `blend` sets kappa J to the identity, its limit for actions that are independent given the
   observation: no gradient is needed, but the free actions learn nothing of the committed ones.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from policy.types import Denoiser


def soft_mask(is_known: Tensor, *, delay: int) -> Tensor:
    """Weights [B, Tp] of the last chunk's actions (equation 5).

    Args:
        is_known: [B, Tp] bool, whether the last chunk says anything of an action; the known ones
            are consecutive. Unknown ones may come before them (the past of a first chunk), and
            after them.
        delay: first actions, which are executed while the new chunk is computed.
    """
    i = torch.arange(is_known.shape[1], device=is_known.device)
    end = torch.where(is_known, i + 1, 0).amax(dim=1, keepdim=True)  # after the last known one
    c = ((end - i) / (end - delay + 1).clamp(min=1)).clamp(0, 1)
    fading = c * torch.expm1(c) / math.expm1(1)
    return torch.where(is_known, torch.where(i < delay, 1.0, fading), 0.0)


@dataclass(frozen=True)
class RealTimeChunking:
    """Guides a denoiser towards the last chunk.

    A guided call counts as one denoiser call (`nfe`), though unless it blends it includes a
    backward pass through the network, the vector-Jacobian product.

    Args:
        delay: first actions with weight 1; past ones count.
        strength: factor of all weights, 0..1.
        max_weight: limit of the guidance weight (beta in the paper); large values overshoot with
            few steps.
        sigma_data: deviation of actions given an observation.
        blend: blend predictions instead of following the gradient.

    Raises:
        ValueError: a setting is out of range.
    """

    delay: int
    strength: float
    max_weight: float
    sigma_data: float
    blend: bool

    def __post_init__(self):
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}, it must be in 0..1")
        if not (self.max_weight >= 0 and self.sigma_data > 0 and self.delay >= 0):
            raise ValueError(
                f"max_weight is {self.max_weight}, sigma_data {self.sigma_data}, delay "
                f"{self.delay}: need max_weight >= 0, sigma_data > 0, delay >= 0"
            )

    def __call__(self, denoiser: Denoiser, target: Tensor, is_known: Tensor) -> Denoiser:
        """The guided denoiser.

        Args:
            denoiser: to be guided.
            target: [B, Tp, Da] last chunk, moved to the present.
            is_known: [B, Tp, Da] whether it says anything of an element; the known actions are
                consecutive.
        """
        fading = soft_mask(is_known.any(dim=-1), delay=self.delay)
        weights = self.strength * fading[..., None] * is_known

        def guided(x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
            weight = torch.where((sigma > 0)[..., None], weights, 0.0)
            if self.blend:
                x0_hat = denoiser(x, sigma, cond)
                return x0_hat + weight * (target - x0_hat)
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                x0_hat = denoiser(x, sigma, cond)
                error = (weight * (target - x0_hat)).detach()
                (pull,) = torch.autograd.grad(x0_hat, x, error)
            kappa = torch.minimum(1 + (sigma / self.sigma_data) ** 2, self.max_weight * sigma)
            return x0_hat.detach() + kappa[..., None] * pull

        return guided
