"""Seams: what is executed where a new chunk meets what is left of the last one.

A seam gets, of the ticks that both speak of and that are not decided yet, the old actions, the new
ones, and how many chunks the old ones are made of. Real-time chunking, streaming and real-time
iteration make chunks that continue the last one by themselves; their seam is `switch`.

    tick       5   6   7   8   9  10  11
    old plan   a5  a6  a7  a8  a9             decided until tick 7
    new chunk      b6  b7  b8  b9 b10 b11     asked for at tick 6
    merged     a5  a6  s7  s8  s9 b10 b11     s = seam(a, b)

Sources: Zhao et al. 2023, ACT, arXiv:2304.13705, section IV-B and algorithm 2 (`ensemble`).

Shape legend: `n` ticks, `Da` action size.
"""

import math
from typing import Protocol

import numpy as np


class Seam(Protocol):
    """Merges actions that an old plan and a new chunk have for the same ticks."""

    def __call__(self, old: np.ndarray, new: np.ndarray, n_merged: np.ndarray) -> np.ndarray:
        """Actions [n, Da] from old [n, Da], new [n, Da], and of how many chunks old is made [n]."""
        ...


def switch(old: np.ndarray, new: np.ndarray, n_merged: np.ndarray) -> np.ndarray:
    """The new actions."""
    return new


def blend(old: np.ndarray, new: np.ndarray, n_merged: np.ndarray, *, n_ticks: int) -> np.ndarray:
    """From old to new along a straight line.

    Args:
        old: [n, Da].
        new: [n, Da].
        n_merged: not looked at.
        n_ticks: ticks of a mixture; the first one has 1 / (n_ticks + 1) of the new action.

    Raises:
        ValueError: `n_ticks` is negative.
    """
    if n_ticks < 0:
        raise ValueError(f"seam.n_ticks is {n_ticks}, it must be at least 0")
    weight = np.minimum(np.arange(1, len(old) + 1) / (n_ticks + 1), 1.0)[:, None]
    return (1 - weight) * old + weight * new


def ensemble(old: np.ndarray, new: np.ndarray, n_merged: np.ndarray, *, decay: float) -> np.ndarray:
    """The mean of all chunks that speak of a tick, chunk i weighing exp(-decay * i), 0 the oldest.

    Args:
        old: [n, Da] means of the chunks so far.
        new: [n, Da].
        n_merged: [n] number of chunks in these means, at least 1.
        decay: positive: old chunks weigh more, as in ACT (0.01); negative: new ones do.

    Raises:
        ValueError: `decay` is not finite.
    """
    if not math.isfinite(decay):
        raise ValueError(f"seam.decay is {decay}, it must be a finite number such as 0.01")
    n = n_merged[:, None].astype(float)
    of_new = np.exp(-decay * n)
    of_old = n if decay == 0 else np.expm1(-decay * n) / np.expm1(-decay)
    return (of_old * old + of_new * new) / (of_old + of_new)
