"""Ladders: the noise level of each action of a chunk at the begin of a tick.

A ladder [Tp] rises along the chunk: what is decided (past actions, and those executed while the
chunk is computed) is clean, what is due next almost.
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
    is_decided = torch.arange(horizons.pred) < space.n_decided
    if not ((ladder > 0) ^ is_decided).all() or not (ladder[1:] >= ladder[:-1]).all():
        levels = [round(level, 4) for level in ladder.tolist()]
        raise ValueError(
            f"the ladder is {levels}, it must be positive, 0 for the {space.n_decided} actions "
            f"that are decided, and must not fall"
        )


def _geometric(n: int, first: float, last: float) -> Tensor:
    """[n] levels of a constant ratio; the last one if there is only one."""
    if not 0 < first <= last:
        raise ValueError(f"front_sigma is {first}, it must be positive and at most {last}")
    ramp = torch.linspace(0, 1, n) if n > 1 else torch.ones(1)
    return first ** (1 - ramp) * last**ramp


def _n_open(space: ChunkSpace) -> int:
    """Actions that are not decided."""
    return space.horizons.pred - space.n_decided


def _after_decided(space: ChunkSpace, levels: Tensor) -> Tensor:
    return torch.cat([torch.zeros(space.n_decided), levels])


def flat(space: ChunkSpace, *, sigma: float) -> Tensor:
    """One level for all actions that are not decided.

    Args:
        space: of the chunks.
        sigma: their level.
    """
    return _after_decided(space, torch.full((_n_open(space),), float(sigma)))


def by_chunk(space: ChunkSpace, *, front_sigma: float, sigma_max: float) -> Tensor:
    """One level for all actions that are executed in the same tick.

    Actions that fill no whole tick at the end are at sigma_max.

    Args:
        space: of the chunks.
        front_sigma: level of those due next.
        sigma_max: level of the last.

    Raises:
        ValueError: front_sigma is not positive or exceeds sigma_max, or the actions fill one tick
            only, whose level cannot be both.
    """
    n_open, n_executed = _n_open(space), space.horizons.action
    n_chunks = max(1, n_open // n_executed)
    if n_chunks == 1 and front_sigma != sigma_max:
        raise ValueError(
            f"{n_open} actions are not decided and {n_executed} are executed in a tick, so there "
            f"is one level and none from front_sigma ({front_sigma}) to sigma_max ({sigma_max}): "
            f"execute half of them at most (action_horizon), or give each action a level of its "
            f"own (policy.sampling.ladder.by_action)"
        )
    chunk = torch.arange(n_open) // n_executed
    levels = _geometric(n_chunks, front_sigma, sigma_max)[chunk.clamp(max=n_chunks - 1)]
    return _after_decided(space, levels)


def by_action(space: ChunkSpace, *, front_sigma: float, sigma_max: float) -> Tensor:
    """A level of its own for each action, of a constant ratio from one to the next.

    Args:
        space: of the chunks.
        front_sigma: level of the first action that is not decided.
        sigma_max: level of the last.

    Raises:
        ValueError: front_sigma is not positive or exceeds sigma_max.
    """
    return _after_decided(space, _geometric(_n_open(space), front_sigma, sigma_max))
