"""A policy server in a thread of this process: for tests, measurements and demonstrations."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from policy.serving.server import PolicyServer

START_SECONDS = 60.0


@contextlib.contextmanager
def in_background(server: PolicyServer, *, wait_ready: bool = True) -> Iterator[PolicyServer]:
    """Serve in a thread while the context lasts.

    Args:
        server: that is not listening yet.
        wait_ready: whether to wait until plans can be asked for, or only until it listens.

    Raises:
        Exception: what the server or the planner's warm-up raised.
        TimeoutError: the server did not start within a minute.
    """
    service = _Service(server, wait_ready=wait_ready)
    thread = threading.Thread(target=service.run, name="policy server", daemon=True)
    thread.start()
    try:
        if not service.started.wait(START_SECONDS):
            raise TimeoutError(f"the server did not start within {START_SECONDS:g} s")
        if service.error is not None:
            raise service.error
        yield server
    finally:
        service.end()
        thread.join()


class _Service:
    """What the thread runs, and how it is told to end."""

    def __init__(self, server: PolicyServer, *, wait_ready: bool):
        self.started = threading.Event()
        self.error: BaseException | None = None
        self._server, self._wait_ready = server, wait_ready
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()

    def end(self) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed: it has ended.
            self._loop.call_soon_threadsafe(self._ended.set)

    def run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        try:
            async with self._server:
                if self._wait_ready:
                    await self._server.wait_ready()
                self.started.set()
                await self._ended.wait()
        except Exception as error:
            self.error = error
        finally:
            self.started.set()
