"""What is made ahead: the same things in the same order, and no more than asked for."""

import threading
import time

import pytest

from data.prefetch import Prefetch


def our_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("prefetch")]


def counting(n, begun, *, wait=lambda number: None):
    """Calls that return 0 .. n-1 and note that they were begun."""

    def call(number):
        begun.append(number)
        wait(number)
        return number

    return ((lambda number=number: call(number)) for number in range(n))


@pytest.mark.parametrize("ahead", [0, 1, 4])
@pytest.mark.parametrize("threads", [1, 3])
def test_everything_comes_once_and_in_order(ahead, threads):
    def wait(number):  # Later ones are done sooner.
        time.sleep(0.004 * (3 - number % 4))

    with Prefetch(counting(20, [], wait=wait), ahead=ahead, threads=threads) as made:
        assert list(made) == list(range(20))
    assert our_threads() == []


def test_no_more_is_begun_than_asked_for():
    begun = []
    with Prefetch(counting(100, begun), ahead=3) as made:
        assert begun == []
        for number in range(5):
            assert next(made) == number
            deadline = time.monotonic() + 10
            while len(begun) < number + 4 and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.01)  # Time for one too many.
            assert begun == list(range(number + 4))


def test_without_anything_ahead_there_is_no_thread():
    begun = []
    with Prefetch(counting(3, begun), ahead=0) as made:
        assert next(made) == 0
        assert begun == [0]
        assert our_threads() == []


def test_the_next_is_made_while_the_last_one_is_used():
    is_second_begun = threading.Event()

    def second():
        is_second_begun.set()
        return "second"

    with Prefetch(iter([lambda: "first", second]), ahead=1) as made:
        assert next(made) == "first"
        assert is_second_begun.wait(10)


def test_an_error_comes_out_at_its_place():
    def fail():
        raise ValueError("the third one is damaged")

    calls = [lambda: 0, lambda: 1, fail, lambda: 3]
    with Prefetch(iter(calls), ahead=3) as made:
        assert [next(made), next(made)] == [0, 1]
        with pytest.raises(ValueError, match="the third one is damaged"):
            next(made)
        assert next(made) == 3
    assert our_threads() == []


def test_an_error_of_the_calls_themselves_comes_out():
    def calls():
        yield lambda: 0
        raise KeyError("no more windows")

    with Prefetch(calls(), ahead=1) as made, pytest.raises(KeyError, match="no more windows"):
        next(made)
    assert our_threads() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_leaving_early_leaves_no_thread_and_begins_nothing_more(error):
    begun, gate = [], threading.Event()

    def wait(number):
        if number:
            gate.wait(10)

    def leave():
        with Prefetch(counting(100, begun, wait=wait), ahead=5) as made:
            next(made)
            threading.Timer(0.05, gate.set).start()
            raise error

    with pytest.raises(error):
        leave()
    assert our_threads() == []
    assert len(begun) <= 2  # The one that was asked for, and the one that was being made.


def test_what_is_made_is_finished_by_the_thread_that_asks():
    threads = []

    def finish(number):
        threads.append(threading.current_thread())
        return 10 * number

    with Prefetch(counting(3, []), ahead=2, finish=finish) as made:
        assert list(made) == [0, 10, 20]
    assert set(threads) == {threading.current_thread()}


def test_it_is_used_in_a_with_statement():
    with pytest.raises(AssertionError, match="outside of its `with` statement"):
        next(Prefetch(counting(3, []), ahead=1))
