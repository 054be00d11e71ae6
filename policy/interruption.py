"""Ctrl-C that lets a loop finish what it is at."""

import signal
import time
from types import FrameType
from typing import Self

# [s] for processes of `torchrun`, which passes on the Ctrl-C that all have had from the terminal.
ECHO = 1.0


class Interruption:
    """Turns the first Ctrl-C or SIGTERM into a wish to stop after the present step.

    Args:
        echo: s from the first signal, in which others mean the same; later ones end it at once.
    """

    def __init__(self, *, echo: float = 0.0):
        self.requested = False
        self._echo, self._since = echo, 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and time.monotonic() - self._since >= self._echo:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._since = True, time.monotonic()
