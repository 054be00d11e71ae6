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
        self._seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        """x0_hat [B, Tp, Da] of the denoiser."""
        x0_hat = self._denoiser(x, sigma, cond)
        self._seen.append((x0_hat, sigma))
        return x0_hat

    def fault(self) -> Tensor:
        """[B] highest level of a not finite prediction in the first call that had one; 0: none."""
        if not self._seen:
            return torch.zeros(self._rows)
        # All calls at once: one by one it would take longer than a small network.
        x0_hat = torch.cat([x0_hat for x0_hat, _ in self._seen])
        sigma = torch.cat([sigma for _, sigma in self._seen])
        is_fault = ~torch.isfinite(x0_hat).all(dim=-1)
        level = torch.where(is_fault, sigma, 0.0).amax(dim=1).view(-1, self._rows)
        n_chunks = [len(x0_hat) // self._rows for x0_hat, _ in self._seen]  # per row, of each call
        if set(n_chunks) != {1}:
            level = torch.stack([part.amax(dim=0) for part in level.split(n_chunks)])
        first = (level > 0).int().argmax(dim=0, keepdim=True)
        return level.gather(0, first)[0]

    def sigma_of_fault(self) -> list[float]:
        """The same as numbers."""
        return self.fault().tolist()
