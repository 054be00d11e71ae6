"""The planner behind a server: one thread that plans, one request that waits.

The event loop hands requests in and stays free to answer everybody else meanwhile. A request that
comes while another waits takes its place (newest wins); the one that is being planned is finished.

    planning   A A A A A A C C C C
    waiting        B C C C           B is answered SUPERSEDED when C comes
"""

import asyncio
import contextlib
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

from data.types import Contract
from policy.serving.agreement import check_actions
from policy.serving.errors import Code
from policy.serving.messages import Answer, Ask, Failure
from policy.serving.metrics import Metrics
from policy.types import ActionChunk, Planner, Request

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# A planner that is at one request for longer is taken to hang, until it returns.
MOST_BUSY = 10.0  # s


class State(Enum):
    """Whether requests can be served."""

    WARMING_UP = "warming up"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class Job:
    """A request on its way through the engine.

    Args:
        ask: the request.
        came: when it came, on the engine's clock [s].
        stream: whose noise and last plan count; another value starts a new stream.
        fault: asked before and after planning why the answer must not be given; None if it may.
        reply: takes the answer, on the event loop; called once.
    """

    ask: Ask
    came: float
    stream: Hashable
    fault: Callable[[], Failure | None]
    reply: Callable[[Answer | Failure], None]


class Engine:
    """Plans in a thread of its own.

    Args:
        planner: called by that thread only.
        contract: of the planner, with its horizons.
        warm_up: called there before the first request, and after a failure.
        metrics: takes in latencies.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        planner: Planner,
        *,
        contract: Contract,
        warm_up: Callable[[], object],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.state = State.WARMING_UP
        self.now = clock
        self._planner, self._contract, self._warm_up = planner, contract, warm_up
        self._metrics = metrics
        self._worker = _Worker()
        self._waiting: Job | None = None
        self._expiry: asyncio.TimerHandle | None = None  # Of the job that waits.
        self._busy_since: float | None = None
        self._came = asyncio.Event()
        self._stream: Hashable = None
        self._epoch = 0

    @property
    def fault(self) -> str:
        """Why plans cannot be asked for; "" where they can."""
        if self.state is not State.READY:
            return f"the planner is {self.state.value}"
        busy = 0.0 if self._busy_since is None else self.now() - self._busy_since
        if busy > MOST_BUSY:
            return (
                f"the planner is at one request for {busy:.0f} s, at most {MOST_BUSY:g} s is well"
            )
        return ""

    def submit(self, job: Job) -> None:
        """Plan for a job next, instead of the one that waits."""
        superseded = self._take()
        self._waiting = job
        # Its turn may come much later, or never.
        loop = asyncio.get_running_loop()
        self._expiry = loop.call_later(job.ask.deadline, self._expire)
        if superseded is not None:
            text = "a newer request came before this one's turn"
            superseded.reply(Failure(Code.SUPERSEDED, text, superseded.ask.id))
        self._came.set()

    async def warm_up(self) -> None:
        """Get ready.

        Raises:
            Exception: whatever the planner raised; it has failed then.
        """
        try:
            await self._worker.call(self._warm_up)
        except BaseException:
            self.state = State.FAILED
            raise
        self.state = State.READY

    async def run(self) -> None:
        """Serve requests until cancelled."""
        try:
            while True:
                await self._came.wait()
                self._came.clear()
                job = self._take()
                if job is not None:
                    self._busy_since = self.now()
                    job.reply(await self._answer(job))
                    self._busy_since = None
        except Exception:  # A defect of ours: nobody is to believe that plans will come.
            self.state = State.FAILED
            log.exception("the engine ended")
            raise

    def close(self) -> None:
        """Let the thread end after the call it is at, if it is at one."""
        self._worker.close()

    def _take(self) -> Job | None:
        """The job that waited, if one did; none waits any more."""
        if self._expiry is not None:
            self._expiry.cancel()
        job, self._waiting, self._expiry = self._waiting, None, None
        return job

    def _expire(self) -> None:
        """Answer the job that waits: its deadline has passed."""
        job = self._take()
        if job is not None:
            text = f"its turn did not come within its deadline of {job.ask.deadline:g} s"
            job.reply(Failure(Code.EXPIRED, text, job.ask.id))

    async def _answer(self, job: Job) -> Answer | Failure:
        """Plan, unless it is too late or the planner is broken."""
        fault = self._refusal(job) or job.fault()
        if fault is not None:
            return fault
        if job.stream != self._stream:
            self._stream, self._epoch = job.stream, self._epoch + 1
        # Epochs of the planner count all streams: two clients may both begin at 0.
        request = replace(job.ask.request, epoch=self._epoch)
        began = self.now()
        try:
            chunk = await self._worker.call(lambda: self._plan(request))
        except Exception:
            return await self._recover(job)
        seconds = self.now() - began
        self._metrics.add_latency(seconds)
        answer = Answer(
            job.ask.id, job.ask.request.epoch, request.tick, chunk.actions, seconds=seconds
        )
        return job.fault() or answer

    def _refusal(self, job: Job) -> Failure | None:
        """Why a job is not planned for."""
        if self.state is not State.READY:
            return Failure(Code.NOT_READY, f"the planner is {self.state.value}", job.ask.id)
        late = self.now() - job.came - job.ask.deadline
        if late > 0:
            text = f"its turn came {late:.3f} s after its deadline of {job.ask.deadline:g} s"
            return Failure(Code.EXPIRED, text, job.ask.id)
        return None

    def _plan(self, request: Request) -> ActionChunk:
        chunk = self._planner(request)
        if chunk.tick0 != request.tick:
            raise ValueError(f"the chunk is for tick {chunk.tick0}, asked for was {request.tick}")
        check_actions(chunk.actions, self._contract)
        return chunk

    async def _recover(self, job: Job) -> Failure:
        """Log the failure under a number, and see whether the planner still works at all."""
        incident = secrets.token_hex(4)
        log.exception("incident %s: the planner failed", incident)
        self._stream = None  # What it remembers of the stream is worth nothing now.
        try:
            await self.warm_up()
        except Exception:
            log.exception("incident %s: the planner failed again and is given up", incident)
        text = f"the planner failed; the server's log tells more under incident {incident}"
        return Failure(Code.INTERNAL, text, job.ask.id)


class _Worker:
    """A thread that makes one call after another; a call that hangs does not keep us from ending.

    Executors of the standard library are joined when the interpreter ends.
    """

    def __init__(self):
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="planner", daemon=True).start()

    async def call(self, function: Callable[[], Result]) -> Result:
        """What `function` returns or raises, run in the thread."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def work() -> None:
            try:
                result = function()
            except BaseException as error:  # Whoever waits must be told, whatever it is.
                is_plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
                # The others would end the event loop, or cannot be put into a future.
                told = error if is_plain else RuntimeError(repr(error))
                finish(lambda: future.set_exception(told))
            else:
                finish(lambda: future.set_result(result))

        def finish(settle: Callable[[], None]) -> None:
            def settle_if_awaited() -> None:
                if not future.done():
                    settle()

            with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits.
                loop.call_soon_threadsafe(settle_if_awaited)

        self._calls.put(work)
        return await future

    def close(self) -> None:
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
