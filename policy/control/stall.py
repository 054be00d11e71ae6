"""How long the operating system kept a thread from running although it wanted to.

A late command is ours if control had too much to do, or waited for another thread of ours (Python
lets one run at a time). It is the system's if other programs were on the processor, or if the host
of a virtual machine took the processor away. Linux tells them apart by three counters of a thread:

* cpu: time on a processor; what a host took is not in it;
* queue: time ready to run, in the queue of a processor;
* n_slices: how often it was put on a processor.

| in the time between two looks                                   | the system's            |
| --------------------------------------------------------------- | ----------------------- |
| it never left its processor (n_slices is the same)              | what is missing in cpu  |
| it slept until it was due, and left the processor for that only | all that it woke up late |
| it left its processor otherwise: perhaps it waited for us       | queue, which is certain |

So what is doubtful counts as ours. Where the counters are missing (not Linux), or stand still at 0
(a Linux built without them), nothing is counted.
"""

import os
import time
from typing import Protocol

COUNTERS = "/proc/thread-self/schedstat"  # "cpu queue n_slices", times in ns
LONGEST = 64  # bytes of three numbers


class Stalls(Protocol):
    """What the system keeps from a thread."""

    def asleep(self, late: float) -> float:
        """What it kept since the last call, when the thread slept and woke up `late` [s]."""
        ...

    def awake(self, passed: float) -> float:
        """What it kept since the last call, `passed` ago, when there was work to do [s]."""
        ...


class NoStalls:
    """Where time stands still while a thread works, nothing is kept from it."""

    def asleep(self, late: float) -> float:
        """Nothing."""
        return 0.0

    def awake(self, passed: float) -> float:
        """Nothing."""
        return 0.0


class SystemStalls:
    """Watches the thread that makes it; to be called by that thread alone."""

    def __init__(self):
        try:
            self._file = os.open(COUNTERS, os.O_RDONLY)
        except OSError:
            self._file = -1
        self._cpu, self._queue, self._n_slices = self._look()
        if self._n_slices == 0:  # A thread that runs was put on a processor.
            self._close()

    def __del__(self):
        self._close()

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def asleep(self, late: float) -> float:
        """What the system kept since the last call, when the thread slept [s].

        Args:
            late: how much later it woke up than it was due [s].
        """
        queue, n_slices = self._queue, self._n_slices
        self._cpu, self._queue, self._n_slices = self._look()
        if self._file < 0:
            return 0.0
        is_sleep_only = self._n_slices - n_slices <= 1
        return late if is_sleep_only else min(late, self._queue - queue)

    def awake(self, passed: float) -> float:
        """What the system kept since the last call, when the thread had work to do [s].

        Args:
            passed: time since then [s].
        """
        cpu, queue, n_slices = self._cpu, self._queue, self._n_slices
        self._cpu, self._queue, self._n_slices = self._look()
        if self._file < 0:
            return 0.0
        if self._n_slices == n_slices:
            return max(passed - (self._cpu - cpu), 0.0)
        return min(passed, self._queue - queue)

    def _look(self) -> tuple[float, float, int]:
        """Time on a processor [s], in a queue [s], and times that it was put on one."""
        if self._file < 0:
            return 0.0, 0.0, 0
        _, queue, n_slices = os.pread(self._file, LONGEST, 0).split()
        # The file's own cpu time is brought up to date only now and then; this clock always is.
        return time.thread_time(), int(queue) / 1e9, int(n_slices)
