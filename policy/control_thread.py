"""Around the control thread of a robot: priority, quiet, and an emergency stop by signal."""

import contextlib
import gc
import logging
import logging.handlers
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from policy.control import refusals
from policy.control.governed import Governed

SWITCH_INTERVAL = 1e-4  # After which a thread lets another one run [s].
LOWEST = 1  # Priority among real-time threads.
TASKS = Path("/proc/self/task")


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Python's own pauses are kept from the control thread.

    No garbage collection, which takes many milliseconds in whichever thread it happens; and other
    threads give way within a tenth of a millisecond, where Python lets them run on for five.
    """
    interval = sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    gc.disable()
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.enable()
        gc.unfreeze()


@contextlib.contextmanager
def before_others(priority: int | None) -> Iterator[None]:
    """The calling thread runs before all ordinary ones (SCHED_FIFO); says where that is refused.

    The other threads of this program run before ordinary ones too, and after control: one that
    another program keeps from running may hold Python's lock, and control would wait for it.
    """
    if priority is None:
        yield
        return
    own, raised = threading.get_native_id(), []
    try:
        for thread in [own, *(thread for thread in _threads() if thread != own)]:
            _schedule(thread, priority if thread == own else LOWEST)
            raised.append(thread)
    except (AttributeError, OSError) as error:
        print(f"realtime={priority} is refused ({error}): control runs as other programs do")
    try:
        yield
    finally:
        for thread in raised:
            with contextlib.suppress(ProcessLookupError):  # It has ended meanwhile.
                _schedule(thread, None)


def _threads() -> list[int]:
    """Native numbers of all threads of this program; none where they are not known."""
    return [int(entry.name) for entry in TASKS.iterdir()] if TASKS.is_dir() else []


def _schedule(thread: int, priority: int | None) -> None:
    """Let a thread run among the real-time ones, or as ordinary ones do."""
    if priority is None:
        os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
    else:
        os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(priority))


@contextlib.contextmanager
def logged_elsewhere() -> Iterator[None]:
    """What the control thread logs is written by another thread: a terminal may block."""
    logger, lines = logging.getLogger(refusals.__name__), queue.SimpleQueue()
    handler = logging.handlers.QueueHandler(lines)
    listener = logging.handlers.QueueListener(lines, logging.StreamHandler())
    logger.addHandler(handler)
    propagated, logger.propagate = logger.propagate, False
    listener.start()
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
        listener.stop()


@contextlib.contextmanager
def emergency_stop_on_signal(governed: Governed) -> Iterator[None]:
    """`kill -USR1` stops the robot; from the main thread only, as Python demands."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGUSR1, lambda *_: governed.emergency_stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, previous)
