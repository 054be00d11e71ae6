"""Streams of control: what an agent keeps of each, and the rows of a carry.

Shape legend: `N` streams.
"""

from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor

from policy.types import Carry


class NotFiniteError(ValueError):
    """The denoiser predicted something that is not a number."""


@dataclass
class Streams:
    """What an agent keeps of each stream.

    Args:
        seeds: one per stream.
        generators: one per stream.
        ticks: control ticks that each stream has lived.
        fresh: slots whose stream has seen nothing yet.
        carry: the sampler's, one row per stream; None before the first chunk.
        told: slot -> element of the field that tells its scale, at its last chunk (see
            `DiffusionPolicy.told`); empty where all have the same scale.
    """

    seeds: list[int]
    generators: list[torch.Generator]
    ticks: list[int]
    fresh: set[int] = field(default_factory=set)
    carry: Carry | None = None
    told: dict[int, int] = field(default_factory=dict)


def element_told(values: np.ndarray, *, name: str, slot: int) -> int:
    """Which element of a one-hot field is 1.

    Args:
        values: [n] the field at a stream's newest step.
        name: of the field, for the message.
        slot: of the stream, for the message.

    Raises:
        ValueError: not exactly one element is 1 and all others 0, to 1e-6.
    """
    values = values.astype(np.float64)
    is_one, is_zero = np.abs(values - 1) <= 1e-6, np.abs(values) <= 1e-6
    if is_one.sum() != 1 or not (is_one | is_zero).all():
        raise ValueError(
            f"the stream in slot {slot} is told {name!r} = [{', '.join(f'{x:g}' for x in values)}] "
            f"at its newest step, which says by which statistics it is scaled: exactly one of the "
            f"{len(values)} elements must be 1 and all others 0"
        )
    return int(is_one.argmax())


def zeros(like: Carry, n: int) -> Carry:
    """A carry of `n` streams of zeros."""
    return like.replace(
        **{
            f.name: getattr(like, f.name).new_zeros((n, *getattr(like, f.name).shape[1:]))
            for f in fields(like)
        }
    )


def take(carry: Carry, index: list[int]) -> Carry:
    """The rows of a carry at `index`."""
    return carry.replace(**{f.name: getattr(carry, f.name)[index] for f in fields(carry)})


def put(carry: Carry, index: list[int], rows: Carry) -> Carry:
    """A carry whose rows at `index` are replaced."""

    def scatter(old: Tensor, new: Tensor) -> Tensor:
        out = old.clone()
        out[index] = new
        return out

    return carry.replace(
        **{f.name: scatter(getattr(carry, f.name), getattr(rows, f.name)) for f in fields(carry)}
    )
