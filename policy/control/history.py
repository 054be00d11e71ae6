"""What a robot sensed at the last control ticks, as a policy is told it."""

from collections import deque
from collections.abc import Mapping

import numpy as np


class History:
    """The last To observations, one a control tick.

    The first observation stands for those before it, and the last one seen for a missed tick.

    Args:
        length: To.
    """

    def __init__(self, length: int):
        self._seen: deque[dict[str, np.ndarray]] = deque(maxlen=length)
        self._tick: int | None = None

    def add(self, tick: int, fields: Mapping[str, np.ndarray]) -> None:
        """Take in what was seen at `tick`, which is later than all before."""
        newest = {name: np.array(value) for name, value in fields.items()}
        length = self._seen.maxlen or 0
        if self._tick is None:
            self._seen.extend([newest] * (length - 1))
        else:
            missed = tick - self._tick - 1
            self._seen.extend([self._seen[-1]] * min(missed, length))
        self._seen.append(newest)
        self._tick = tick

    def stacked(self) -> dict[str, np.ndarray]:
        """Field name -> [To, ...]."""
        return {name: np.stack([seen[name] for seen in self._seen]) for name in self._seen[-1]}
