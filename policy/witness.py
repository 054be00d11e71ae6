"""A denoiser that remembers where its predictions stopped being finite, without waiting for them.

Shape legend: `B` rows, `Tp` actions of a chunk, `Da` action size.
"""

import torch
from torch import Tensor

from policy.types import Denoiser


class Witness:
    """Passes calls on to a denoiser and looks at what it predicts.

    Args:
        denoiser: to be watched.
        rows: B; calls may have several chunks per row, in which the row varies fastest.

    Attributes:
        sigma_of_fault: [B] level of the first call whose prediction was not finite; 0 if all were.
    """

    def __init__(self, denoiser: Denoiser, rows: int):
        self._denoiser, self._rows = denoiser, rows
        self.sigma_of_fault = torch.zeros(rows)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        """x0_hat [B, Tp, Da] of the denoiser."""
        x0_hat = self._denoiser(x, sigma, cond)
        is_fault = ~torch.isfinite(x0_hat).flatten(1).all(dim=1)
        level = torch.where(is_fault, sigma.amax(dim=1), 0.0).view(-1, self._rows).amax(dim=0)
        earlier = self.sigma_of_fault.to(level.device)
        self.sigma_of_fault = torch.where(earlier > 0, earlier, level)
        return x0_hat
