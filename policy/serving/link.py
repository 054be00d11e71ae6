"""A client's connection to a policy server, kept up: the asynchronous side of `client.py`.

When the connection breaks, whoever waits for an answer is told at once, and the link is taken up
again as soon as a server is there. The server begins a new stream then.
"""

import asyncio
import contextlib
import logging
import ssl
import time
from dataclasses import replace

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from data.types import Contract, ContractError
from policy.serving.agreement import check_actions, check_contracts
from policy.serving.errors import (
    Code,
    ConnectionLostError,
    DeadlineError,
    ServerError,
    ServingError,
    WireError,
)
from policy.serving.frame import MAX_FRAME
from policy.serving.messages import Answer, Ask, Failure, Hello, Release, Welcome
from policy.serving.wire import decode, encode
from policy.types import Request

OPEN_SECONDS = 5.0
PING_SECONDS = 5.0
CLOSE_SECONDS = 1.0
# Between two attempts to connect; doubled from the first to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0

# The server refuses for now; another attempt may succeed.
PASSING = (Code.NOT_READY, Code.LEASE_HELD)


class Link:
    """One client's connection; used on one event loop only.

    Args:
        address: ws://HOST:PORT or wss://HOST:PORT.
        hello: what the client says of itself.
        tls: for wss; None for ws.
    """

    def __init__(self, address: str, hello: Hello, *, tls: ssl.SSLContext | None):
        self._address, self._hello, self._tls = address, hello, tls
        self._connection: ClientConnection | None = None
        self._welcome: Welcome | None = None
        self._fault: ServingError | None = None  # Why there is no connection.
        self._is_over = False  # Whether another attempt is made.
        self._changed = asyncio.Condition()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._n_asked = 0
        self._report: bytes | None = None
        self._reported = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, seconds: float) -> Welcome:
        """Connect, trying for so long [s] while no server is there or it warms up.

        Raises:
            ServerError: the server refused.
            ConnectionLostError: there was no server in time.
        """
        end, pause = time.monotonic() + seconds, FIRST_PAUSE
        while True:
            try:
                welcome = await self._connect()
                break
            except ServingError as error:
                is_passing = isinstance(error, ConnectionLostError) or (
                    isinstance(error, ServerError) and error.code is Code.NOT_READY
                )
                if not is_passing or time.monotonic() + pause > end:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        self._tasks = [asyncio.create_task(self._keep()), asyncio.create_task(self._tell())]
        return welcome

    async def ask(self, request: Request, deadline: float) -> Answer:
        """The server's answer within `deadline` [s].

        Raises:
            ServerError: the server refused.
            DeadlineError: it did not answer in time.
            ConnectionLostError: there was no connection in time, or it broke meanwhile.
            ServingError: a number in the history is not finite; the next one may be.
            WireError: the request holds what cannot be sent.
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout(deadline):
                connection = await self._connected()
                self._n_asked += 1
                number = self._n_asked
                left = max(0.0, deadline - (time.monotonic() - began))
                frame = _frame(Ask(number, request, left))
                answer = asyncio.get_running_loop().create_future()
                self._waiting[number] = answer
                try:
                    await connection.send(frame)
                    return await answer
                finally:
                    self._waiting.pop(number, None)
        except TimeoutError as error:
            if self._connection is None:
                raise self._lost() from error
            raise DeadlineError(f"{self._address} did not answer in {deadline:g} s") from error
        except ConnectionClosed as error:
            raise ConnectionLostError(f"the connection to {self._address} broke") from error

    def report(self, frame: bytes) -> None:
        """Send a report when there is time; a newer one takes the place of an older one."""
        self._report = frame
        self._reported.set()

    async def close(self) -> None:
        """Give the lease back and end."""
        self._is_over = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fault = ConnectionLostError(f"the connection to {self._address} was closed")
        if self._connection is not None:
            with contextlib.suppress(ConnectionClosed, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._connection.send(encode(Release()))
                    await self._connection.close()
        self._drop()

    async def _connect(self) -> Welcome:
        """One attempt; afterwards there is a connection.

        Raises:
            ServingError: it failed.
        """
        try:
            connection = await connect(
                self._address,
                ssl=self._tls,
                proxy=None,
                compression=None,
                user_agent_header=None,
                open_timeout=OPEN_SECONDS,
                ping_interval=PING_SECONDS,
                ping_timeout=PING_SECONDS,
                close_timeout=CLOSE_SECONDS,
                max_size=MAX_FRAME,
                logger=_quiet_logger(),
            )
        except InvalidStatus as error:
            body = bytes(error.response.body or b"").decode(errors="replace").strip()
            text = f"{self._address} refused with HTTP {error.response.status_code}: {body}"
            raise ConnectionLostError(text) from error
        except (OSError, TimeoutError, WebSocketException, EOFError) as error:
            text = f"{self._address} cannot be reached ({error}): is the server running there?"
            raise ConnectionLostError(text) from error
        try:
            welcome = await self._greet(connection)
        except BaseException:
            connection.transport.abort()
            raise
        self._hello = replace(self._hello, lease=welcome.lease)
        self._welcome = self._welcome or welcome
        async with self._changed:
            self._connection, self._fault = connection, None
            self._changed.notify_all()
        return welcome

    async def _greet(self, connection: ClientConnection) -> Welcome:
        """Say hello and check what comes back."""
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await connection.send(encode(self._hello))
                message = decode(await connection.recv())
        except (ConnectionClosed, TimeoutError, WireError) as error:
            text = f"{self._address} did not say welcome ({error})"
            raise ConnectionLostError(text) from error
        if isinstance(message, Failure):
            raise ServerError(message.code, message.text)
        if not isinstance(message, Welcome):
            raise ServerError(Code.BAD_MESSAGE, f"{self._address} did not say welcome")
        self._check(message)
        return message

    def _check(self, welcome: Welcome) -> None:
        """The server has checked, too; but it may be of another release, or another model now."""
        theirs, first = welcome.contract, self._welcome
        if theirs.horizons is None:
            raise ServerError(Code.MISMATCH, "its contract has no horizons")
        if self._hello.contract is not None:
            this, that = f"the server {welcome.server!r}", f"the client {self._hello.client!r}"
            try:
                check_contracts(theirs, self._hello.contract, this=this, that=that)
            except ContractError as error:
                raise ServerError(Code.MISMATCH, str(error)) from error
        if first is not None and not _is_same(theirs, first.contract):
            raise ServerError(Code.MISMATCH, f"{self._address} serves another policy than before")

    async def _keep(self) -> None:
        """Read what comes; connect again whenever the connection breaks."""
        pause = FIRST_PAUSE
        while not self._is_over:
            if self._connection is not None:
                await self._read(self._connection)
                self._fault = ConnectionLostError(f"the connection to {self._address} broke")
                self._drop()
            try:
                await self._connect()
                pause = FIRST_PAUSE
            except ServingError as error:
                self._fault = error
                is_final = isinstance(error, ServerError) and error.code not in PASSING
                async with self._changed:
                    self._is_over = self._is_over or is_final
                    self._changed.notify_all()
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _read(self, connection: ClientConnection) -> None:
        """Take in what the server sends until the connection ends."""
        try:
            async for buffer in connection:
                message = decode(buffer)
                if isinstance(message, Answer):
                    future = self._waiting.pop(message.id, None)
                    if future is not None and not future.done():  # Else it came too late.
                        future.set_result(message)
                elif isinstance(message, Failure):
                    self._refuse(message)
        except (ConnectionClosed, WireError):
            connection.transport.abort()

    def _refuse(self, failure: Failure) -> None:
        """Tell whoever asked; a failure without a number concerns all."""
        numbers = list(self._waiting) if failure.id is None else [failure.id]
        for number in numbers:
            future = self._waiting.pop(number, None)
            if future is not None and not future.done():
                future.set_exception(ServerError(failure.code, failure.text))

    def _drop(self) -> None:
        """The connection is gone: nobody needs to wait for an answer."""
        self._connection = None
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self._lost())
        self._waiting.clear()

    async def _connected(self) -> ClientConnection:
        """The connection, when there is one."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._connection or self._is_over)
        if self._connection is None:
            raise self._fault or self._lost()
        return self._connection

    def _lost(self) -> ConnectionLostError:
        reason = f": {self._fault}" if self._fault is not None else ""
        return ConnectionLostError(f"there is no connection to {self._address}{reason}")

    async def _tell(self) -> None:
        """Send the newest report whenever there is one."""
        while True:
            await self._reported.wait()
            self._reported.clear()
            report, connection = self._report, self._connection
            if report is not None and connection is not None:
                with contextlib.suppress(ConnectionClosed):
                    await connection.send(report)


def _frame(ask: Ask) -> bytes:
    """The frame of a request; a sensor that fails for a moment is no reason to end a run."""
    try:
        return encode(ask)
    except WireError as error:
        if error.code is Code.NOT_FINITE:
            raise ServingError(f"not sent: {error}") from error
        raise


def checked(answer: Answer, request: Request, contract: Contract) -> Answer:
    """The answer, if it is one to the request.

    Raises:
        ServerError: it is not, or its actions are not those of the contract.
    """
    if (answer.epoch, answer.tick0) != (request.epoch, request.tick):
        raise ServerError(
            Code.BAD_MESSAGE,
            f"the answer is for epoch {answer.epoch}, tick {answer.tick0}; asked for was "
            f"epoch {request.epoch}, tick {request.tick}",
        )
    try:
        check_actions(answer.actions, contract)
    except ContractError as error:
        raise ServerError(Code.BAD_MESSAGE, str(error)) from error
    return answer


def _is_same(a: Contract, b: Contract) -> bool:
    return a == b and list(a.observation) == list(b.observation)


def _quiet_logger() -> logging.Logger:
    """A logger for the WebSocket library, which logs what is sent where debugging is on."""
    logger = logging.Logger(f"{__name__}.websockets", logging.WARNING)
    logger.parent = logging.getLogger(__name__)
    return logger
