"""Classifier-free guidance: away from what the denoiser predicts without the condition.

Source: Ho and Salimans 2022, arXiv:2207.12598, equation 6, with `weight` = 1 + w.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size.
"""

import torch
from torch import Tensor

from policy.types import Denoiser


def classifier_free(denoiser: Denoiser, *, null_cond: Tensor, weight: float) -> Denoiser:
    """A denoiser guided by `weight`: 0 is unconditional, 1 conditional, more exaggerates.

    One call with twice the batch.

    Args:
        denoiser: that has been trained with and without its condition.
        null_cond: [C] condition that stands for none.
        weight: of the difference that the condition makes.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        both = torch.cat([null_cond.expand_as(cond), cond])
        x0_hat = denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), both)
        without, given = x0_hat.chunk(2)
        return without + weight * (given - without)

    return guided
