"""How much is done with a rollout, and in which minibatches.

Shape legend: `T` chunks in a row, `N` environments of this rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from policy.diffusion.noise import seeded
from policy.ranks import Ranks


@dataclass(frozen=True)
class Effort:
    """How much is done with a rollout.

    Args:
        batch_size: items of a minibatch, of all ranks.
        epochs: how often an item is seen; 0.5: every second one is.
        critic_batch_size: chunks of a minibatch of the critic.
        critic_epochs: how often it sees a chunk.
        max_kl: divergence per item at which the actor's part of an update ends; None for never.
        max_grad_norm: of the actor's gradient; longer ones are shortened.

    Raises:
        ValueError: a number is not positive.
    """

    batch_size: int = 512
    epochs: float = 1.0
    critic_batch_size: int = 512
    critic_epochs: int = 4
    max_kl: float | None = None
    max_grad_norm: float = 1.0

    def __post_init__(self):
        for name in ("batch_size", "epochs", "critic_batch_size", "critic_epochs", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"effort.{name} is {getattr(self, name)}, it must be positive")
        if self.max_kl is not None and not self.max_kl > 0:
            raise ValueError(f"effort.max_kl is {self.max_kl}, it must be positive, or null")


@dataclass(frozen=True)
class Minibatch:
    """Some items of a rollout.

    Args:
        own: [M] indices into this rank's T N n_items items.
        count: how many there are on all ranks; at least 1, where this rank may have none.
    """

    own: Tensor
    count: int


def minibatches(
    is_valid: Tensor,
    ranks: Ranks,
    *,
    n_items: int,
    batch_size: int,
    epochs: float,
    seed: int,
    purpose: int,
    iteration: int,
) -> Iterator[Minibatch]:
    """The items of valid chunks, shuffled, minibatch after minibatch.

    The order is that of the items of all ranks, in which n counts on from rank to rank.

    Args:
        is_valid: [T, N] bool.
        ranks: this process among others.
        n_items: of each chunk.
        batch_size: items of a minibatch, of all ranks.
        epochs: how often an item comes.
        seed: of the run.
        purpose: number of the stream of random numbers.
        iteration: of the run.
    """
    n = is_valid.shape[1]
    n_all, first = n * ranks.size, n * ranks.rank
    chunks = ranks.side_by_side(is_valid).flatten().nonzero()[:, 0].cpu()
    total = len(chunks) * n_items
    if total == 0:
        return
    wanted = max(1, round(epochs * total))
    generator = seeded(seed, purpose=purpose, count=iteration, device="cpu")
    rounds = -(-wanted // total)
    order = torch.cat([torch.randperm(total, generator=generator) for _ in range(rounds)])
    for part in order[:wanted].split(batch_size):
        number, chunk = part % n_items, chunks[part // n_items]
        row, slot = chunk // n_all, chunk % n_all - first
        is_own = (slot >= 0) & (slot < n)
        own = ((row * n + slot) * n_items + number)[is_own]
        yield Minibatch(own.to(is_valid.device), len(part))
