"""What samplers do with a carry: begin one, move it in time, check it.

Shape legend: `B` batch, `Tp` actions of a chunk, `Da` action size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from policy.types import Carry, ChunkSpace

# Level of actions that nothing is known of: no noise of any strength has been drawn for them yet.
UNKNOWN = float("inf")


def nothing_known(cond: Tensor, space: ChunkSpace) -> Carry:
    """Carry of new streams, one per row of cond [B, C]."""
    x = cond.new_zeros((len(cond), *space.shape))
    return Carry(x=x, sigma=x.new_full(x.shape[:2], UNKNOWN))


def without_past(carry: Carry, space: ChunkSpace) -> Carry:
    """A carry whose past actions are unknown: a first chunk invents them."""
    is_past = torch.arange(space.horizons.pred, device=carry.x.device) < space.horizons.past
    return carry.replace(sigma=torch.where(is_past, UNKNOWN, carry.sigma))


def moved(carry: Carry, n_executed: int) -> Carry:
    """A carry after `n_executed` actions; nothing is known of its end.

    Raises:
        ValueError: a chunk has not so many actions.
    """
    check_executed(carry, n_executed)
    return carry.replace(
        x=_shifted(carry.x, n_executed, fill=0.0),
        sigma=_shifted(carry.sigma, n_executed, fill=UNKNOWN),
    )


def check_executed(carry: Carry, n_executed: int) -> None:
    """Raise ValueError where a chunk has not so many actions."""
    pred_horizon = carry.x.shape[1]
    if not 0 <= n_executed <= pred_horizon:
        raise ValueError(
            f"{n_executed} actions were executed, a chunk has {pred_horizon}: "
            f"give 0 to {pred_horizon}"
        )


def _shifted(values: Tensor, n: int, *, fill: float) -> Tensor:
    """Values [B, Tp, ...] moved `n` actions to the front, the end filled up."""
    return torch.cat([values[:, n:], torch.full_like(values[:, :n], fill)], dim=1)


def constants(values: Sequence[float], *, like: Tensor) -> Tensor:
    """Numbers [n] of the kind of `like`, made on its device: a transfer could not be captured."""
    return torch.stack([like.new_full((), value) for value in values])


def check_carry(carry: Carry, cond: Tensor, space: ChunkSpace) -> None:
    """Raise ValueError where a carry is not of these streams or not of such chunks."""
    expected = (len(cond), *space.shape)
    if tuple(carry.x.shape) != expected:
        raise ValueError(
            f"the carry has shape {tuple(carry.x.shape)}, the observation and the sampler need "
            f"{expected} [streams, predicted steps, action size]: start new streams"
        )
    if tuple(carry.sigma.shape) != expected[:2]:
        raise ValueError(
            f"the carry's levels have shape {tuple(carry.sigma.shape)}, its chunk needs "
            f"{expected[:2]} [streams, predicted steps]: give each action its level"
        )
