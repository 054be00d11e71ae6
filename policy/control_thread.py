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
from collections.abc import Iterator, Mapping
from pathlib import Path

from policy.control import refusals
from policy.control.governed import Governed

SWITCH_INTERVAL = 1e-4  # After which a thread lets another one run [s].
LOWEST, HIGHEST = 1, 99  # Priorities of real-time threads.
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
    Threads that are real-time ones already (a driver's) are left alone. In the end every thread
    runs as before; one that has begun meanwhile, as the calling thread did.

    A trap that stays: a policy that computes without a pause takes a processor from all others, and
    Linux gives those a twentieth of each second there; control on that processor waits meanwhile.

    Args:
        priority: among real-time threads, 2 to 99; None: all run as they are.

    Raises:
        ValueError: the priority is out of range.
    """
    if priority is None:
        yield
        return
    if not LOWEST < priority <= HIGHEST:
        raise ValueError(f"realtime is {priority}, it must be in {LOWEST + 1}..{HIGHEST}, or null")
    own, before = threading.get_native_id(), {}
    try:
        before[own] = _schedule_of(own)
        # A program that control starts is an ordinary one.
        _schedule(own, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, priority)
        for thread in _threads() - {own}:
            with contextlib.suppress(ProcessLookupError):  # It has ended meanwhile.
                before[thread] = _schedule_of(thread)
                if before[thread][0] in (os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE):
                    _schedule(thread, os.SCHED_FIFO, LOWEST)
    except (AttributeError, OSError) as error:
        print(f"realtime={priority} is refused ({error}): control runs as other programs do")
    try:
        yield
    finally:
        _restore(before, own)


def _restore(before: Mapping[int, tuple[int, int]], own: int) -> None:
    """Let all threads be scheduled as before; the calling one, `own`, is the last."""
    if own not in before:  # The system has no such priorities.
        return
    for thread in (*(_threads() - {own}), own):
        with contextlib.suppress(OSError):  # It has ended meanwhile, or nothing was ever raised.
            if thread == own or _schedule_of(thread) == (os.SCHED_FIFO, LOWEST):
                _schedule(thread, *before.get(thread, before[own]))


def _threads() -> set[int]:
    """Native numbers of all threads of this program; none where they are not known."""
    return {int(entry.name) for entry in TASKS.iterdir()} if TASKS.is_dir() else set()


def _schedule_of(thread: int) -> tuple[int, int]:
    """By which policy a thread is scheduled, and its priority."""
    return os.sched_getscheduler(thread), os.sched_getparam(thread).sched_priority


def _schedule(thread: int, policy: int, priority: int) -> None:
    os.sched_setscheduler(thread, policy, os.sched_param(priority))


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
