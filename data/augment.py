"""Augmentation in training: noise on what a policy observes, crops, symmetries of a task.

Shape legend: `B` batch, `To` observed steps, `F` features of a field, `H W C` of a picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

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
class RandomCrop:
    """A square of each picture, anywhere in it; the same in all steps of a window.

    An encoder with the same `crop` takes the centre where it is given whole pictures.

    Args:
        size: height and width [px].

    Raises:
        ValueError: `size` is not positive.
    """

    size: int

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size is {self.size} px, it must be at least 1")

    def __call__(
        self, features: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Features with pictures [B, To, size, size, C]; all others stay as they are.

        Args:
            features: field name -> [B, To, F], of a picture [B, To, H, W, C].
            generator: of the places, on the device of the features.

        Raises:
            ValueError: a picture is smaller than the crop.
        """
        return {
            name: self._cropped(name, values, generator) if values.ndim == 5 else values
            for name, values in features.items()
        }

    def _cropped(self, name: str, images: Tensor, generator: torch.Generator) -> Tensor:
        height, width = images.shape[2:4]
        if self.size > min(height, width):
            raise ValueError(
                f"the pictures of {name!r} are {height} x {width} px, a crop of {self.size} px is "
                f"wanted: lower it to {min(height, width)}"
            )
        batch = torch.arange(len(images), device=images.device)

        def first(n: int) -> Tensor:
            """[B] first rows or columns, of n pixels."""
            u = torch.rand(len(images), generator=generator, device=images.device)
            return (u * (n - self.size + 1)).long()  # u < 1, so all places are equally likely.

        # All crops, as a view; only the chosen ones are copied.
        crops = images.unfold(2, self.size, 1).unfold(3, self.size, 1)
        return crops[batch, :, first(height), first(width)].permute(0, 1, 3, 4, 2)


class FieldSymmetry(Protocol):
    """What a field looks like in a mirror."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a field of this shape of a step has this mirror image."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """The mirror image of x [..., *shape], of the same shape."""
        ...


@dataclass(frozen=True)
class ImageSymmetry:
    """One of the eight ways to put a square picture: flipped or not, transposed or not.

    Args:
        flip_rows: whether top and bottom change places, first of all.
        flip_columns: whether left and right change places.
        transpose: whether rows become columns, last.
    """

    flip_rows: bool = False
    flip_columns: bool = False
    transpose: bool = False

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether these are pictures, square ones if rows become columns."""
        return len(shape) == 3 and (shape[0] == shape[1] or not self.transpose)

    def __str__(self) -> str:
        return "a symmetry of (square) pictures"

    def __call__(self, x: Tensor) -> Tensor:
        """The mirror image of pictures [..., H, W, C]."""
        dims = [-3] * self.flip_rows + [-2] * self.flip_columns
        x = x.flip(dims) if dims else x
        return x.transpose(-3, -2) if self.transpose else x


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

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a step has as many elements."""
        return shape == (len(self.source),)

    def __str__(self) -> str:
        return f"a symmetry of {len(self.source)} elements"

    def __call__(self, x: Tensor) -> Tensor:
        """The image of x [..., n]."""
        assert x.shape[-1] == len(self.source)
        # Element by element, since a GPU would be waited for to bring it tensors made here.
        elements = zip(self.source, self.sign, self.offset, strict=True)
        return torch.stack([x[..., i] * sign + offset for i, sign, offset in elements], dim=-1)


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

    fields: Mapping[str, FieldSymmetry]
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
            if not mirror.fits(contract.fields[name].shape):
                raise ValueError(
                    f"{name!r} is given {mirror}, the field has shape "
                    f"{contract.fields[name].shape}: give one that fits, or symmetry=null"
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
