"""Inference beside the control loop: a planner in a thread of its own, asked through a mailbox.

The control thread leaves a request and fetches a reply; neither call waits for the planner. There
is one request at a time. What comes of a request of an older epoch is dropped.
"""

import logging
from dataclasses import dataclass
from typing import Self

from policy.control.clock import Clock
from policy.control.mailbox import Mailbox
from policy.types import ActionChunk, Planner, Request

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """What came of a request.

    Args:
        request: what was asked.
        chunk: the plan; None where there was an error.
        error: what the planner raised.
        asked: when the request was left [s].
        answered: when the reply was [s].
    """

    request: Request
    chunk: ActionChunk | None
    error: Exception | None
    asked: float
    answered: float


class _Close:
    """The last letter to a planner's thread."""


class Inference:
    """A planner's thread.

    Args:
        planner: called by that thread alone.
        clock: that it runs on, and the control thread too.
    """

    def __init__(self, planner: Planner, *, clock: Clock):
        self._planner, self._clock = planner, clock
        self._requests: Mailbox[tuple[Request, float] | _Close] = Mailbox(clock)
        self._replies: Mailbox[Reply] = Mailbox(clock)
        self._pending: Request | None = None
        self._n_refused = 0
        self._worker = clock.start(self._work, name="inference")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pending(self) -> Request | None:
        """The request that no reply has been fetched for."""
        return self._pending

    @property
    def n_outdated(self) -> int:
        """Replies that were dropped because their epoch was over."""
        return self._n_refused + self._replies.n_dropped

    def ask(self, request: Request) -> None:
        """Leave a request; one of an older epoch that is still pending is given up."""
        assert self._pending is None or self._pending.epoch != request.epoch
        self._pending = request
        self._requests.put((request, self._clock.now()))

    def reply(self, deadline: float | None) -> Reply | None:
        """The reply to the pending request, waited for until `deadline` [s]; None: not yet."""
        while self._pending is not None:
            reply = self._replies.wait(deadline)
            if reply is None:
                return None
            if reply.request is self._pending:
                self._pending = None
                return reply
            self._n_refused += 1
        return None

    def close(self) -> None:
        """End the thread, after the request that it is at."""
        self._requests.put(_Close())
        self._worker.join()

    def _work(self) -> None:
        letter = self._requests.wait(None)
        while isinstance(letter, tuple):
            self._replies.put(self._answer(*letter))
            letter = self._requests.wait(None)

    def _answer(self, request: Request, asked: float) -> Reply:
        chunk = error = None
        try:
            chunk = self._planner(request)
        except Exception as e:
            LOGGER.debug("the planner failed for tick %d", request.tick, exc_info=True)
            error = e
        return Reply(request, chunk, error, asked, self._clock.now())
