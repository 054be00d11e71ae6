"""Augmentation of what a policy observes in training.

Shape legend: `B` batch, `To` observed steps, `F` features of a field.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureNoise:
    """Normal noise on each normalised feature of each observed step.

    A few hundred demonstrations are soon learned by heart; noise makes neighbouring states share
    what was done in them, and keeps a policy from reading the next action off the last movement.

    Args:
        std: standard deviation in the network's scale, where a field spans 2; 0 is none.

    Raises:
        ValueError: `std` is negative.
    """

    std: float

    def __post_init__(self):
        if self.std < 0:
            raise ValueError(f"std is {self.std}, it must be at least 0")

    def __call__(
        self, features: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Noisy features; images [B, To, H, W, C] stay as they are.

        Args:
            features: field name -> [B, To, F], on the generator's device.
            generator: of the noise.
        """
        if self.std == 0:
            return dict(features)
        return {name: self._noisy(values, generator) for name, values in features.items()}

    def _noisy(self, values: Tensor, generator: torch.Generator) -> Tensor:
        if values.ndim > 3:
            return values
        noise = torch.randn(values.shape, generator=generator, device=values.device)
        return values + self.std * noise
