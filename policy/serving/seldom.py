"""Logs that no peer can fill."""

import logging
import time
from collections.abc import Callable

PERIOD = 1.0  # s


class Seldom(logging.Filter):
    """Lets one line a period through, which tells how many were left out since the last one.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock = clock
        self._next = -float("inf")
        self._n_left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written; the count is added to it."""
        now = self._clock()
        if now < self._next:
            self._n_left_out += 1
            return False
        if self._n_left_out:
            record.msg = f"{record.getMessage()} ({self._n_left_out} such lines were left out)"
            record.args = ()
        self._next, self._n_left_out = now + PERIOD, 0
        return True


def seldom(parent: logging.Logger, name: str, *, level: int = logging.NOTSET) -> logging.Logger:
    """A logger for what peers can cause as often as they like; of its caller only.

    Args:
        parent: that writes.
        name: after the parent's.
        level: of the least that is written; the parent's by default.
    """
    logger = logging.Logger(f"{parent.name}.{name}", level)
    logger.parent = parent
    logger.addFilter(Seldom())
    return logger
