"""Classifier-free guidance: away from what the denoiser predicts without the condition.

Source: Ho and Salimans 2022, arXiv:2207.12598, equation 6, with `weight` = 1 + w.

Shape legend: `N` rows (of streams), `B` batch of a call, `Tp` actions of a chunk, `Da` action size,
`C` condition size.
"""

import torch
from torch import Tensor

from policy.types import Denoiser


def classifier_free(denoiser: Denoiser, *, null_cond: Tensor, weight: float) -> Denoiser:
    """A denoiser guided by `weight`: 0 is unconditional, 1 conditional, more exaggerates.

    One call with twice the batch. It is counted as one call; on a CPU it takes the time of two.

    Args:
        denoiser: that has been trained with and without its condition.
        null_cond: condition that stands for none, [C] or one per row [N, C]; calls may have several
            chunks per row, in which the row varies fastest.
        weight: of the difference that the condition makes.
    """
    null_cond = null_cond.reshape(-1, null_cond.shape[-1])

    def guided(x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        null = null_cond.repeat(len(cond) // len(null_cond), 1)
        both = torch.cat([null, cond])
        x0_hat = denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), both)
        without, given = x0_hat.chunk(2)
        return without + weight * (given - without)

    return guided
