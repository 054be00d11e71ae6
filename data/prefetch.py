"""What is needed next is made while what is there is being used.

The copies and reads that make a batch let other threads run, so that a training step does not wait
for them. Everything comes in the order in which it was asked for, whatever the number of threads:
what is made must follow from what it is asked with alone.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

Made = TypeVar("Made")


class Prefetch(Generic[Made]):
    """An iterator over what calls return, some of them made ahead; use it in a `with` statement.

    What a call raises comes out where its result would have. Leaving the `with` statement waits for
    the calls that have begun, and leaves no thread behind.

    Args:
        calls: in order, perhaps endless; they are drawn from in the thread that iterates.
        ahead: calls that are begun before their results are asked for; 0: none, without threads.
        threads: that make them.
        finish: of what was made, in the thread that iterates; None: nothing.
    """

    def __init__(
        self,
        calls: Iterator[Callable[[], Made]],
        *,
        ahead: int,
        threads: int = 1,
        finish: Callable[[Made], Made] | None = None,
    ):
        self._calls, self._ahead, self._threads, self._finish = calls, ahead, threads, finish
        self._pending: deque[Future[Made]] = deque()
        self._executor: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self._ahead:
            self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="prefetch")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
        self._executor = None
        self._pending.clear()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Made:
        made = self._next()
        return made if self._finish is None else self._finish(made)

    def _next(self) -> Made:
        if not self._ahead:
            return next(self._calls)()
        assert self._executor is not None, "a Prefetch is used outside of its `with` statement"
        while len(self._pending) <= self._ahead:
            call = next(self._calls, None)
            if call is None:
                break
            self._pending.append(self._executor.submit(call))
        if not self._pending:
            raise StopIteration
        return self._pending.popleft().result()
