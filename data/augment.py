"""Augmentation in training: noise on what a policy observes, symmetries of a task.

Shape legend: `B` batch, `To` observed steps, `F` features of a field.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data.types import Batch, Contract


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


@dataclass(frozen=True)
class SignedPermutation:
    """Element i of the result is `sign[i] * x[source[i]] + offset[i]`, in physical units.

    Args:
        source: which element each one comes from.
        sign: 1 or -1 for each.
        offset: what is added to each.

    Raises:
        ValueError: the lengths differ, an element does not come once, or a sign is neither.
    """

    source: Sequence[int]
    sign: Sequence[float]
    offset: Sequence[float]

    def __post_init__(self):
        whole = all(type(element) is int for element in self.source)
        if not whole or sorted(self.source) != list(range(len(self.source))):
            raise ValueError(f"source is {list(self.source)}, each element must come once")
        if any(abs(sign) != 1 for sign in self.sign):
            raise ValueError(f"sign is {list(self.sign)}, give 1 or -1")
        if not len(self.source) == len(self.sign) == len(self.offset):
            raise ValueError(
                f"source, sign and offset have {len(self.source)}, {len(self.sign)} and "
                f"{len(self.offset)} entries: give one of each per element"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """The image of x [..., n]."""
        assert x.shape[-1] == len(self.source)
        index = torch.tensor(list(self.source), device=x.device)
        return x[..., index] * x.new_tensor(list(self.sign)) + x.new_tensor(list(self.offset))


@dataclass(frozen=True)
class Mirror:
    """A symmetry of a task: a share of the windows is replaced by what they look like mirrored.

    Observations, actions, dynamics and goal must all be symmetric, or wrong motions are taught.
    Statistics are those of the windows as they were recorded.

    Args:
        fields: field name (or "action") -> its mirror, for all fields of the demonstrations.
        share: of the windows that are mirrored.

    Raises:
        ValueError: the share is not in 0..1.
    """

    fields: Mapping[str, SignedPermutation]
    share: float

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}, it must be in 0..1")

    def check(self, contract: Contract) -> None:
        """Raise ValueError where this is no mirror of demonstrations of a contract.

        A field that is not named would stay as it is, and teach wrong motions: give it its
        identity if it looks the same in the mirror.
        """
        if set(self.fields) != set(contract.fields):
            raise ValueError(
                f"the symmetry mirrors {sorted(self.fields)}, the demonstrations have "
                f"{sorted(contract.fields)}: name each of them, or train with symmetry=null"
            )
        for name, mirror in self.fields.items():
            if contract.fields[name].shape != (len(mirror.source),):
                raise ValueError(
                    f"the symmetry of {name!r} has {len(mirror.source)} elements, the field has "
                    f"shape {contract.fields[name].shape}: give as many, or symmetry=null"
                )

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with some windows mirrored.

        Args:
            batch: windows in physical units, on the generator's device.
            generator: draws which.
        """
        n = len(batch.action)
        is_mirrored = torch.rand(n, generator=generator, device=generator.device) < self.share

        def mirrored(name: str, x: Tensor) -> Tensor:
            chosen = is_mirrored.view(-1, *[1] * (x.ndim - 1))
            return torch.where(chosen, self.fields[name](x), x)

        observation = {name: mirrored(name, x) for name, x in batch.observation.items()}
        return replace(batch, observation=observation, action=mirrored("action", batch.action))
