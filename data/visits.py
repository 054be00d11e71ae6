"""Which windows of several stores an epoch visits, where each store has a weight.

A store whose share of the windows is larger than its weight wants is gone through in the course of
several epochs, another one more than once in an epoch; in the long run all windows of a store are
visited equally often. An epoch is a function of its number alone::

    weights 3 : 1, 6 windows of each     epoch 0              epoch 1
    store a, 9 of an epoch               a0 .. a5, a0 .. a2   a3 .. a5, a0 .. a5
    store b, 3 of an epoch               b0 .. b2             b3 .. b5

with the windows of a store in an order that spreads any few in a row over all of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Visits:
    """Which windows an epoch visits, where stores have weights.

    Args:
        counts: windows of each store; those of the first are 0 .. counts[0] - 1, and so on.
        quotas: windows of each store in an epoch.
    """

    counts: tuple[int, ...]
    quotas: tuple[int, ...]

    @classmethod
    def weighted(cls, counts: Sequence[int], weights: Sequence[float]) -> Self:
        """An epoch of about as many windows as there are, each store by its weight."""
        scale = sum(counts) / sum(weights)
        return cls(tuple(counts), tuple(max(1, round(scale * weight)) for weight in weights))

    def __len__(self) -> int:
        return sum(self.quotas)

    def __call__(self, epoch: int) -> Tensor:
        """[len] int64 windows of an epoch, store by store."""
        parts, first = [], 0
        for count, quota in zip(self.counts, self.quotas, strict=True):
            # The store's windows in turn, going on where the last epoch ended.
            turns = (epoch * quota + torch.arange(quota)) % count
            parts.append(first + turns * _stride(count) % count)
            first += count
        return torch.cat(parts)


def _stride(count: int) -> int:
    """A step that leads through all of `count` windows, any few in a row far apart.

    The number next to the golden section of `count` that has no divisor in common with it.
    """
    golden = round(count * (math.sqrt(5) - 1) / 2)
    return next(step for step in range(max(1, golden), 2 * count + 1) if math.gcd(step, count) == 1)
