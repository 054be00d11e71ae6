"""Between physical units and the scale a network works in.

Every element is `(x - center) / scale`, by the way of scaling that its field names:

* limits: the smallest and largest value of the data become -1 and 1;
* gaussian: mean 0 and standard deviation 1;
* quantiles: the 1st and the 99th percentile of the data become -1 and 1, so that a few outliers do
  not squeeze all others together; they come to lie beyond -1 and 1;
* identity: unchanged.

A constant element becomes 0. Discrete elements are scaled by their limits in every way of scaling,
and in "quantiles" so are those whose two percentiles are the same.
Images go from uint8 0..255 to -1..1. A planar angle of an observation is not scaled but becomes its
cosine and sine, since the step from -pi to pi is none; an observation then reads
`[other elements in order, cosines, sines]`. Angles of actions stay numbers.

A field may have several sets of statistics, such as one for each task that a policy is told
(`Field.scaled_per`): a one-hot field of an observation then tells which one its numbers, and those
of the actions that answer it, are scaled by.

Shape legend: `B` batch, `To` observed steps, `F` features that a network sees.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from data.blocks import Steps
from data.statistics import (
    angles_of,
    check_shape,
    checked,
    scaled_elements,
    sets_of_steps,
    statistics,
    statistics_of_sets,
)
from data.types import Contract, ContractError, Field


class Normalizer(nn.Module):
    """Scales the fields of a contract; its statistics live in the checkpoint.

    Statistics come from `fit` or `load_state_dict`; until then using them is an error.

    Args:
        contract: the fields and how they are scaled.

    Raises:
        ContractError: a field's name holds a ".", which a state dict cannot.
    """

    def __init__(self, contract: Contract):
        super().__init__()
        self._fields = contract.fields
        self._teller = contract.scaled_per  # the field that tells the set of statistics, or ""
        self._is_fitted = False
        for name, field in self._fields.items():
            if "." in name:
                raise ContractError(f"field name {name!r} holds a '.': rename it, such as 'a_b'")
            if not field.is_image:
                n_scaled = len(scaled_elements(name, field))
                n_sets = [contract.fields[self._teller].size] if field.scaled_per else []
                self.register_buffer(f"{name}/center", torch.zeros(*n_sets, n_scaled))
                self.register_buffer(f"{name}/scale", torch.ones(*n_sets, n_scaled))

    @classmethod
    def fit(cls, contract: Contract, arrays: Mapping[str, Steps]) -> Self:
        """A normalizer with the statistics of the given data.

        Args:
            contract: the fields and how they are scaled.
            arrays: field name -> [n_steps, ...], or blocks of them; images are not needed.

        Raises:
            ContractError: a field's name holds a ".".
            ValueError: a field is missing, empty, not finite, or of another shape; or a set of
                statistics has no steps, or a step does not tell its own.
        """
        normalizer = cls(contract)
        sets = sets_of_steps(contract, arrays)
        for name, field in contract.fields.items():
            if field.is_image:
                continue
            values = checked(name, field, arrays.get(name))
            if field.scaled_per:
                center, scale = statistics_of_sets(name, field, values, sets)
            else:
                center, scale = statistics(name, field, values)
            normalizer.get_buffer(f"{name}/center").copy_(torch.from_numpy(center))
            normalizer.get_buffer(f"{name}/scale").copy_(torch.from_numpy(scale))
        normalizer._is_fitted = True
        return normalizer

    def size(self, name: str) -> int:
        """F, the number of features a network sees of a field."""
        field = self._field(name)
        return field.size + len(angles_of(name, field))

    def sets_of(self, observation: Mapping[str, Tensor]) -> Tensor | None:
        """Which statistics scale each observation and its actions, [B]; None where all are alike.

        Args:
            observation: field name -> [B, To, ...]; of these the newest step of the field that
                tells is looked at.

        Raises:
            KeyError: that field is missing.
        """
        if not self._teller:
            return None
        if self._teller not in observation:
            raise KeyError(
                f"the observation lacks {self._teller!r}, which tells by which statistics its "
                f"numbers are scaled; given are {sorted(observation)}"
            )
        return observation[self._teller][:, -1].argmax(dim=-1)

    def normalize(self, name: str, x: Tensor, sets: Tensor | None = None) -> Tensor:
        """[..., F] float features of a field [..., *shape]; an image keeps its shape.

        Args:
            name: of the field.
            x: in physical units; [B, ..., *shape] where the field has several sets of statistics.
            sets: [B] int64 of `sets_of`; fields with one set do not look at it.

        Raises:
            KeyError: no such field.
            ValueError: another shape than the contract's, a picture that is not uint8, no
                statistics yet, or several sets of them and not one named for each row.
        """
        field = self._field(name)
        check_shape(name, tuple(x.shape), field.shape)
        if field.is_image:
            if x.dtype != torch.uint8:
                raise ValueError(
                    f"the picture {name!r} is {x.dtype}, the contract says uint8, 0..255: convert "
                    f"it (of numbers 0..1: 255 times them, rounded)"
                )
            return x.float() / 127.5 - 1
        leading = x.shape[: x.ndim - len(field.shape)]
        center, scale = self._scaling(name, leading, sets)
        flat = x.reshape(*leading, field.size).to(center.dtype)
        angles = angles_of(name, field)
        if not angles:
            return (flat - center) / scale
        angle = flat[..., angles]
        scaled = (flat[..., scaled_elements(name, field)] - center) / scale
        return torch.cat([scaled, angle.cos(), angle.sin()], dim=-1)

    def unnormalize(self, name: str, x: Tensor, sets: Tensor | None = None) -> Tensor:
        """[..., *shape] in physical units from features [..., F]; angles in -pi..pi.

        Args:
            name: of the field.
            x: in the network's scale; [B, ..., F] where the field has several sets of statistics.
            sets: [B] int64 of `sets_of`; fields with one set do not look at it.

        Raises:
            KeyError: no such field.
            ValueError: another number of features, no statistics yet, or several sets of them and
                not one named for each row.
        """
        field = self._field(name)
        if field.is_image:
            check_shape(name, tuple(x.shape), field.shape)
            return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        check_shape(name, tuple(x.shape), (self.size(name),))
        center, scale = self._scaling(name, x.shape[:-1], sets)
        n_scaled = center.shape[-1]
        flat = x[..., :n_scaled] * scale + center
        angles = angles_of(name, field)
        if angles:
            cos, sin = x[..., n_scaled:].chunk(2, dim=-1)
            order = np.argsort([*scaled_elements(name, field), *angles])
            flat = torch.cat([flat, torch.atan2(sin, cos)], dim=-1)[..., order.tolist()]
        return flat.reshape((*x.shape[:-1], *field.shape))

    def digest(self) -> str:
        """SHA-256 of the statistics and of how each field is scaled."""
        digest = hashlib.sha256()
        for name, field in sorted(self._fields.items()):
            digest.update(f"{name} {field.shape} {field.normalization} {field.angles}".encode())
            digest.update(field.scaled_per.encode())
            if not field.is_image:
                for statistic in self._buffers_of(name):
                    digest.update(statistic.detach().cpu().numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    def _field(self, name: str) -> Field:
        if name not in self._fields:
            raise KeyError(f"no statistics of a field {name!r}; known are {sorted(self._fields)}")
        return self._fields[name]

    def _buffers_of(self, name: str) -> tuple[Tensor, Tensor]:
        """Center and scale, [n_scaled] or [n_sets, n_scaled]."""
        if not self._is_fitted:
            raise ValueError("the normalizer has no statistics: fit it or load a state dict")
        return self.get_buffer(f"{name}/center"), self.get_buffer(f"{name}/scale")

    def _scaling(
        self, name: str, leading: tuple[int, ...], sets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Center and scale of elements [*leading, n_scaled]; each row has those of its set."""
        center, scale = self._buffers_of(name)
        teller = self._fields[name].scaled_per
        if not teller:
            return center, scale
        if sets is None:
            raise ValueError(
                f"{name!r} has {len(center)} sets of statistics, one per element of {teller!r}: "
                f"name one for each row, or give the observation that tells it"
            )
        if not leading or tuple(sets.shape) != leading[:1]:
            raise ValueError(
                f"sets has shape {tuple(sets.shape)} for {name!r} of leading shape "
                f"{tuple(leading)}: name one for each row of the first dimension"
            )
        index = sets.to(center.device)
        shape = (len(sets), *[1] * (len(leading) - 1), center.shape[-1])
        return center[index].reshape(shape), scale[index].reshape(shape)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Strict even where the rest is not: wrong statistics give wrong motions, not errors."""
        wanted = {name: tuple(buffer.shape) for name, buffer in self.named_buffers()}
        given = {
            name.removeprefix(prefix): tuple(value.shape)
            for name, value in state_dict.items()
            if name.startswith(prefix)
        }
        if wanted != given:
            raise ContractError(
                f"the state dict holds statistics {given}, the contract needs {wanted}: "
                f"use the contract the checkpoint was trained with"
            )
        broken = [n for n in wanted if not torch.isfinite(state_dict[prefix + n]).all()]
        if broken:
            raise ContractError(f"the statistics {broken} of the state dict are not finite")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._is_fitted = True
