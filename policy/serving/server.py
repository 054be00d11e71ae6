"""A policy server on WebSocket: plans for one robot at a time.

The event loop never plans: the engine's thread does. So health is answered, the lease runs and
stale requests are refused while the planner thinks. Everything that a peer can make grow has a
limit: connections, the size of a message (what the contract needs), messages that wait, and the
time that a peer may take.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Self

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from data.types import Contract
from policy.serving.agreement import largest_message
from policy.serving.endpoints import Endpoints, Page
from policy.serving.errors import Code, WireError, shortened
from policy.serving.messages import Failure
from policy.serving.service import RefusedError, Service
from policy.serving.session import Outbox, Session
from policy.serving.settings import ServerSettings
from policy.serving.wire import encode
from policy.types import Planner

log = logging.getLogger(__name__)

# Connections that are not (yet) WebSockets: silent ones, and HTTP requests.
MAX_STRANGERS = 256
CLOSE_SECONDS = 2.0


class PolicyServer:
    """Serves a planner; an async context manager, which listens within.

    Args:
        planner: called by one thread, one request at a time.
        settings: where to listen, and the limits.
        warm_up: called in that thread before the server is ready, and after a failure.
        name: of the server, for clients and messages.
        nfe: denoiser calls per chunk, for clients; 0 where it is not known.

    Raises:
        ContractError: the planner's contract has arrays that cannot be sent.
        ValueError: the page cannot be served.
    """

    def __init__(
        self,
        planner: Planner,
        settings: ServerSettings,
        *,
        warm_up: Callable[[], object],
        name: str = "policy server",
        nfe: int = 0,
    ):
        self.settings = settings
        self.port = settings.port
        self._page = None if settings.page is None else Page.read(settings.page)
        self._planner, self._warm_up, self._name, self._nfe = planner, warm_up, name, nfe

    @property
    def address(self) -> str:
        """URL that clients connect to."""
        scheme = "wss" if self.settings.certfile else "ws"
        host = self.settings.host
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def contract(self) -> Contract:
        """Of the planner, with its horizons."""
        return self._service.contract

    async def __aenter__(self) -> Self:
        """Listen; health is answered from now on, and the planner warms up."""
        settings, tls = self.settings, self.settings.tls()
        self._service = Service(
            self._planner,
            warm_up=self._warm_up,
            token=settings.token,
            lease_seconds=settings.lease_seconds,
            name=self._name,
            nfe=self._nfe,
        )
        endpoints = Endpoints(
            readiness=lambda: self._service.fault,
            metrics=self._metrics_text,
            has_room=lambda: len(self._server.connections) < settings.max_connections,
            token=settings.token,
            page=self._page,
            is_loopback=settings.is_loopback,
            is_secure=tls is not None,
        )

        def respond(connection: ServerConnection, request: Request) -> Response | None:
            return endpoints.respond(request)

        socket = settings.listen()
        self.port = socket.getsockname()[1]
        self._server: Server = await serve(
            self._converse,
            sock=socket,
            ssl=tls,
            process_request=respond,
            compression=None,
            server_header=None,
            open_timeout=settings.handshake_seconds,
            ping_interval=settings.ping_seconds,
            ping_timeout=settings.ping_seconds,
            close_timeout=CLOSE_SECONDS,
            max_size=largest_message(self.contract),
            max_queue=4,
            logger=_quiet_logger(),
            create_connection=_limited(settings.max_connections + MAX_STRANGERS),
        )
        self._warming = asyncio.create_task(self._service.engine.warm_up())
        self._serving = asyncio.create_task(self._service.engine.run())
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Tell all peers, stop listening, end."""
        self._server.close(reason="the server ends")
        self._serving.cancel()
        self._warming.cancel()
        await asyncio.gather(self._serving, self._warming, return_exceptions=True)
        self._service.engine.close()
        await self._server.wait_closed()

    async def wait_ready(self) -> None:
        """Return when plans can be asked for.

        Raises:
            Exception: what the planner raised while it warmed up.
        """
        await asyncio.shield(self._warming)

    def _metrics_text(self) -> str:
        gauges = {
            "ready": float(not self._service.fault),
            "lease_seconds_left": self._service.lease.seconds_left,
            "connections": float(len(self._server.connections)),
        }
        return self._service.metrics.text(gauges)

    async def _converse(self, connection: ServerConnection) -> None:
        """Talk to one peer until either side ends it."""
        session = writer = None
        try:
            session = await self._admit(connection)
            writer = asyncio.create_task(self._write(connection, session.outbox))
            async for buffer in connection:
                self._service.receive(session, buffer)
                # Messages that are there already are read without a pause otherwise.
                await asyncio.sleep(0)
        except RefusedError as error:
            await self._dismiss(connection, error.failure)
        except WireError as error:
            await self._dismiss(connection, Failure(error.code, str(error)))
        except ConnectionClosed:
            log.info("a connection broke")
        finally:
            if writer is not None:
                writer.cancel()
            if session is not None:
                self._service.leave(session)

    async def _admit(self, connection: ServerConnection) -> Session:
        """The session of a peer, once it has said who it is."""
        seconds = self.settings.handshake_seconds
        try:
            async with asyncio.timeout(seconds):
                hello = await connection.recv()
        except TimeoutError as error:
            raise RefusedError(Code.UNAUTHORIZED, f"no hello within {seconds:g} s") from error
        return self._service.admit(
            hello,
            cut_off=lambda: self._cut_off(connection),
            peer=str(connection.remote_address),
        )

    async def _dismiss(self, connection: ServerConnection, failure: Failure) -> None:
        """Tell a peer why it is cut off, and cut it off."""
        self._service.metrics.failures[failure.code] += 1
        log.info("a peer is dismissed (%s): %s", failure.code, shortened(failure.text))
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(self.settings.send_seconds):
                await connection.send(encode(failure))
                await connection.close(CloseCode.POLICY_VIOLATION, failure.code)

    async def _write(self, connection: ServerConnection, outbox: Outbox) -> None:
        """Send what waits; cut off a peer that does not take it."""
        try:
            while True:
                frame = await outbox.next()
                async with asyncio.timeout(self.settings.send_seconds):
                    await connection.send(frame)
        except TimeoutError:
            self._cut_off(connection)
        except ConnectionClosed:
            return  # The reader of the connection hears of it, too.

    def _cut_off(self, connection: ServerConnection) -> None:
        """End a connection at once, without telling the peer: it does not listen."""
        if not connection.transport.is_closing():
            self._service.metrics.n_aborted += 1
            connection.transport.abort()


def _limited(most: int) -> type[ServerConnection]:
    """Connections of which there are at most so many, and whose buffers do not grow.

    Pings are answered at once and without backpressure: a peer that sends them without end and
    takes no answer would fill the memory. So nothing is read from it until it takes what waits.
    """

    class LimitedConnection(ServerConnection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            if len(self.server.handler_tasks) > most:
                self.transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.paused:
                self.transport.pause_reading()

        def resume_writing(self) -> None:
            super().resume_writing()
            if not self.recv_messages.paused:
                self.transport.resume_reading()

    return LimitedConnection


def _quiet_logger() -> logging.Logger:
    """A logger for the WebSocket library, which logs what is sent where debugging is on."""
    logger = logging.Logger(f"{__name__}.websockets", logging.WARNING)
    logger.parent = log
    return logger
