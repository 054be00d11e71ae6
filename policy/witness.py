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

    """

    def __init__(self, denoiser: Denoiser, rows: int):
        self._denoiser, self._rows = denoiser, rows
        self._fault: Tensor | None = None

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        """x0_hat [B, Tp, Da] of the denoiser."""
        x0_hat = self._denoiser(x, sigma, cond)
        is_fault = ~torch.isfinite(x0_hat).all(dim=-1)
        level = torch.where(is_fault, sigma, 0.0).amax(dim=1).view(-1, self._rows).amax(dim=0)
        earlier = self._fault
        self._fault = level if earlier is None else torch.where(earlier > 0, earlier, level)
        return x0_hat

    def sigma_of_fault(self) -> list[float]:
        """[B] highest level of a not finite prediction in the first call that had one; 0: none."""
        return [0.0] * self._rows if self._fault is None else self._fault.tolist()
