"""Who may control: one session at a time, for as long as it is heard of."""

import hmac
import time
from collections.abc import Callable


class Lease:
    """The right to control, held by at most one session.

    Each message of its holder renews it. When none came for `seconds` anybody may take it; until
    then it stays with its holder, whose connection may have broken and who may come back with the
    key. A holder that was silent for longer keeps it as long as nobody else wanted it.

    Args:
        seconds: without a message, after which it can be taken.
        clock: monotonic seconds.
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic):
        self.seconds = seconds
        self._clock = clock
        self._holder: int | None = None
        self._key = ""
        self._until = -float("inf")

    @property
    def seconds_left(self) -> float:
        """Until anybody may take it; 0 where they may now."""
        return 0.0 if self._holder is None else max(0.0, self._until - self._clock())

    def is_held_by(self, session: int) -> bool:
        """Whether a session holds it, or was the last to hold it."""
        return self._holder == session

    def is_key(self, key: str) -> bool:
        """Whether a secret is that of the last holder."""
        return bool(self._key) and hmac.compare_digest(self._key.encode(), key.encode())

    def take(self, session: int, key: str) -> bool:
        """Give it to a new session, if it is free or the key is the holder's.

        Args:
            session: number of the session.
            key: secret that the session has, or was just given.
        """
        if self.seconds_left > 0 and not self.is_key(key):
            return False
        self._give(session, key)
        return True

    def renew(self, session: int, key: str) -> bool:
        """Extend it for the session that holds it, or give it back to one if it is free."""
        if self._holder != session and self.seconds_left > 0:
            return False
        self._give(session, key)
        return True

    def release(self, session: int) -> None:
        """End it at once, if the session holds it."""
        if self._holder == session:
            self._holder = None

    def _give(self, session: int, key: str) -> None:
        self._holder, self._key = session, key
        self._until = self._clock() + self.seconds
