"""A planner that lives elsewhere: asks a policy server, and waits for nothing without a limit.

    planner = RemotePlanner("ws://127.0.0.1:8765", robot.contract)
    chunk = planner(request)          # in the thread that plans, never in the control tick

No plan comes -> `ServingError`: the caller holds. A broken connection is taken up again by itself.
"""

import asyncio
import concurrent.futures
import math
import ssl
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import urlsplit

import numpy as np

from data.types import Contract, Horizons
from policy.serving.agreement import check_history
from policy.serving.errors import (
    Code,
    ConnectionLostError,
    DeadlineError,
    WireError,
    shortened,
)
from policy.serving.link import CLOSE_SECONDS, OPEN_SECONDS, Link, checked
from policy.serving.messages import Hello, Report, Value, Welcome
from policy.serving.wire import MAX_DEADLINE, encode
from policy.types import ActionChunk, Request

Result = TypeVar("Result")

# How much longer than its deadline a call may take when its own thread does not get to run.
GRACE = 0.5  # s


class RemotePlanner:
    """Plans by asking a policy server; one request at a time, from any one thread.

    Args:
        address: ws://HOST:PORT or wss://HOST:PORT.
        contract: of the robot. Its horizons and statistics, where it has them, must be the
            server's; it may observe more than the server needs, which is not sent.
        token: the server's secret, "" where there is none.
        deadline: longest wait for a chunk [s].
        connect_seconds: how long to try at first, while no server is there or it warms up.
        cafile: certificates (PEM) to trust instead of the system's, for wss.
        name: of this client, for the server's log.

    Attributes:
        contract: of the server's planner, with its horizons.
        horizons: of the server's planner.
        welcome: what the server said of itself.

    Raises:
        ServerError: the server refused; its code says why.
        ConnectionLostError: there was no server in time.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        address: str,
        contract: Contract,
        *,
        token: str = "",
        deadline: float = 1.0,
        connect_seconds: float = 10.0,
        cafile: Path | None = None,
        name: str = "",
    ):
        is_secure = _is_secure(address)
        if not 0 < deadline <= MAX_DEADLINE:
            raise ValueError(f"deadline is {deadline} s, it must be in 0..{MAX_DEADLINE:g}")
        if not 0 <= connect_seconds < math.inf:
            raise ValueError(f"connect_seconds is {connect_seconds}, it must be at least 0")
        tls = ssl.create_default_context(cafile=cafile) if is_secure else None
        hello = Hello(contract=contract, token=token, client=shortened(name))
        self.deadline = deadline
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="policy client", daemon=True)
        self._thread.start()
        self._link = Link(address, hello, tls=tls)
        try:
            wait = connect_seconds + 2 * OPEN_SECONDS  # The last attempt may begin at the end.
            self.welcome: Welcome = self._await(self._link.open(connect_seconds), wait)
        except BaseException:
            self.close()
            raise
        self.contract = self.welcome.contract
        assert self.contract.horizons is not None  # The link has checked it.
        self.horizons: Horizons = self.contract.horizons

    def __call__(self, request: Request) -> ActionChunk:
        """The server's chunk for `request.tick`.

        Raises:
            ServerError: the server refused; its code says why.
            DeadlineError: it did not answer in time.
            ConnectionLostError: there was no connection in time, or it broke meanwhile.
            ServingError: a number in the history is NaN or infinite; nothing was sent.
            WireError: the history lacks a field, or is not what the contract says.
        """
        asked = replace(request, history=self._told(request.history))
        answer = self._await(self._link.ask(asked, self.deadline), self.deadline)
        chunk = checked(answer, request, self.contract)
        return ActionChunk(chunk.actions, chunk.tick0, self.contract)

    def report(self, values: Mapping[str, Value]) -> None:
        """Tell those who watch how control goes; returns at once.

        Args:
            values: numbers, short texts and lists of numbers; numbers that are not finite, and
                lists that hold one, are sent as nothing. A newer report takes the place of one that
                was not sent yet.

        Raises:
            WireError: there are too many values, or some are of another kind.
        """
        finite = {name: _finite(value) for name, value in values.items()}
        frame = encode(Report(finite))
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._link.report, frame)

    def close(self) -> None:
        """Give the lease back and end; may be called any number of times."""
        if self._loop.is_closed():
            return
        try:
            self._await(self._link.close(), 2 * CLOSE_SECONDS)
        except (DeadlineError, ConnectionLostError):
            pass  # The thread ends anyway, and the lease runs out by itself.
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _told(self, history: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the server needs of a history, in its order."""
        missing = [name for name in self.contract.observation if name not in history]
        if missing:
            raise WireError(
                Code.BAD_OBSERVATION, f"the observation lacks {missing}, it has {list(history)}"
            )
        told = {name: history[name] for name in self.contract.observation}
        check_history(told, self.contract)
        return told

    def _await(self, work: Coroutine[object, object, Result], seconds: float) -> Result:
        """What some work on the event loop returns, within a time."""
        if self._loop.is_closed():
            work.close()
            raise ConnectionLostError("this client is closed: make another one")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds + GRACE)
        except concurrent.futures.TimeoutError as error:
            raise DeadlineError(f"no answer within {seconds + GRACE:g} s") from error
        finally:
            future.cancel()

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()


def _is_secure(address: str) -> bool:
    """Whether an address asks for TLS.

    Raises:
        ValueError: it is no address of a server.
    """
    try:
        parts = urlsplit(address)
        # The port is looked at when it is asked for only.
        is_valid = parts.scheme in ("ws", "wss") and parts.hostname and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # UnicodeError is one.
        is_valid = False
    if not is_valid:
        raise ValueError(f"the address is {address!r}, it must be ws://HOST:PORT or wss://...")
    return address.lower().startswith("wss")


def _finite(value: Value) -> Value:
    """The value, or nothing where a number in it would be no number for those who watch."""
    numbers = value if isinstance(value, list) else [value]
    is_odd = any(isinstance(item, float) and not math.isfinite(item) for item in numbers)
    return None if is_odd else value
