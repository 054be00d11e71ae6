"""Which steps of which episode a training window holds.

The window of time t observes steps t-To+1 .. t, the first step repeated where the episode had not
begun, and holds the actions t-past .. t-past+Tp-1 (past is 0 below), the first and the last one
repeated and marked outside of the episode.
t runs over 0 .. L-Ta of an episode of L steps, so an action that is executed is never padding::

    L = 5, To = 2, Tp = 4, Ta = 2        t   observed   actions      is_pad
                                         0   0 0        0 1 2 3      . . . .
                                         1   0 1        1 2 3 4      . . . .
                                         2   1 2        2 3 4 4      . . . x
                                         3   2 3        3 4 4 4      . . x x

An episode with L < Ta has no window; it is counted.

Shape legend: `B` windows, `To Tp Ta` observed, predicted and executed steps.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from data.types import Horizons


@dataclass(frozen=True)
class WindowTable:
    """Every window of some episodes, as rows of the fields of these episodes laid end to end.

    Args:
        now: [n] int64, row of time t.
        start: [n] int64, first row of the window's episode.
        stop: [n] int64, row after the last one of the window's episode.
        short_episodes: number of episodes that are too short for a window.
    """

    now: Tensor
    start: Tensor
    stop: Tensor
    short_episodes: int

    def __len__(self) -> int:
        return len(self.now)

    def select(self, indices: Tensor) -> Self:
        """The windows of the given indices [B]."""
        return type(self)(
            self.now[indices], self.start[indices], self.stop[indices], self.short_episodes
        )

    def to(self, device: torch.device | str) -> Self:
        """The table on another device."""
        return type(self)(
            self.now.to(device), self.start.to(device), self.stop.to(device), self.short_episodes
        )


def window_table(episode_ends: np.ndarray, horizons: Horizons) -> WindowTable:
    """All windows of the episodes with these exclusive cumulative ends [n_episodes]."""
    ends = np.asarray(episode_ends, np.int64)
    starts = np.concatenate([[0], ends])[:-1].astype(np.int64)
    n_windows = np.maximum(ends - starts - horizons.action + 1, 0)
    start, stop = np.repeat(starts, n_windows), np.repeat(ends, n_windows)
    # The number of a window in its episode is its number in all less those of earlier episodes.
    time = np.arange(n_windows.sum()) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
    return WindowTable(
        now=torch.from_numpy(start + time),
        start=torch.from_numpy(start),
        stop=torch.from_numpy(stop),
        short_episodes=int((n_windows == 0).sum()),
    )


def observed_rows(windows: WindowTable, horizon: int) -> Tensor:
    """[B, To] rows that each window observes."""
    offset = torch.arange(1 - horizon, 1, device=windows.now.device)
    return (windows.now[:, None] + offset).maximum(windows.start[:, None])


def action_rows(windows: WindowTable, horizon: int, *, past: int = 0) -> tuple[Tensor, Tensor]:
    """[B, Tp] rows of the actions of each window, and [B, Tp] bool where they are padding."""
    rows = windows.now[:, None] + torch.arange(-past, horizon - past, device=windows.now.device)
    first, last = windows.start[:, None], windows.stop[:, None] - 1
    return rows.maximum(first).minimum(last), (rows < first) | (rows > last)


def gather(field: Tensor, rows: Tensor) -> Tensor:
    """[B, T, ...] steps of a field [n_steps, ...] at the given rows [B, T], copied."""
    # One flat index_select copies whole steps at the speed of memory; field[rows] is far slower.
    return field.index_select(0, rows.reshape(-1)).reshape(*rows.shape, *field.shape[1:])
