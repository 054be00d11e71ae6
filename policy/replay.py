"""A policy's denoiser for a sampler whose levels are known beforehand.

What a network computes from the noise level alone (its embedding, modulations, which experts are
chosen) is then computed once per checkpoint and not once per call.

Shape legend: `B` rows, `Tp` actions of a chunk, `Da` action size, `C` condition size.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from policy.model import DiffusionPolicy
from policy.types import Denoiser


@torch.no_grad()
def denoisers_at(policy: DiffusionPolicy, levels: Sequence[float]) -> list[Denoiser]:
    """The policy's denoiser for each of a sampler's calls; equal levels share one.

    Args:
        policy: frozen, on its device.
        levels: of each call, the same for all actions.
    """
    device = next(policy.parameters()).device
    at = {
        level: policy.at(torch.full((policy.horizons.pred,), level, device=device))
        for level in set(levels)
    }
    return [at[level] for level in levels]


class Replay:
    """A denoiser for one sampler call, whose k-th use is by the k-th of some denoisers.

    Args:
        denoisers: in the order of the calls.
    """

    def __init__(self, denoisers: Iterable[Denoiser]):
        self._denoisers = iter(denoisers)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        """x0_hat [B, Tp, Da] of the next denoiser."""
        return next(self._denoisers)(x, sigma, cond)
