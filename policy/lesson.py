"""What one optimiser step learns: a batch with all of its chance drawn, and the loss on it.

Drawing comes first and is of the whole batch, so that the loss is a function of tensors alone: it
is the same whether the batch is learned at once, in parts one after another, or in parts by several
processes, and it can be compiled or captured.

Shape legend: `B` windows of a batch, `To Tp` observed and predicted steps, `Da` action size, `F`
features of a field.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from data.types import Batch
from policy.diffusion.loss import DenoisingLoss, Noised
from policy.model import DiffusionPolicy

# (field name -> features [B, To, F], generator) -> features that are trained on
Augment = Callable[[Mapping[str, Tensor], torch.Generator], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Lesson:
    """A batch as it is learned.

    Args:
        features: field name -> [B, To, F] normalised and augmented, of a picture [B, To, H, W, C].
        noised: [B * draws, Tp, Da] noisy chunks, those of a window in a row.
        draws: noisy chunks of each window.
    """

    features: Mapping[str, Tensor]
    noised: Noised
    draws: int = 1

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        policy: DiffusionPolicy,
        loss: DenoisingLoss,
        batch: Batch,
        generator: torch.Generator,
        *,
        augment: Augment,
        draws: int = 1,
    ) -> "Lesson":
        """The lesson of a batch.

        Args:
            policy: whose scale it is in.
            loss: that noises it.
            batch: in physical units, on the generator's device.
            generator: of all that is random.
            augment: of the observations.
            draws: noisy chunks of each window.
        """
        features = augment(policy.features(batch.observation), generator)
        noised = loss.noised(
            policy.chunk(batch.action, batch.observation).repeat_interleave(draws, dim=0),
            is_pad=batch.is_pad.repeat_interleave(draws, dim=0),
            preconditioning=policy.preconditioning,
            generator=generator,
        )
        return cls(features, noised, draws)

    def part(self, number: int, n_parts: int) -> "Lesson":
        """One of `n_parts` equal parts, whose losses add up to that of all windows.

        Raises:
            ValueError: the windows cannot be shared out equally.
        """
        if n_parts == 1:
            return self
        n_windows = len(self.noised.x) // self.draws
        size, left = divmod(n_windows, n_parts)
        if left:
            raise ValueError(f"{n_windows} windows cannot be shared out among {n_parts} parts")
        rows = slice(number * size, (number + 1) * size)
        draws = slice(rows.start * self.draws, rows.stop * self.draws)
        features = {name: values[rows] for name, values in self.features.items()}
        return Lesson(features, self.noised.part(draws), self.draws)

    def loss(
        self, policy: DiffusionPolicy, *, with_penalty: bool = False, autocast: bool = False
    ) -> Tensor:
        """The loss of a policy, a scalar; of a part, its share in that of the batch.

        Args:
            policy: that learns, or is judged.
            with_penalty: whether what the network asks for is added.
            autocast: whether networks run in bfloat16.
        """
        device = self.noised.x.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            cond = policy.encoder(self.features).repeat_interleave(self.draws, dim=0)
            return self.noised.loss(policy, cond, policy.penalty if with_penalty else None)
