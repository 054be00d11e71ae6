"""Time, threads and waiting, as the control loop knows them: real for robots, virtual for tests.

Deadlines are absolute (`start + tick * control_dt`), so that a late tick never delays the next one.
Real time is the computer's monotonic clock: a step of the wall clock (NTP, a user) is not seen.

Under a virtual clock the same threads run, but one at a time, and time passes only when all of them
sleep or wait: the next one to run is the one whose instant comes first. So a run with any injected
delays repeats bit for bit, however busy the computer is. At the same instant, those that were
signalled or slept go first, in the order in which they lay down, and those whose wait timed out go
last: what happens at a deadline is in time.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from policy.control.stall import NoStalls, Stalls, SystemStalls

# A wait shorter than this is not worth waking up for [s]: an operating system takes as long.
SHORTEST_WAIT = 5e-5
# Whoever hangs is left behind after so long [s]; the program's end does not wait for it either.
LONGEST_JOIN = 2.0


class Flag(Protocol):
    """What a thread waits for, and others raise."""

    def raise_(self) -> None:
        """Let the present or next `wait` return true."""
        ...

    def wait(self, deadline: float | None) -> bool:
        """Wait until the flag is raised, and lower it; false if `deadline` [s] came before."""
        ...


class Worker(Protocol):
    """A thread that runs on a clock."""

    def join(self) -> None:
        """Return when it has ended, or in real time if it hangs."""
        ...


class Clock(Protocol):
    """Monotonic seconds from an arbitrary origin."""

    def now(self) -> float:
        """Present time [s]."""
        ...

    def sleep_until(self, deadline: float) -> None:
        """Return at `deadline` [s], or at once if it has passed."""
        ...

    def flag(self) -> Flag:
        """A new flag, not raised."""
        ...

    def start(self, run: Callable[[], None], *, name: str) -> Worker:
        """Start a thread that runs on this clock."""
        ...

    def stalls(self) -> Stalls:
        """Watches what the operating system keeps from the calling thread."""
        ...


class _WallFlag:
    def __init__(self, clock: "WallClock"):
        self._clock = clock
        self._event = threading.Event()

    def raise_(self) -> None:
        self._event.set()

    def wait(self, deadline: float | None) -> bool:
        pause = None if deadline is None else deadline - self._clock.now()
        if pause is None or pause > SHORTEST_WAIT:
            self._event.wait(pause)
        is_raised = self._event.is_set()
        if is_raised:
            self._event.clear()
        return is_raised


class _WallWorker:
    def __init__(self, run: Callable[[], None], name: str):
        self._thread = threading.Thread(target=run, name=name, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(LONGEST_JOIN)


class WallClock:
    """The computer's monotonic clock.

    Args:
        spin: how long before a deadline sleeping stops and busy waiting begins [s]; the scheduler
            of an ordinary operating system wakes a sleeper some tenths of a millisecond late.
    """

    def __init__(self, *, spin: float = 0.001):
        self.spin = spin

    def now(self) -> float:
        """Present time [s]."""
        return time.perf_counter()

    def sleep_until(self, deadline: float) -> None:
        """Return at `deadline` [s], or at once if it has passed."""
        pause = deadline - self.now() - self.spin
        if pause > 0:
            time.sleep(pause)
        while self.now() < deadline:
            pass

    def flag(self) -> Flag:
        """A new flag, not raised."""
        return _WallFlag(self)

    def start(self, run: Callable[[], None], *, name: str) -> Worker:
        """Start a thread; it does not keep the program from ending."""
        return _WallWorker(run, name)

    def stalls(self) -> Stalls:
        """Watches what the operating system keeps from the calling thread."""
        return SystemStalls()


class StuckError(RuntimeError):
    """All threads on a virtual clock wait for each other."""


@dataclass(eq=False)
class _Thread:
    """A thread on a virtual clock: when it is to go on, and the baton that lets it.

    Args:
        name: for messages.
        due: when it goes on [s]; None: when its flag is raised, or never.
        is_patient: whether others go first at that instant, because it waits in vain.
        order: rank among those of one instant.
    """

    name: str
    due: float | None = None
    is_patient: bool = False
    order: int = 0
    baton: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    is_stuck: bool = False


class _VirtualFlag:
    def __init__(self, clock: "VirtualClock"):
        self._clock = clock
        self._is_raised = False
        self._waiting: _Thread | None = None

    def raise_(self) -> None:
        self._is_raised = True
        if self._waiting is not None:
            self._clock.wake(self._waiting)

    def wait(self, deadline: float | None) -> bool:
        if not self._is_raised:
            self._waiting = self._clock.present_thread()
            self._clock.suspend(deadline, is_patient=True)
            self._waiting = None
        is_raised, self._is_raised = self._is_raised, False
        return is_raised


class _VirtualWorker:
    def __init__(self, ended: Flag):
        self._ended = ended
        self._has_ended = False

    def join(self) -> None:
        if not self._has_ended:
            self._has_ended = self._ended.wait(None)


class VirtualClock:
    """Time that passes only when every thread on it sleeps or waits.

    The thread that makes the clock is the first one on it; others come by `start`. An error in one
    of those is not seen by others: a thread has to hand on what it wants known.

    Args:
        start: time shown at first [s].
    """

    def __init__(self, *, start: float = 0.0):
        self._now = start
        self._n_suspended = 0
        self._first = _Thread("the first thread")
        self._threads = {threading.get_ident(): self._first}
        self._suspended: list[_Thread] = []

    def now(self) -> float:
        """Present time [s]."""
        return self._now

    def sleep_until(self, deadline: float) -> None:
        """Let time pass until `deadline` [s]; return at once if it has passed."""
        if deadline > self._now:
            self.suspend(deadline, is_patient=False)

    def stalls(self) -> Stalls:
        """No time passes while a thread runs, so that nothing can be kept from it."""
        return NoStalls()

    def advance(self, duration: float) -> None:
        """Let time pass, as when a policy thinks for `duration` [s].

        Raises:
            ValueError: the duration is negative; time never runs backwards.
        """
        if duration < 0:
            raise ValueError(f"duration is {duration} s, time cannot run backwards: use >= 0")
        self.sleep_until(self._now + duration)

    def flag(self) -> Flag:
        """A new flag, not raised. One thread may wait for it at a time."""
        return _VirtualFlag(self)

    def start(self, run: Callable[[], None], *, name: str) -> Worker:
        """Add a thread; it first runs when the present one sleeps or waits."""
        thread, ended = _Thread(name), self.flag()

        def live() -> None:
            self._threads[threading.get_ident()] = thread
            thread.baton.acquire()
            try:
                run()
            finally:
                ended.raise_()
                del self._threads[threading.get_ident()]
                self._hand_on()

        self._lie_down(thread, self._now, is_patient=False)
        threading.Thread(target=live, name=name, daemon=True).start()
        return _VirtualWorker(ended)

    def suspend(self, due: float | None, *, is_patient: bool) -> None:
        """Let the others run until `due` [s], or until the present thread is woken.

        Raises:
            StuckError: every thread waits, and none for an instant.
        """
        thread = self.present_thread()
        self._lie_down(thread, due, is_patient=is_patient)
        self._hand_on()
        thread.baton.acquire()
        if thread.is_stuck:
            raise StuckError(
                f"at {self._now} s {thread.name} and all other threads wait for each other: "
                f"something has to be raised, or a wait needs a deadline"
            )

    def present_thread(self) -> _Thread:
        """The calling thread, as this clock knows it."""
        return self._threads[threading.get_ident()]

    def wake(self, thread: _Thread) -> None:
        """Let a suspended thread go on at this instant."""
        if thread in self._suspended:
            thread.due, thread.is_patient = self._now, False

    def _lie_down(self, thread: _Thread, due: float | None, *, is_patient: bool) -> None:
        self._n_suspended += 1
        thread.due = None if due is None else max(due, self._now)
        thread.is_patient, thread.order = is_patient, self._n_suspended
        self._suspended.append(thread)

    def _hand_on(self) -> None:
        """Pass the baton to whose turn it is; the first thread hears of it if nobody's is."""
        ready = [t for t in self._suspended if t.due is not None]
        if ready:
            chosen = min(ready, key=lambda t: (t.due, t.is_patient, t.order))
            assert chosen.due is not None
            self._now = chosen.due
        else:
            if self._first not in self._suspended:  # It left the clock, and nobody else can go on.
                return
            chosen = self._first
            chosen.is_stuck = True
        self._suspended.remove(chosen)
        chosen.baton.release()
