"""Who may control, and which request is planned for; on clocks that the tests move."""

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest
from serving_fakes import CONTRACT, HORIZONS, PATIENCE, FakePlanner, request

from policy.serving.engine import MOST_BUSY, Engine, Job, State
from policy.serving.errors import Code
from policy.serving.lease import Lease
from policy.serving.messages import Answer, Ask, Failure
from policy.serving.metrics import Metrics
from policy.types import ActionChunk


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_r5_one_session_holds_the_lease_until_it_is_silent_for_long_enough():
    clock = Clock()
    lease = Lease(5.0, clock=clock)
    assert lease.seconds_left == 0
    assert lease.take(1, "a")
    clock.now += 4.0
    assert not lease.take(2, "b")
    assert lease.seconds_left == 1.0
    assert lease.renew(1, "a")  # From now on it has 5 s again.
    clock.now += 4.999
    assert not lease.take(2, "b")
    assert not lease.renew(2, "b")
    clock.now += 0.001
    assert lease.take(2, "b")
    assert not lease.renew(1, "a")
    assert lease.is_held_by(2)
    assert not lease.is_held_by(1)


def test_r5_the_holder_comes_back_with_its_key_only():
    lease = Lease(5.0, clock=Clock())
    assert not lease.is_key("")
    lease.take(1, "ä secret")
    assert not lease.take(2, "")
    assert not lease.take(2, "another")
    assert lease.take(2, "ä secret")
    assert not lease.renew(1, "ä secret")  # The broken connection is not the holder's any more.


def test_r5_a_silent_holder_keeps_what_nobody_wants():
    clock = Clock()
    lease = Lease(5.0, clock=clock)
    lease.take(1, "a")
    clock.now += 60.0
    assert lease.is_held_by(1)
    assert lease.renew(1, "a")
    assert lease.seconds_left == 5.0


def test_r5_release_frees_the_lease_for_its_holder_only():
    lease = Lease(5.0, clock=Clock())
    lease.take(1, "a")
    lease.release(2)
    assert not lease.take(2, "b")
    lease.release(1)
    assert lease.take(2, "b")


class Bench:
    """An engine with a fake planner, a clock, and the answers that came."""

    def __init__(self, planner: FakePlanner | None = None, warm_up=lambda: None):
        self.planner, self.clock = planner or FakePlanner(), Clock()
        self.metrics = Metrics()
        self.engine = Engine(
            self.planner,
            contract=replace(CONTRACT, horizons=HORIZONS),
            warm_up=warm_up,
            metrics=self.metrics,
            clock=self.clock,
        )
        self.answers: dict[int, Answer | Failure] = {}
        self.n_submitted = 0

    def submit(
        self, *, tick: int = 0, deadline: float = 1.0, stream: object = 0, fault=lambda: None
    ) -> int:
        self.n_submitted += 1
        number = self.n_submitted
        job = Job(
            Ask(number, request(tick), deadline),
            came=self.clock(),
            stream=stream,
            fault=fault,
            reply=lambda answer: self.answers.__setitem__(number, answer),
        )
        self.engine.submit(job)
        return number

    async def answer(self, number: int) -> Answer | Failure:
        async with asyncio.timeout(PATIENCE):
            while number not in self.answers:
                await asyncio.sleep(0.001)
        return self.answers[number]

    async def failure(self, number: int) -> Code:
        answer = await self.answer(number)
        assert isinstance(answer, Failure)
        return answer.code

    async def entered(self) -> None:
        await asyncio.to_thread(self.planner.wait_entered)


def with_bench(scenario, bench: Bench | None = None, *, warm: bool = True) -> Bench:
    async def play() -> Bench:
        made = bench or Bench()
        if warm:
            await made.engine.warm_up()
        running = asyncio.create_task(made.engine.run())
        try:
            await scenario(made)
        finally:
            made.planner.gate.set()
            running.cancel()
            made.engine.close()
        return made

    return asyncio.run(play())


def test_r7_the_newest_request_takes_the_place_of_the_one_that_waits():
    async def scenario(bench: Bench) -> None:
        bench.planner.gate.clear()
        first = bench.submit(tick=0)
        await bench.entered()
        others = [bench.submit(tick=tick) for tick in (1, 2, 3)]
        # Answered at once, while the planner is still busy.
        assert [await bench.failure(n) for n in others[:2]] == [Code.SUPERSEDED] * 2
        assert first not in bench.answers
        bench.planner.gate.set()
        answers = [await bench.answer(n) for n in (first, others[2])]
        assert [a.tick0 for a in answers if isinstance(a, Answer)] == [0, 3]

    bench = with_bench(scenario)
    assert [asked.tick for asked in bench.planner.requests] == [0, 3]
    assert bench.metrics.n_answers == 2


def test_r7_an_expired_request_is_refused_before_it_is_planned_for():
    async def scenario(bench: Bench) -> None:
        bench.planner.gate.clear()
        first = bench.submit(tick=0, deadline=10.0)
        await bench.entered()
        late = bench.submit(tick=1, deadline=0.5)
        bench.clock.now += 0.501
        bench.planner.gate.set()
        assert isinstance(await bench.answer(first), Answer)
        assert await bench.failure(late) is Code.EXPIRED
        in_time = bench.submit(tick=2, deadline=0.5)
        assert isinstance(await bench.answer(in_time), Answer)

    bench = with_bench(scenario)
    assert [asked.tick for asked in bench.planner.requests] == [0, 2]


def test_r7_an_expired_request_is_answered_though_the_planner_hangs():
    async def scenario(bench: Bench) -> None:
        bench.planner.gate.clear()
        bench.submit(tick=0, deadline=PATIENCE)
        await bench.entered()
        assert await bench.failure(bench.submit(tick=1, deadline=0.01)) is Code.EXPIRED
        # Its place is free, and its end is not that of the next one.
        replaced = bench.submit(tick=2, deadline=0.01)
        last = bench.submit(tick=3, deadline=PATIENCE)
        assert await bench.failure(replaced) is Code.SUPERSEDED
        await asyncio.sleep(0.02)
        bench.planner.gate.set()
        assert isinstance(await bench.answer(last), Answer)

    bench = with_bench(scenario)
    assert [asked.tick for asked in bench.planner.requests] == [0, 3]


def test_r8_a_planner_that_is_busy_for_too_long_is_a_fault_until_it_returns():
    async def scenario(bench: Bench) -> None:
        bench.planner.gate.clear()
        number = bench.submit(deadline=PATIENCE)
        await bench.entered()
        bench.clock.now += MOST_BUSY
        assert bench.engine.fault == ""
        bench.clock.now += 1.0
        assert f"for {MOST_BUSY + 1:.0f} s" in bench.engine.fault
        bench.planner.gate.set()
        assert isinstance(await bench.answer(number), Answer)
        bench.clock.now += 100.0
        await asyncio.sleep(0)
        assert bench.engine.fault == ""

    with_bench(scenario)


@pytest.mark.parametrize("n_good", [0, 1])
def test_r5_r6_what_speaks_against_an_answer_is_asked_before_and_after_planning(n_good):
    calls = []

    def fault():
        calls.append(None)
        return None if len(calls) <= n_good else Failure(Code.LEASE_LOST, "lost", 1)

    async def scenario(bench: Bench) -> None:
        assert await bench.failure(bench.submit(fault=fault)) is Code.LEASE_LOST

    assert len(with_bench(scenario).planner.requests) == n_good


def test_r6_every_stream_is_an_epoch_of_its_own_for_the_planner():
    async def scenario(bench: Bench) -> None:
        for stream in ((1, 0), (1, 0), (1, 1), (2, 0), (2, 0)):
            await bench.answer(bench.submit(stream=stream))

    epochs = [asked.epoch for asked in with_bench(scenario).planner.requests]
    assert epochs == [1, 1, 2, 3, 3]


def test_r10_a_failure_has_a_number_which_the_log_has_too(caplog):
    async def scenario(bench: Bench) -> None:
        bench.planner.error = RuntimeError("a secret path /home/x")
        failure = await bench.answer(bench.submit())
        assert isinstance(failure, Failure)
        assert failure.code is Code.INTERNAL
        incident = failure.text.split()[-1]
        assert len(incident) == 8
        assert incident in caplog.text
        assert "Traceback" in caplog.text
        assert "secret path" in caplog.text
        assert "secret" not in failure.text
        bench.planner.error = None
        assert isinstance(await bench.answer(bench.submit()), Answer)
        assert bench.engine.state is State.READY

    # The stream in which it failed is not gone on with.
    assert [asked.epoch for asked in with_bench(scenario).planner.requests] == [1, 2]


def test_r10_a_planner_that_does_not_recover_is_given_up():
    warm_ups = []

    def warm_up() -> None:
        warm_ups.append(None)
        if len(warm_ups) > 1:
            raise RuntimeError("broken for good")

    async def scenario(bench: Bench) -> None:
        bench.planner.error = RuntimeError("broken")
        assert await bench.failure(bench.submit()) is Code.INTERNAL
        assert bench.engine.state is State.FAILED
        assert await bench.failure(bench.submit()) is Code.NOT_READY

    with_bench(scenario, Bench(warm_up=warm_up))


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), StopIteration(), GeneratorExit()], ids=repr
)
def test_r10_nothing_that_a_planner_raises_ends_the_server(error):
    async def scenario(bench: Bench) -> None:
        bench.planner.error = error
        assert await bench.failure(bench.submit()) is Code.INTERNAL

    with_bench(scenario)


@pytest.mark.parametrize(
    "actions",
    [
        np.full((8, 2), np.nan, np.float32),
        np.zeros((7, 2), np.float32),
        np.zeros((8, 3), np.float32),
        np.zeros((8, 2), np.float64),
    ],
    ids=["nan", "short", "wide", "dtype"],
)
def test_s1_a_chunk_that_is_not_the_contract_s_is_no_answer(actions):
    class Bad(FakePlanner):
        def __call__(self, request):
            return ActionChunk(actions, request.tick, CONTRACT)

    async def scenario(bench: Bench) -> None:
        assert await bench.failure(bench.submit()) is Code.INTERNAL

    with_bench(scenario, Bench(Bad()))


def test_a_chunk_for_another_tick_is_no_answer():
    class Late(FakePlanner):
        def __call__(self, request):
            return replace(super().__call__(request), tick0=request.tick + 1)

    async def scenario(bench: Bench) -> None:
        assert await bench.failure(bench.submit()) is Code.INTERNAL

    with_bench(scenario, Bench(Late()))


def test_r2_nothing_is_planned_before_the_warm_up_has_ended():
    may_end = threading.Event()

    async def scenario(bench: Bench) -> None:
        warming = asyncio.create_task(bench.engine.warm_up())
        await asyncio.sleep(0)
        assert bench.engine.state is State.WARMING_UP
        assert await bench.failure(bench.submit()) is Code.NOT_READY
        may_end.set()
        await warming
        assert isinstance(await bench.answer(bench.submit()), Answer)

    bench = Bench(warm_up=lambda: may_end.wait(PATIENCE))
    with_bench(scenario, bench, warm=False)
    assert len(bench.planner.requests) == 1


def test_a_warm_up_that_fails_tells_why():
    def warm_up():
        raise RuntimeError("no such network")

    async def scenario(bench: Bench) -> None:
        with pytest.raises(RuntimeError, match="no such network"):
            await bench.engine.warm_up()
        assert bench.engine.state is State.FAILED

    with_bench(scenario, Bench(warm_up=warm_up), warm=False)


def test_quantiles_are_of_the_latencies():
    metrics = Metrics()
    for milliseconds in range(1, 101):
        metrics.add_latency(milliseconds / 1000)
    lines = metrics.text({"ready": 1.0}).splitlines()
    assert 'cadence_inference_seconds{quantile="0.5"} 0.050500' in lines
    assert "cadence_inference_seconds_sum 5.050000" in lines
    assert "cadence_inference_seconds_count 100" in lines
    assert "cadence_ready 1" in lines
