"""What samplers do with a carry: move it in time, check it.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from policy.types import Carry, ChunkSpace

# Level of actions that nothing is known of: no noise of any strength has been drawn for them yet.
UNKNOWN = float("inf")


def shift_left(values: Tensor, n: int, *, fill: float) -> Tensor:
    """Values [B, Tp, ...] moved `n` actions to the front, the end filled up.

    Raises:
        ValueError: there are not so many actions.
    """
    pred_horizon = values.shape[1]
    if not 0 <= n <= pred_horizon:
        raise ValueError(
            f"{n} actions were executed, a chunk has {pred_horizon}: give 0 to {pred_horizon}"
        )
    tail = torch.full_like(values[:, :n], fill)
    return torch.cat([values[:, n:], tail], dim=1)


def constants(values: Sequence[float], *, like: Tensor) -> Tensor:
    """Numbers [n] of the kind of `like`, made on its device: a transfer could not be captured."""
    return torch.stack([like.new_full((), value) for value in values])


def check_carry(carry: Carry, cond: Tensor, space: ChunkSpace) -> None:
    """Raise ValueError where a carry is not one of these streams or of this sampler."""
    expected = (len(cond), *space.shape)
    if tuple(carry.x.shape) != expected:
        raise ValueError(
            f"the carry has shape {tuple(carry.x.shape)}, the observation and the sampler need "
            f"{expected} [streams, predicted steps, action size]: start new streams"
        )
