"""Clocks keep their promises; a virtual one runs threads in the order of their instants."""

import threading
import time

import pytest

from policy.control.clock import StuckError, VirtualClock, WallClock
from policy.control.mailbox import Mailbox


def test_virtual_clock_moves_only_forwards():
    clock = VirtualClock(start=2.0)
    clock.sleep_until(3.5)
    clock.sleep_until(1.0)
    assert clock.now() == 3.5
    clock.advance(0.25)
    assert clock.now() == 3.75
    with pytest.raises(ValueError, match="-1"):
        clock.advance(-1.0)


@pytest.mark.parametrize("spin", [0.0, 0.001])
def test_wall_clock_never_returns_early(spin):
    clock = WallClock(spin=spin)
    deadline = clock.now() + 0.01
    clock.sleep_until(deadline)
    after = clock.now()
    assert after >= deadline
    clock.sleep_until(deadline)
    assert clock.now() >= after


def test_s9_a_step_of_the_wall_clock_is_not_seen(monkeypatch):
    clock = WallClock()
    before = clock.now()
    monkeypatch.setattr(time, "time", lambda: 4e9)
    monkeypatch.setattr(time, "time_ns", lambda: 4_000_000_000_000_000_000)
    clock.sleep_until(before + 0.002)
    assert 0.002 <= clock.now() - before < 60


def test_sleepers_wake_in_the_order_of_their_instants_and_see_them():
    clock, seen = VirtualClock(), []

    def sleeper(name, *instants):
        def run():
            for instant in instants:
                clock.sleep_until(instant)
                seen.append((name, clock.now()))

        return clock.start(run, name=name)

    workers = [sleeper("a", 1.0, 4.0), sleeper("b", 2.0, 3.0)]
    for worker in workers:
        worker.join()
    assert seen == [("a", 1.0), ("b", 2.0), ("b", 3.0), ("a", 4.0)]
    assert clock.now() == 4.0


def test_only_one_thread_runs_at_a_time():
    clock, running, most = VirtualClock(), [0], [0]

    def run():
        for step in range(20):
            running[0] += 1
            most[0] = max(most[0], running[0])
            time.sleep(1e-4)  # Lets a thread that should not run do so.
            running[0] -= 1
            clock.sleep_until(float(step))

    workers = [clock.start(run, name=str(i)) for i in range(4)]
    for worker in workers:
        worker.join()
    assert most[0] == 1


def test_what_happens_at_a_deadline_is_in_time():
    clock = VirtualClock()
    box: Mailbox[str] = Mailbox(clock)

    def bring():
        clock.sleep_until(1.0)
        box.put("letter")

    clock.start(bring, name="postman")
    assert box.wait(0.5) is None
    assert clock.now() == 0.5
    assert box.wait(1.0) == "letter"
    assert clock.now() == 1.0


def test_a_wait_for_now_lets_happen_what_happens_now():
    clock = VirtualClock()
    requests: Mailbox[int] = Mailbox(clock)
    replies: Mailbox[int] = Mailbox(clock)

    def double():
        while (number := requests.wait(None)) is not None and number > 0:
            replies.put(2 * number)

    worker = clock.start(double, name="doubler")
    for number in (1, 5, 9):
        requests.put(number)
        assert replies.wait(clock.now()) == 2 * number
    assert clock.now() == 0.0
    requests.put(-1)
    worker.join()


def test_threads_that_wait_for_each_other_are_an_error():
    clock = VirtualClock(start=3.0)
    flag = clock.flag()

    def wait_for_ever():
        clock.flag().wait(None)

    clock.start(wait_for_ever, name="other")
    with pytest.raises(StuckError, match=r"at 3\.0 s"):
        flag.wait(None)


def test_two_runs_are_the_same_however_the_threads_are_held_up():
    def story(pauses):
        clock, seen = VirtualClock(), []

        def run(name, period):
            for step in range(1, 6):
                time.sleep(pauses[(name, step)])
                seen.append((name, clock.now()))
                clock.sleep_until(step * period)

        workers = [
            clock.start(lambda n=n, p=p: run(n, p), name=n) for n, p in (("a", 0.3), ("b", 0.2))
        ]
        for worker in workers:
            worker.join()
        return seen

    keys = [(name, step) for name in "ab" for step in range(1, 6)]
    plain = story(dict.fromkeys(keys, 0.0))
    assert plain == story({key: 2e-3 * (i % 3) for i, key in enumerate(keys)})
    assert plain == sorted(plain, key=lambda entry: entry[1])


@pytest.mark.parametrize("make_clock", [VirtualClock, WallClock])
def test_a_mailbox_holds_the_newest_letter_and_counts_the_others(make_clock):
    box: Mailbox[int] = Mailbox(make_clock())
    assert box.take() is None
    for number in range(4):
        box.put(number)
    assert box.n_dropped == 3
    assert box.wait(None) == 3
    assert box.take() is None


def test_a_wall_mailbox_wakes_whoever_waits():
    clock = WallClock()
    box: Mailbox[str] = Mailbox(clock)
    timer = threading.Timer(0.02, box.put, ["letter"])
    timer.start()
    assert box.wait(clock.now() + 30) == "letter"
    before = clock.now()
    assert box.wait(before + 0.01) is None
    assert clock.now() >= before + 0.01
