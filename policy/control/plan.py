"""A plan indexed by absolute control ticks.

A chunk says for which tick its first action is meant. However long inference took, the action for
tick k is `actions[k - tick0]`: what time consumed is skipped, latency is never estimated.

    tick         5   6   7   8   9  10
    chunk A      a5  a6  a7  a8              asked for at tick 5
    chunk B                  b8  b9  b10     asked for at tick 8, arrives during tick 9
    executed     a5  a6  a7  a8  b9  b10

What was decided when a chunk was asked for stays: the new chunk counts from there on, even if it
arrives sooner. Where a new chunk meets the old plan, a seam (`policy.control.seam`) may mix them;
discrete elements are the newest chunk's, for a gripper cannot be half open.

Shape legend: `Da` action size.
"""

from dataclasses import dataclass

import numpy as np

from data.types import Field
from policy.control.seam import Seam, switch
from policy.types import ActionChunk


class UnsafeActionError(ValueError):
    """A policy gave actions that must not reach a robot."""


@dataclass(frozen=True)
class Swap:
    """What became of a chunk.

    Args:
        tick: first tick whose action it may have changed; that of its end where it came too late.
        overlap: ticks that the old plan speaks of as well, from there on.
        jump: [Da] new chunk against the old plan at that tick; None where they do not overlap.
    """

    tick: int
    overlap: int
    jump: np.ndarray | None


@dataclass(frozen=True)
class Step:
    """What is planned for a tick.

    Args:
        action: [Da].
        n_merged: chunks that it is made of.
        observed: capture time of the newest observation that it was planned from [s].
        is_seam: whether it is the first of a new chunk.
    """

    action: np.ndarray
    n_merged: int
    observed: float
    is_seam: bool


class Plan:
    """What is to be done at each tick, as far as is known.

    Args:
        action: meaning of one action, to check chunks against.
        seam: mixes old and new actions of a tick.
    """

    def __init__(self, action: Field, *, seam: Seam = switch):
        self._size, self._discrete, self._seam = action.size, list(action.discrete), seam
        self._steps: dict[int, Step] = {}  # by tick
        self._newest: int | None = None  # tick0 of the newest chunk

    def step(self, tick: int) -> Step | None:
        """What is planned for `tick`; None if the plan does not reach there (starvation)."""
        return self._steps.get(tick)

    def merge(self, chunk: ActionChunk, *, tick: int, observed: float, decided: int = 0) -> Swap:
        """Take over a newer chunk.

        Args:
            chunk: whose `tick0` is not before the last one's.
            tick: the present one, whose action is not sent yet.
            observed: capture time of the newest observation that the chunk was planned from [s].
            decided: ticks from `chunk.tick0` on that keep their old actions.

        Raises:
            UnsafeActionError: the chunk's shape is wrong or a number in it is not finite.
            ValueError: the chunk is older than the present one.
        """
        self._check(chunk)
        self._newest = chunk.tick0
        begin, end = chunk.tick0, chunk.tick0 + len(chunk.actions)
        first = max(begin, tick)
        while first < min(begin + decided, end) and first in self._steps:
            first += 1
        if first >= end:  # Too late: nothing of it is left.
            return Swap(end, overlap=0, jump=None)
        new = np.array(chunk.actions[first - begin :], float)
        old = [self._steps[t] for t in range(first, end) if t in self._steps]
        jump = new[0] - old[0].action if old else None
        actions = self._mixed(old, new)
        kept = {t: step for t, step in self._steps.items() if tick <= t < first}
        self._steps = kept | {
            first + i: Step(
                action,
                n_merged=1 + (old[i].n_merged if i < len(old) else 0),
                observed=observed,
                is_seam=i == 0 and bool(kept or old),
            )
            for i, action in enumerate(actions)
        }
        return Swap(first, len(old), jump)

    def _mixed(self, old: list[Step], new: np.ndarray) -> np.ndarray:
        """Actions [n, Da] of new ones [n, Da] whose first ticks had old ones."""
        if not old:
            return new
        mixed, n = new.copy(), len(old)
        n_merged = np.array([step.n_merged for step in old])
        mixed[:n] = self._seam(np.stack([step.action for step in old]), new[:n], n_merged)
        mixed[:, self._discrete] = new[:, self._discrete]
        return mixed

    def _check(self, chunk: ActionChunk) -> None:
        shape = chunk.actions.shape
        if len(shape) != 2 or shape[0] < 1 or shape[1] != self._size:
            raise UnsafeActionError(f"a chunk has shape {shape}, expected [Tp >= 1, {self._size}]")
        if not np.isfinite(chunk.actions).all():
            row, element = np.argwhere(~np.isfinite(chunk.actions))[0]
            raise UnsafeActionError(
                f"the chunk for tick {chunk.tick0} is {chunk.actions[row, element]} in action "
                f"{row}, element {element}; only finite actions are sent"
            )
        if self._newest is not None and chunk.tick0 < self._newest:
            raise ValueError(
                f"a chunk for tick {chunk.tick0} came after one for tick {self._newest}: "
                f"chunks must be merged in order"
            )
