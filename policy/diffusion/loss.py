"""The training loss: weighted squared error of the predicted clean chunk.

Source: Karras et al. 2022, EDM, arXiv:2206.00364, equations 2 and 8.

Differences from the paper: one noise level per action, drawn by a mixture of patterns; clean
actions are not counted; the weight is capped, since the smallest levels carry little that a robot
could show and would drown the others.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size, `C` condition size.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from policy.diffusion.precond import Preconditioning
from policy.diffusion.weight import Weight, raw_output

# (batch, pred_horizon, generator) -> sigma [B, Tp]
Corruption = Callable[[int, int, torch.Generator], Tensor]
# (x [B, Tp, Da], sigma [B, Tp], cond [B, C]) -> x0_hat [B, Tp, Da]
Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Noised:
    """Chunks with the noise that a step gives them; all of its chance, and nothing of a network.

    Args:
        x0: [B, Tp, Da] clean chunks in the network's scale.
        x: [B, Tp, Da] noisy ones.
        sigma: [B, Tp] their levels.
        weight: [B, Tp] of the squared error; 0 where it does not count.
        count: how many actions count in the batch that the loss is a mean of, a scalar.
        size: B of that batch.
    """

    x0: Tensor
    x: Tensor
    sigma: Tensor
    weight: Tensor
    count: Tensor
    size: int

    def part(self, rows: slice) -> "Noised":
        """Some rows, still of the same batch: the losses of its parts add up to its loss."""
        return replace(
            self, x0=self.x0[rows], x=self.x[rows], sigma=self.sigma[rows], weight=self.weight[rows]
        )

    def loss(
        self,
        denoise: Denoise,
        cond: Tensor,
        penalty: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The share of these rows in the loss of the batch, a scalar.

        Args:
            denoise: the denoiser in training.
            cond: [B, C] encoded observations.
            penalty: of levels [B, Tp] and conditions [B, C], a mean over samples; added to the
                error, if there is one. Of a part it has the weight of its rows.
        """
        error = (denoise(self.x, self.sigma, cond) - self.x0).square().mean(dim=-1)
        loss = (self.weight * error).sum() / self.count
        if penalty is None:
            return loss
        share = len(self.x) / self.size
        return loss + share * penalty(self.sigma, cond)


@dataclass(frozen=True)
class DenoisingLoss:
    """Mean over the counted actions of `min(weight, max_weight) |x0_hat - x0|^2 / Da`.

    Args:
        corruption: draws the noise levels.
        max_weight: cap of the weight, whichever it is.
        count_padding: whether actions outside of an episode are counted, which repeat its last (or
            first) one: they teach to hold still there.
        weight: of the squared error; one of policy/diffusion/weight.py.
    """

    corruption: Corruption
    max_weight: float
    count_padding: bool
    weight: Weight = raw_output

    def __call__(
        self,
        denoise: Denoise,
        x0: Tensor,
        cond: Tensor,
        *,
        is_pad: Tensor,
        preconditioning: Preconditioning,
        generator: torch.Generator,
        penalty: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            denoise: the denoiser in training.
            x0: [B, Tp, Da] clean chunks in the network's scale.
            cond: [B, C] encoded observations.
            is_pad: [B, Tp] bool, actions after the end of an episode.
            preconditioning: of the denoiser, for the weight.
            generator: of levels and noise, on x0's device.
            penalty: of levels [B, Tp] and conditions [B, C]; added to the error, if there is one.
        """
        noised = self.noised(
            x0, is_pad=is_pad, preconditioning=preconditioning, generator=generator
        )
        return noised.loss(denoise, cond, penalty)

    def noised(
        self,
        x0: Tensor,
        *,
        is_pad: Tensor,
        preconditioning: Preconditioning,
        generator: torch.Generator,
    ) -> Noised:
        """A batch with its noise; for the arguments see the call."""
        batch, pred_horizon, _ = x0.shape
        sigma = self.corruption(batch, pred_horizon, generator)
        eps = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        is_counted = sigma > 0
        if not self.count_padding:
            is_counted = is_counted & ~is_pad
        weight = self.weight(sigma, preconditioning).clamp(max=self.max_weight)
        return Noised(
            x0=x0,
            x=x0 + sigma[..., None] * eps,
            sigma=sigma,
            weight=weight * is_counted,
            count=is_counted.sum().clamp(min=1),
            size=batch,
        )
