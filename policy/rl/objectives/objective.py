"""The seam of objectives: what they are given of a minibatch, and what they return.

Shape legend: `T` chunks in a row, `N` environments, `M` items of a minibatch, `Tp` actions of a
chunk, `Da` action size, `C` condition size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor

from policy.rl.chain import Kernel
from policy.rl.rollout import Rollout
from policy.types import ChunkSpace, Denoiser, Generator

# Name -> [T, N, items, ...], what is known of each item before the first step of an update.
Prepared = Mapping[str, Tensor]


@dataclass(frozen=True)
class Items:
    """A minibatch: valid chunks of a rollout, each with the number of a decision or a noise draw.

    Args:
        rollout: that they are of.
        t: [M] row of each chunk.
        n: [M] environment of each chunk.
        number: [M] of the decision, or draw, of its chunk.
        prepared: of all items of the rollout.
        advantages: [T, N] of the chunks; None while they are not needed.
    """

    rollout: Rollout
    t: Tensor
    n: Tensor
    number: Tensor
    prepared: Prepared
    advantages: Tensor | None = None

    @classmethod
    def at(
        cls,
        index: Tensor,
        rollout: Rollout,
        n_items: int,
        prepared: Prepared,
        advantages: Tensor | None = None,
    ) -> Self:
        """Items at an index [M] into all T N n_items of them."""
        number, chunk = index % n_items, index // n_items
        n = rollout.shape[1]
        return cls(rollout, chunk // n, chunk % n, number, prepared, advantages)

    @property
    def cond(self) -> Tensor:
        """Encoded observations [M, C]."""
        return self.rollout.cond[self.t, self.n]

    @property
    def x_final(self) -> Tensor:
        """Chunks [M, Tp, Da] that were played."""
        return self.rollout.x_final[self.t, self.n]

    def chunk(self, decision: Tensor) -> Tensor:
        """Chunks [M, Tp, Da] before a decision [M]; before the one past the last: the result."""
        return self.rollout.x[self.t, self.n, decision]

    @property
    def executed(self) -> Tensor:
        """Executed actions [M, Tp] bool."""
        return self.rollout.executed[self.t, self.n]

    @property
    def advantage(self) -> Tensor:
        """Of each item's chunk [M]."""
        assert self.advantages is not None
        return self.advantages[self.t, self.n]

    def before(self, name: str) -> Tensor:
        """What was prepared of each item [M, ...]."""
        return self.prepared[name][self.t, self.n, self.number]


@dataclass(frozen=True)
class Terms:
    """Sums over a minibatch, which may be empty.

    Args:
        loss: a scalar to be minimised, over the number of items.
        metrics: name -> scalar sum; "kl" may end an update early.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]

    @classmethod
    def of(cls, loss: Tensor, metrics: Mapping[str, Tensor]) -> Self:
        """Terms from a loss [M] and metrics [M] of each item."""
        return cls(loss.sum(), {name: each.detach().sum() for name, each in metrics.items()})


class Objective(Protocol):
    """What an update descends.

    `is_signed` says whether advantages below 0 have a meaning, and are to be standardised.
    """

    is_signed: bool
    kl_weight: float

    def check(self, space: ChunkSpace) -> None:
        """Raise ValueError where it would learn at a level that was not trained."""
        ...

    def n_items(self, rollout: Rollout) -> int:
        """Items of a chunk: decisions, or noise draws."""
        ...

    def prepare(
        self, denoiser: Denoiser, rollout: Rollout, *, kernel: Kernel, generator: Generator
    ) -> Prepared:
        """What is to be known of each item before the first step of an update.

        Args:
            denoiser: the policy that learns.
            rollout: that was played.
            kernel: of the chains.
            generator: of each environment's noise.
        """
        ...

    def __call__(
        self, denoiser: Denoiser, reference: Denoiser | None, items: Items, *, kernel: Kernel
    ) -> Terms:
        """Sums over a minibatch of items.

        Args:
            denoiser: the policy that learns.
            reference: the one that it was tuned from; None where `kl_weight` is 0.
            items: of the minibatch.
            kernel: of the chains.
        """
        ...
