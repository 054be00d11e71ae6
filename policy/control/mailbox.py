"""A mailbox that holds one letter, the newest: how threads of control hand over to each other.

Nobody ever waits to put something in, and nobody reads what is out of date: a letter that was not
fetched when the next one came is dropped, and counted.
"""

import threading
from typing import Generic, TypeVar

from policy.control.clock import Clock

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A slot for one value, between two threads.

    Args:
        clock: that both threads run on.

    Attributes:
        n_dropped: letters that nobody fetched before the next one came.
    """

    def __init__(self, clock: Clock):
        self._flag = clock.flag()
        self._lock = threading.Lock()  # Held for an assignment only, so nobody waits for it.
        self._letter: T | None = None
        self.n_dropped = 0

    def put(self, letter: T) -> None:
        """Leave a letter in place of any that is there."""
        with self._lock:
            self.n_dropped += self._letter is not None
            self._letter = letter
        self._flag.raise_()

    def take(self) -> T | None:
        """The letter, if there is one; it is removed."""
        with self._lock:
            letter, self._letter = self._letter, None
        return letter

    def wait(self, deadline: float | None) -> T | None:
        """The letter, waited for until `deadline` [s], or for ever; None if none came.

        A deadline that is now does not wait, but lets happen what happens at this instant.
        """
        letter = self.take()
        while letter is None and self._flag.wait(deadline):
            letter = self.take()
        return letter
