"""What a policy server does with what its peers say; knows nothing of sockets.

One session controls; it holds the lease (see `policy.serving.lease`). A request is refused when it
comes, before it is planned for, or after, as soon as something speaks against it.

Logs name clients, codes and incidents; never what was observed.
"""

import logging
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

from data.types import ContractError
from policy.serving.agreement import (
    check_contracts,
    check_decided,
    check_history,
    check_types,
)
from policy.serving.endpoints import is_same_secret
from policy.serving.engine import Engine, Job
from policy.serving.errors import Code, WireError, shortened
from policy.serving.lease import Lease
from policy.serving.messages import Answer, Ask, Failure, Hello, Release, Report, Welcome
from policy.serving.metrics import Metrics
from policy.serving.session import Outbox, Session
from policy.serving.wire import decode, encode
from policy.types import Planner

log = logging.getLogger(__name__)


class RefusedError(Exception):
    """A peer is told a failure and cut off."""

    def __init__(self, code: Code, text: str):
        super().__init__(text)
        self.failure = Failure(code, text)


class Service:
    """A planner, and who may ask it.

    Args:
        planner: called by the engine's thread.
        warm_up: called there before the first request, and after a failure.
        token: secret that peers must know; None where anybody may ask.
        lease_seconds: the controlling client loses its lease after so long without a message.
        name: of the server, for clients and messages.
        nfe: denoiser calls per chunk, for clients; 0 where it is not known.
    """

    def __init__(
        self,
        planner: Planner,
        *,
        warm_up: Callable[[], object],
        token: str | None,
        lease_seconds: float,
        name: str,
        nfe: int,
    ):
        self.contract = replace(planner.contract, horizons=planner.horizons)
        check_types(self.contract)
        self.metrics = Metrics()
        self.lease = Lease(lease_seconds)
        self.engine = Engine(planner, contract=self.contract, warm_up=warm_up, metrics=self.metrics)
        self.name = shortened(name)
        self._token, self._nfe = token, nfe
        self._sessions: dict[int, Session] = {}
        self._newest_report: bytes | None = None

    @property
    def fault(self) -> str:
        """Why plans cannot be asked for; "" where they can."""
        return self.engine.fault

    @property
    def n_sessions(self) -> int:
        """Peers that were admitted and are there."""
        return len(self._sessions)

    def admit(self, buffer: bytes | str, *, cut_off: Callable[[], None]) -> Session:
        """The session of a peer that says hello as it should.

        Args:
            buffer: the peer's first message.
            cut_off: called when the peer reads too slowly.

        Raises:
            RefusedError: it may not have one.
            WireError: it says nothing that can be understood.
        """
        hello = decode(buffer)
        if not isinstance(hello, Hello):
            _refuse(Code.UNAUTHORIZED, "the first message must be a hello")
        if self._token is not None and not is_same_secret(hello.token, self._token):
            _refuse(Code.UNAUTHORIZED, "the token is missing or wrong")
        self.metrics.n_handshakes += 1
        session = Session(self.metrics.n_handshakes, hello.role, key="", outbox=Outbox(cut_off))
        if hello.contract is not None:
            session.key = hello.lease if self.lease.is_key(hello.lease) else secrets.token_hex(16)
            self._grant(hello, session)
        self._sessions[session.number] = session
        log.info("session %d: %s %r", session.number, session.role, shortened(hello.client))
        welcome = Welcome(self.contract, session.key, self.lease.seconds, self._nfe, self.name)
        session.outbox.post(encode(welcome))
        if session.role == "watch" and self._newest_report is not None:
            session.outbox.replace(self._newest_report)
        return session

    def leave(self, session: Session) -> None:
        """A peer is gone; the lease, if it had it, runs out by itself."""
        self._sessions.pop(session.number, None)

    def receive(self, session: Session, buffer: bytes | str) -> None:
        """Do what a message asks for.

        Raises:
            RefusedError: the message has no place here.
            WireError: it is none.
        """
        try:
            message = decode(buffer)
        except WireError as error:
            if error.code is not Code.NOT_FINITE:
                raise
            # A sensor that fails is no attack: the client may go on with the next observation.
            self._send(session, Failure(error.code, str(error)))
            return
        if session.role == "watch":
            _refuse(Code.UNAUTHORIZED, "one that watches has nothing to say")
        if isinstance(message, Ask):
            self._ask(session, message)
        elif isinstance(message, Report):
            if self.lease.renew(session.number, session.key):
                self._show(message)
        elif isinstance(message, Release):
            self.lease.release(session.number)
        else:
            _refuse(Code.BAD_MESSAGE, "that is not for a client to say now")

    def _grant(self, hello: Hello, session: Session) -> None:
        """Give the lease to one that may control.

        Raises:
            RefusedError: it may not.
        """
        assert hello.contract is not None
        this, that = f"the server {self.name!r}", f"the client {shortened(hello.client)!r}"
        try:
            check_contracts(self.contract, hello.contract, this=this, that=that)
        except ContractError as error:
            _refuse(Code.MISMATCH, str(error))
        if self.fault:
            _refuse(Code.NOT_READY, self.fault)
        if not self.lease.take(session.number, session.key):
            left = self.lease.seconds_left
            text = f"another client controls; its lease ends in {left:.1f} s unless it is renewed"
            _refuse(Code.LEASE_HELD, text)

    def _ask(self, session: Session, ask: Ask) -> None:
        """Hand a request to the engine, if it may be asked."""
        self.metrics.n_requests += 1
        if not self.lease.renew(session.number, session.key):
            self._send(session, self._lease_lost(ask))
            return
        try:
            check_history(ask.request.history, self.contract)
            check_decided(ask.request, self.contract)
        except WireError as error:
            self._send(session, Failure(error.code, str(error), ask.id))
            return
        asked, last = (ask.request.epoch, ask.request.tick), (session.epoch, session.tick)
        if asked < last:
            text = f"epoch and tick are {asked}, {last} were asked for before"
            self._send(session, Failure(Code.STALE, text, ask.id))
            return
        session.epoch, session.tick = asked
        job = Job(
            ask,
            came=self.engine.now(),
            stream=(session.number, ask.request.epoch),
            fault=lambda: self._fault(session, ask),
            reply=lambda answer: self._send(session, answer),
        )
        self.engine.submit(job)

    def _fault(self, session: Session, ask: Ask) -> Failure | None:
        """Why a request must not be answered with a chunk any more."""
        if not self.lease.is_held_by(session.number):
            return self._lease_lost(ask)
        if ask.request.epoch < session.epoch:
            text = f"epoch {ask.request.epoch} is over, {session.epoch} has begun"
            return Failure(Code.STALE, text, ask.id)
        return None

    def _lease_lost(self, ask: Ask) -> Failure:
        text = f"another client controls, at least for {self.lease.seconds_left:.1f} s more"
        return Failure(Code.LEASE_LOST, text, ask.id)

    def _send(self, session: Session, message: Answer | Failure) -> None:
        if isinstance(message, Failure):
            self.metrics.failures[message.code] += 1
        session.outbox.post(encode(message))

    def _show(self, report: Report) -> None:
        """Pass a report on to all that watch; the newest is kept for those who come later."""
        self._newest_report = encode(report)
        for session in self._sessions.values():
            if session.role == "watch":
                session.outbox.replace(self._newest_report)


def _refuse(code: Code, text: str) -> NoReturn:
    raise RefusedError(code, text)
