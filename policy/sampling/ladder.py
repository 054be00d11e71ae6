"""Ladders: the noise level of each action of a chunk at the begin of a tick.

A ladder [Tp] rises along the chunk: past actions are clean, those that are due next almost.
"""

import torch
from torch import Tensor

from policy.types import ChunkSpace


def check_ladder(ladder: Tensor, space: ChunkSpace) -> None:
    """Raise ValueError where a ladder is no ladder for these chunks."""
    horizons = space.horizons
    if tuple(ladder.shape) != (horizons.pred,):
        raise ValueError(
            f"the ladder has {ladder.numel()} levels, a chunk has {horizons.pred} actions: "
            f"give one level per action"
        )
    is_past = torch.arange(horizons.pred) < horizons.past
    if not ((ladder > 0) ^ is_past).all() or not (ladder[1:] >= ladder[:-1]).all():
        levels = [round(level, 4) for level in ladder.tolist()]
        raise ValueError(
            f"the ladder is {levels}, it must be positive, 0 for the {horizons.past} past actions, "
            f"and must not fall"
        )


def _geometric(n: int, first: float, last: float) -> Tensor:
    """[n] levels of a constant ratio; the last one if there is only one."""
    if not 0 < first <= last:
        raise ValueError(f"front_sigma is {first}, it must be positive and at most {last}")
    ramp = torch.linspace(0, 1, n) if n > 1 else torch.ones(1)
    return first ** (1 - ramp) * last**ramp


def flat(space: ChunkSpace, *, sigma: float) -> Tensor:
    """One level for all actions from now on.

    Args:
        space: of the chunks.
        sigma: their level.
    """
    n_past = space.horizons.past
    return torch.cat([torch.zeros(n_past), torch.full((space.horizons.future,), float(sigma))])


def by_chunk(space: ChunkSpace, *, front_sigma: float, sigma_max: float) -> Tensor:
    """One level for all actions that are executed in the same tick.

    Actions that fill no whole tick at the end are at sigma_max.

    Args:
        space: of the chunks.
        front_sigma: level of those due next.
        sigma_max: level of the last.

    Raises:
        ValueError: front_sigma is not positive or exceeds sigma_max.
    """
    horizons = space.horizons
    n_chunks = horizons.future // horizons.action
    chunk = torch.arange(horizons.future) // horizons.action
    levels = _geometric(n_chunks, front_sigma, sigma_max)[chunk.clamp(max=n_chunks - 1)]
    return torch.cat([torch.zeros(horizons.past), levels])


def by_action(space: ChunkSpace, *, front_sigma: float, sigma_max: float) -> Tensor:
    """A level of its own for each action, of a constant ratio from one to the next.

    Args:
        space: of the chunks.
        front_sigma: level of the action for now.
        sigma_max: level of the last.

    Raises:
        ValueError: front_sigma is not positive or exceeds sigma_max.
    """
    levels = _geometric(space.horizons.future, front_sigma, sigma_max)
    return torch.cat([torch.zeros(space.horizons.past), levels])
