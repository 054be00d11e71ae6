"""A plan indexed by absolute control ticks.

A chunk says for which tick its first action is meant. However long inference took, the action for
tick k is `actions[k - tick0]`: what time consumed is skipped, latency is never estimated.

    tick         5   6   7   8   9  10
    chunk A      a5  a6  a7  a8              asked for at tick 5
    chunk B                  b8  b9  b10     asked for at tick 8, arrives during tick 9
    executed     a5  a6  a7  -   b9  b10     (nothing reached the robot during tick 8)
"""

import numpy as np

from data.types import Field
from policy.types import ActionChunk


class UnsafeActionError(ValueError):
    """A policy gave actions that must not reach a robot."""


class Plan:
    """The newest chunk, asked for actions by tick.

    Args:
        action: meaning of one action, to check chunks against.
    """

    def __init__(self, action: Field):
        self._size = action.size
        self._chunk: ActionChunk | None = None

    def merge(self, chunk: ActionChunk) -> None:
        """Take over a newer chunk; actions for ticks before its `tick0` are never asked for again.

        Raises:
            UnsafeActionError: the chunk's shape is wrong or a number in it is not finite.
            ValueError: the chunk is older than the present one.
        """
        shape = chunk.actions.shape
        if len(shape) != 2 or shape[0] < 1 or shape[1] != self._size:
            raise UnsafeActionError(f"a chunk has shape {shape}, expected [Tp >= 1, {self._size}]")
        if not np.isfinite(chunk.actions).all():
            row, element = np.argwhere(~np.isfinite(chunk.actions))[0]
            raise UnsafeActionError(
                f"the chunk for tick {chunk.tick0} is {chunk.actions[row, element]} in action "
                f"{row}, element {element}; only finite actions are sent"
            )
        if self._chunk is not None and chunk.tick0 < self._chunk.tick0:
            raise ValueError(
                f"a chunk for tick {chunk.tick0} came after one for tick {self._chunk.tick0}: "
                f"chunks must be merged in order"
            )
        self._chunk = chunk

    def consumed(self, tick: int) -> int | None:
        """Ticks of the present chunk that lie before `tick`; None while there is no chunk."""
        return None if self._chunk is None else tick - self._chunk.tick0

    def action(self, tick: int) -> np.ndarray | None:
        """Action [Da] for `tick`; None if the plan does not reach there (starvation)."""
        if self._chunk is None:
            return None
        index = tick - self._chunk.tick0
        return self._chunk.actions[index] if 0 <= index < len(self._chunk.actions) else None


def hold(last: np.ndarray, action: Field) -> np.ndarray:
    """Action [Da] that keeps a robot where the action `last` [Da] has brought it.

    An absolute action is repeated. One that says how far to move becomes zero, except for its
    discrete elements (an open gripper stays open).
    """
    if action.kind == "absolute":
        return last.copy()
    still = np.zeros_like(last)
    discrete = list(action.discrete)
    still[discrete] = last[discrete]
    return still
