"""Connections that no peer can make grow or keep us busy with, and how many may be strangers."""

import asyncio
from collections.abc import Callable

from websockets.asyncio.server import ServerConnection
from websockets.frames import CTRL_OPCODES, Frame
from websockets.protocol import Event

# Bytes that are looked at before the frames in them are counted. The system may hand over a quarter
# of a megabyte at once: 43,000 empty frames, which take more than a second.
SLICE = 1024
# A peer pings every few seconds, and answers our pings.
MAX_CONTROL_FRAMES = 50  # a second
# Frames that are there at once, of a peer that did not wait to be read.
MAX_FRAMES = 256


class Strangers:
    """Connections of peers that have not said who they are.

    When there are too many, the oldest is cut off: a peer that knows the token says so at once, and
    one that opens connections and is silent cannot keep it out.

    Args:
        most: of them.
        cut_off: ends a connection at once.
    """

    def __init__(self, most: int, *, cut_off: Callable[[ServerConnection], None]):
        self.cut_off = cut_off
        self._most = most
        self._connections: dict[ServerConnection, None] = {}  # In the order in which they came.

    def add(self, connection: ServerConnection) -> None:
        """A connection was opened."""
        self._connections[connection] = None
        if len(self._connections) > self._most:
            oldest = next(iter(self._connections))
            self.remove(oldest)
            self.cut_off(oldest)

    def remove(self, connection: ServerConnection) -> None:
        """A connection is no stranger's any more, or is closed."""
        self._connections.pop(connection, None)


def limited(strangers: Strangers) -> type[ServerConnection]:
    """Connections that are strangers at first, and that are cut off when they send too many frames.

    Pings are answered at once and without backpressure: a peer that sends them without end and
    takes no answer would fill the memory. So nothing is read from it until it takes what waits.
    """

    class LimitedConnection(ServerConnection):
        _n_frames = 0  # In what was handed over last.
        _n_control_frames = 0  # In the second that began at `_began`.
        _began = -float("inf")

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            strangers.add(self)

        def connection_lost(self, exc: Exception | None) -> None:
            strangers.remove(self)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._n_frames = 0
            for start in range(0, len(data), SLICE):
                if self.transport.is_closing():
                    return
                super().data_received(data[start : start + SLICE])
                if self._n_frames > MAX_FRAMES or self._n_control_frames > MAX_CONTROL_FRAMES:
                    strangers.cut_off(self)
            if self.paused:
                self.transport.pause_reading()

        def process_event(self, event: Event) -> None:
            if isinstance(event, Frame):
                self._count(event)
            super().process_event(event)

        def resume_writing(self) -> None:
            super().resume_writing()
            if not self.recv_messages.paused:
                self.transport.resume_reading()

        def _count(self, frame: Frame) -> None:
            self._n_frames += 1
            if frame.opcode in CTRL_OPCODES:
                now = self.loop.time()
                if now - self._began > 1.0:
                    self._began, self._n_control_frames = now, 0
                self._n_control_frames += 1

    return LimitedConnection
