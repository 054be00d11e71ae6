"""One admitted peer of a server, and what waits to be sent to it."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from policy.serving.messages import Role

# Messages that may wait for a peer that reads slowly; one that lets more come up is cut off.
MAX_WAITING = 32


@dataclass
class Session:
    """A peer that has said who it is.

    Args:
        number: counts the sessions of the server.
        role: whether it controls or watches.
        key: secret of its lease, "" of one that watches.
        outbox: what waits to be sent to it.
        epoch: newest one that it asked in.
        tick: newest one that it asked for, in that epoch.
    """

    number: int
    role: Role
    key: str = field(repr=False)
    outbox: "Outbox"
    epoch: int = 0
    tick: int = 0


class Outbox:
    """Frames that wait to be sent: a few in order, and the newest report.

    Args:
        overflow: called when too many wait.
    """

    def __init__(self, overflow: Callable[[], None]):
        self._overflow = overflow
        self._frames: deque[bytes] = deque()
        self._newest: bytes | None = None
        self._filled = asyncio.Event()

    def post(self, frame: bytes) -> None:
        """Send a frame in its turn."""
        if len(self._frames) >= MAX_WAITING:
            self._overflow()
            return
        self._frames.append(frame)
        self._filled.set()

    def replace(self, frame: bytes) -> None:
        """Send a frame when nothing else waits; a newer one takes its place."""
        self._newest = frame
        self._filled.set()

    async def next(self) -> bytes:
        """The next frame to be sent."""
        await self._filled.wait()
        if self._frames:
            frame = self._frames.popleft()
        else:
            assert self._newest is not None
            frame, self._newest = self._newest, None
        if not self._frames and self._newest is None:
            self._filled.clear()
        return frame
