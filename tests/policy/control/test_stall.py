"""What the system keeps from a thread is told from what control, or a lock of ours, takes."""

import os
import subprocess
import sys
import threading
import time

import pytest

from policy.control import stall
from policy.control.stall import NoStalls, SystemStalls

needs_linux = pytest.mark.skipif(
    not os.path.exists(stall.COUNTERS), reason="the system does not count what it keeps"
)


class Counted(SystemStalls):
    """Counters as they are given: cpu [s], queue [s], times on a processor."""

    def __init__(self, *looks):
        self._looks = list(looks)
        super().__init__()
        self._close()
        self._file = os.open(os.devnull, os.O_RDONLY)

    def _look(self):
        return self._looks.pop(0)


def test_what_is_missing_on_the_processor_was_taken_by_the_host():
    stalls = Counted((1.0, 0.0, 5), (1.25, 0.0, 5))
    assert stalls.awake(1.0) == 0.75


def test_clocks_that_differ_a_little_keep_nothing():
    assert Counted((1.0, 0.0, 5), (2.5, 0.0, 5)).awake(1.0) == 0.0


def test_a_thread_that_left_the_processor_is_only_believed_its_time_in_the_queue():
    # A quarter of a second in the queue; the other half may have been a lock of ours.
    assert Counted((1.0, 0.0, 5), (1.25, 0.25, 6)).awake(1.0) == 0.25


def test_a_sleeper_that_did_nothing_but_sleep_was_woken_late_by_the_system():
    assert Counted((1.0, 0.0, 5), (1.0, 0.0, 6)).asleep(0.5) == 0.5


def test_a_sleeper_that_waited_for_more_is_only_believed_its_time_in_the_queue():
    assert Counted((1.0, 0.0, 5), (1.0, 0.125, 7)).asleep(0.5) == 0.125
    assert Counted((1.0, 0.0, 5), (1.0, 2.0, 7)).asleep(0.5) == 0.5  # Some of it while asleep.


def test_each_call_counts_from_the_last_one():
    stalls = Counted((0.0, 0.0, 0), (0.0, 0.0, 1), (0.5, 0.0, 1), (1.5, 0.0, 1))
    assert [stalls.asleep(0.0), stalls.awake(1.0), stalls.awake(1.0)] == [0.0, 0.5, 0.0]


def test_nothing_is_counted_where_there_are_no_counters(monkeypatch):
    monkeypatch.setattr(stall, "COUNTERS", "/nowhere/schedstat")
    stalls = SystemStalls()
    assert (stalls.asleep(1.0), stalls.awake(1.0)) == (0.0, 0.0)
    assert (NoStalls().asleep(1.0), NoStalls().awake(1.0)) == (0.0, 0.0)


def test_counters_that_stand_still_at_0_count_nothing(tmp_path, monkeypatch):
    # What a Linux without them shows: all that control waited for itself would be the system's.
    (tmp_path / "schedstat").write_text("0 0 0\n")
    monkeypatch.setattr(stall, "COUNTERS", str(tmp_path / "schedstat"))
    stalls = SystemStalls()
    assert (stalls.asleep(1.0), stalls.awake(1.0)) == (0.0, 0.0)


@needs_linux
def test_no_file_is_left_open():
    def n_open():
        return len(os.listdir("/proc/self/fd"))

    before, stalls = n_open(), SystemStalls()
    assert n_open() == before + 1
    stalls.awake(0.0)
    del stalls
    assert n_open() == before


@needs_linux
def test_other_programs_keep_what_they_use():
    """More of them than processors, for as long as it takes until they got in between."""
    spin = "import time; end = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    others = [
        subprocess.Popen([sys.executable, "-c", spin])
        for _ in range(1 + len(os.sched_getaffinity(0)))
    ]
    try:
        for _ in range(100):
            looked_before = time.perf_counter()
            stalls, cpu = SystemStalls(), time.thread_time()
            start = time.perf_counter()
            while time.thread_time() - cpu < 0.05:
                pass
            kept = stalls.awake(time.perf_counter() - start)
            missing = time.perf_counter() - looked_before - 0.05
            # What is counted is never more than what is missing.
            assert kept <= missing + 1e-3
            if kept > 0.02:
                break
        else:
            pytest.skip("the system let nobody in between")
    finally:
        for other in others:
            other.kill()
            other.wait()


@needs_linux
def test_a_lock_that_a_thread_of_ours_holds_is_not_the_system_s():
    lock, held, released = threading.Lock(), threading.Event(), []

    def hold():
        with lock:
            held.set()
            time.sleep(0.1)
            released.append(time.perf_counter())

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    stalls, start = SystemStalls(), time.perf_counter()
    with lock:
        now = time.perf_counter()
    holder.join()
    # At most what passed after the lock was free.
    assert stalls.awake(now - start) <= now - released[0] + 0.01
