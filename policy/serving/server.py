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
from policy.serving.connection import Strangers, limited
from policy.serving.endpoints import Endpoints, Page
from policy.serving.errors import Code, WireError, shortened
from policy.serving.messages import Failure
from policy.serving.seldom import seldom
from policy.serving.service import RefusedError, Service
from policy.serving.session import Outbox, Session
from policy.serving.settings import ServerSettings
from policy.serving.wire import encode
from policy.types import Planner

log = logging.getLogger(__name__)

# Connections of peers that have not said who they are: silent ones, and HTTP requests.
MAX_STRANGERS = 128
CLOSE_SECONDS = 2.0
# For a peer to open TLS; nothing else limits how many are at it.
TLS_SECONDS = 2.0


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
        self._strangers = Strangers(MAX_STRANGERS, cut_off=self._cut_off)
        self._dismissals = seldom(log, "dismissals")

    @property
    def address(self) -> str:
        """URL that clients connect to."""
        scheme = "wss" if self.settings.certfile else "ws"
        return f"{scheme}://{self.settings.host_in_url}:{self.port}"

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
            has_room=self._has_room,
            token=settings.token,
            page=self._page,
            names=settings.names,
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
            ssl_handshake_timeout=None if tls is None else TLS_SECONDS,
            process_request=respond,
            compression=None,
            server_header=None,
            open_timeout=settings.handshake_seconds,
            ping_interval=settings.ping_seconds,
            ping_timeout=settings.ping_seconds,
            close_timeout=CLOSE_SECONDS,
            max_size=largest_message(self.contract),
            max_queue=4,
            # It would log what is sent where debugging is on.
            logger=seldom(log, "websockets", level=logging.WARNING),
            create_connection=limited(self._strangers),
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

    def _has_room(self) -> bool:
        """Whether one more peer may say who it is; those that have not do not count."""
        return self._service.n_sessions < self.settings.max_connections

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
            self._dismissals.info("a connection broke")
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
        if not self._has_room():  # Others came while this one was silent.
            raise RefusedError(Code.NOT_READY, "too many connections, try again later")
        session = self._service.admit(hello, cut_off=lambda: self._cut_off(connection))
        self._strangers.remove(connection)
        return session

    async def _dismiss(self, connection: ServerConnection, failure: Failure) -> None:
        """Tell a peer why it is cut off, and cut it off."""
        self._service.metrics.failures[failure.code] += 1
        self._dismissals.log(
            logging.WARNING if failure.code is Code.UNAUTHORIZED else logging.INFO,
            "a peer at %s is dismissed (%s): %s",
            connection.remote_address,
            failure.code,
            shortened(failure.text),
        )
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
