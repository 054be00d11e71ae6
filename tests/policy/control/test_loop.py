"""The loop on a virtual clock: which action reaches the robot at which instant, exactly."""

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.types import Contract, Field, Horizons, Kind, Observation
from policy.control.clock import VirtualClock, WallClock
from policy.control.delay import DelayEstimate
from policy.control.governed import Governed
from policy.control.governor_settings import governor as governor_of
from policy.control.history import History
from policy.control.inference import Inference
from policy.control.injected import Faults, Injected
from policy.control.latency import TimingLog
from policy.control.loop import OverrunError, control_loop
from policy.control.manner import Manner
from policy.control.plan import UnsafeActionError
from policy.control.refusals import Reason
from policy.control.seam import blend, switch
from policy.types import ActionChunk, PlannerError

DT = 0.125  # A power of two: instants compare exactly.


def contract(kind: Kind = "absolute", dt=DT):
    state = Field(shape=(1,), unit="m")
    return Contract({"state": state}, Field(shape=(2,), unit="m", kind=kind), control_dt=dt)


class FakeRobot:
    """Remembers what it was told and when; its observation is the time."""

    is_real = False

    def __init__(self, clock, kind: Kind = "absolute", dt=DT):
        self.contract = contract(kind, dt)
        self.limits = (np.full(2, -np.inf), np.full(2, np.inf))
        self.clock = clock
        self.commands = []
        self.n_stops = 0

    def read(self):
        now = self.clock.now()
        return Observation({"state": np.array([now], np.float32)}, capture_time=now)

    def pose(self):
        return None

    def command(self, action, tick):
        self.commands.append((self.clock.now(), tick, *np.asarray(action).tolist()))

    def stop(self):
        self.n_stops += 1


class NumberedPlanner:
    """Action i of the chunk asked for at tick k is (k, i); thinking takes `delay` ticks."""

    def __init__(self, clock, *, delay=0.0, pred=8, action=4, obs=2, dt=DT):
        self.clock, self.delay = clock, delay
        self.horizons = Horizons(obs=obs, pred=pred, action=action)
        self.contract = contract(dt=dt)
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        is_first = request.tick == 0
        self.clock.advance(0.0 if is_first else self.delay * self.contract.control_dt)
        actions = np.array([(request.tick, i) for i in range(self.horizons.pred)], np.float32)
        return ActionChunk(actions, request.tick, self.contract)


def governor(robot, *, watchdog=np.inf, **limits):
    """One that lets everything finite through, but for `limits`."""
    return governor_of(
        robot.contract.action,
        robot.contract.control_dt,
        limits=limits,
        pose_tolerance=np.inf,
        max_action_age=np.inf,
        max_observation_age=np.inf,
        watchdog=watchdog,
        max_clamped_ticks=None,
        start="approach",
    )


def play(robot, planner, clock, *, n_ticks, log=None, epoch=0, inference=None, **settings):
    """One episode; returns what control_loop does."""
    is_over = settings.pop("is_over", lambda: False)
    delay = settings.pop("reckoned", None)
    governed = Governed(robot, governor(robot))
    governed.arm()
    log = log or TimingLog(robot.contract.control_dt)
    inference = inference or Inference(planner, clock=clock)
    try:
        return control_loop(
            governed,
            inference,
            clock=clock,
            horizons=planner.horizons,
            manner=Manner(**settings),
            delay=DelayEstimate(n_warm_up=0, fixed=delay),
            n_ticks=n_ticks,
            log=log,
            epoch=epoch,
            is_over=is_over,
        )
    finally:
        inference.close()


def run(*, delay=0.0, n_ticks=10, kind: Kind = "absolute", pred=8, action=4, obs=2, **settings):
    """Commands as (time in ticks, tick, chunk, index), and all who took part."""
    clock = VirtualClock(start=3.0)
    robot, log = FakeRobot(clock, kind), TimingLog(DT)
    planner = NumberedPlanner(clock, delay=delay, pred=pred, action=action, obs=obs)
    n = play(robot, planner, clock, n_ticks=n_ticks, log=log, **settings)
    commands = [((t - 3.0) / DT, *rest) for t, *rest in robot.commands]
    return n, commands, log, robot, planner


def test_t2_instant_policy_sends_every_action_at_its_tick():
    n, commands, log, robot, _ = run(n_ticks=10)
    assert commands == [(k, k, 4 * (k // 4), k % 4) for k in range(10)]
    assert n == 10
    assert robot.n_stops == 1
    report = log.report()
    assert (report.n_commands, report.n_missed, report.n_held) == (10, 0, 0)
    assert report.period is not None
    assert report.delay is not None
    assert report.period.n == 9
    assert report.period.p50 == report.period.max == DT
    assert report.delay.max == 0.0
    assert report.delays == {0: 2}


def test_a_late_chunk_is_merged_by_consumed_ticks():
    _, commands, log, _, planner = run(delay=2.0, n_ticks=12)
    # Chunk 0 until chunk 4 is there at tick 6; that until chunk 8 is, at tick 10.
    owners = [0] * 6 + [4] * 4 + [8] * 2
    assert commands == [(k, k, owner, k - owner) for k, owner in enumerate(owners)]
    assert log.n_missed == log.n_held == 0
    assert log.report().delays == {2: 2}
    assert log.n_late == 1  # Nobody knew of the first delay.
    assert [request.delay for request in planner.requests] == [0, 0, 2]


def test_what_is_decided_is_executed_though_the_chunk_is_early():
    _, commands, log, _, planner = run(delay=0.0, n_ticks=8, reckoned=3)
    assert [owner for _, _, owner, _ in commands] == [0] * 7 + [4]
    assert [request.delay for request in planner.requests] == [3, 3]
    assert log.n_late == 0


def test_a_delay_of_exactly_d_ticks_is_in_time_also_where_dt_is_no_binary_fraction():
    clock = VirtualClock(start=1e5 + 0.1)
    robot = FakeRobot(clock, dt=0.1)
    planner = NumberedPlanner(clock, dt=0.1)
    log = TimingLog(0.1)
    late = Injected(planner, Faults(least=2.0, most=2.0), clock=clock)
    play(robot, late, clock, n_ticks=1000, log=log)
    assert [tick for _, tick, *_ in robot.commands] == list(range(1000))
    assert log.n_missed == 0
    assert log.report().delays == {2: 249}


def test_patience_waits_within_the_tick_and_loses_none():
    _, commands, log, _, _ = run(delay=0.5, n_ticks=6, patience=0.75)
    times = [0, 1, 2, 3, 4.5, 5]
    assert commands == [(t, k, 4 * (k // 4), k % 4) for k, t in enumerate(times)]
    assert log.n_missed == 0
    assert log.delays.newest().tolist() == [0, 0, 0, 0, 0.5 * DT, 0]
    _, commands, _, _, _ = run(delay=0.5, n_ticks=6, patience=0.25)
    assert commands[4:] == [(4.25, 4, 0, 4), (5, 5, 4, 1)]


def test_t4_a_first_chunk_that_takes_long_skips_no_action():
    clock = VirtualClock()
    robot = FakeRobot(clock)

    class Cold(NumberedPlanner):
        def __call__(self, request):
            self.clock.advance(40 * DT if request.tick == 0 else 0.0)
            return super().__call__(request)

    log = TimingLog(DT)
    play(robot, Cold(clock, delay=2.0), clock, n_ticks=6, log=log)
    assert robot.commands == [(40 * DT + k * DT, k, 0, k) for k in range(6)]
    assert log.report().delays == {}


def test_a_first_plan_that_never_comes_is_an_error():
    clock = VirtualClock()

    class Slow(NumberedPlanner):
        def __call__(self, request):
            self.clock.advance(100.0)
            return super().__call__(request)

    robot = FakeRobot(clock)
    with pytest.raises(PlannerError, match="within 5 s"):
        play(robot, Slow(clock), clock, n_ticks=6, start_timeout=5.0)
    assert (robot.commands, robot.n_stops) == ([], 1)


@pytest.mark.parametrize(
    ("starvation", "kind", "expected"),
    [
        ("finish", "absolute", [(0, 4), (0, 5), (4, 2), (4, 3)]),
        ("hold", "absolute", [(0, 3), (0, 3), (4, 2), (4, 3)]),
        ("hold", "delta", [(0, 0), (0, 0), (4, 2), (4, 3)]),
    ],
)
def test_s10_starvation_does_what_it_says(starvation, kind, expected):
    _, commands, log, _, _ = run(delay=2.0, n_ticks=8, kind=kind, starvation=starvation, reckoned=0)
    assert [(chunk, index) for _, _, chunk, index in commands[4:]] == expected
    assert log.n_held == (0 if starvation == "finish" else 2)
    assert log.n_missed == 0


@pytest.mark.parametrize("kind", ["absolute", "delta"])
def test_s10_t5_the_end_of_the_plan_is_never_passed(kind: Kind):
    _, commands, log, _, _ = run(delay=6.0, n_ticks=11, pred=6, kind=kind)
    held = (0, 5) if kind == "absolute" else (0, 0)
    # Asked at tick 4, there at tick 10, when its last action is tick 9's: nothing of it is left.
    assert [(c, i) for _, _, c, i in commands] == [*((0, i) for i in range(6)), *[held] * 5]
    assert log.n_held == 5


@pytest.mark.parametrize("reckoned", [0, 2, None])
def test_synchronous_control_executes_every_action_of_every_chunk_and_holds_between(reckoned):
    settings = {"starvation": "hold", "is_synchronous": True, "reckoned": reckoned}
    _, commands, log, _, planner = run(delay=3.0, n_ticks=15, **settings)
    chunks = [(0, i) for i in range(4)], [(4, i) for i in range(4)], [(11, i) for i in range(1)]
    held = [(0, 3)] * 3, [(4, 3)] * 3
    assert [(c, i) for _, _, c, i in commands] == [
        *chunks[0],
        *held[0],
        *chunks[1],
        *held[1],
        *chunks[2],
    ]
    assert [request.tick for request in planner.requests] == [0, 4, 11]
    assert log.n_held == 6


@pytest.mark.parametrize("starvation", ["hold", "finish"])
def test_s8_a_planner_that_hangs_ends_in_a_stop_within_the_limits_and_a_fault(starvation):
    clock = VirtualClock()
    robot = FakeRobot(clock, dt=0.01)

    class Hanging(NumberedPlanner):
        def __call__(self, request):
            self.clock.advance(1e6 if request.tick else 0.0)
            ticks = request.tick + np.arange(self.horizons.pred)
            actions = np.repeat(0.5 * 0.01 * np.maximum(ticks - 10, 0)[:, None], 2, axis=1)
            return ActionChunk(actions, request.tick, self.contract)

    limits = {"velocity": 1.05, "acceleration": 1.4, "jerk": 20.0}
    governed = Governed(robot, governor(robot, watchdog=0.5, **limits))
    governed.arm()
    planner = Hanging(clock, pred=64, action=60, dt=0.01)
    inference = Inference(planner, clock=clock)
    n = control_loop(
        governed,
        inference,
        clock=clock,
        horizons=planner.horizons,
        manner=Manner(starvation=starvation),
        delay=DelayEstimate(),
        n_ticks=100_000,
        log=TimingLog(0.01),
    )
    assert n < 300
    assert governed.fault is Reason.STARVED
    assert governed.governor.counts[Reason.STARVED] >= 50
    place = np.array([command[2] for command in robot.commands])
    rates = [np.abs(np.diff(place, n=order)) / 0.01**order for order in (1, 2, 3)]
    for rate, limit in zip(rates, limits.values(), strict=True):
        assert rate.max() <= limit * (1 + 1e-6) + 1e-7
    assert place[-1] == place[-2]
    assert (np.diff(place) >= 0).all()  # It never goes back.


def test_a_policy_slower_than_its_chunks_is_an_error_that_says_so():
    with pytest.raises(
        OverrunError, match=r"6 chunks in a row came after their end.*has 8 actions"
    ):
        run(delay=20.0, n_ticks=400)


def test_s13_an_emergency_stop_while_the_first_plan_is_made_ends_the_wait():
    clock = VirtualClock()
    robot = FakeRobot(clock)
    governed = Governed(robot, governor(robot))
    governed.arm()

    class Slow(NumberedPlanner):
        def __call__(self, request):
            self.clock.advance(0.2)
            governed.emergency_stop()
            self.clock.advance(30.0)
            return super().__call__(request)

    planner = Slow(clock)
    n = control_loop(
        governed,
        Inference(planner, clock=clock),
        clock=clock,
        horizons=planner.horizons,
        manner=Manner(),
        delay=DelayEstimate(),
        n_ticks=50,
        log=TimingLog(DT),
    )
    assert n == 0
    assert clock.now() < 0.5
    assert robot.commands == []


def test_s13_an_emergency_stop_is_counted_though_the_robot_rests():
    clock = VirtualClock()
    robot = FakeRobot(clock)
    governed = Governed(robot, governor(robot))
    governed.arm()
    planner = NumberedPlanner(clock)
    ticks = []

    def is_over():
        ticks.append(1)
        if len(ticks) == 4:
            governed.emergency_stop()
        return False

    with Inference(planner, clock=clock) as inference:
        n = control_loop(
            governed,
            inference,
            clock=clock,
            horizons=planner.horizons,
            manner=Manner(),
            delay=DelayEstimate(),
            n_ticks=50,
            log=TimingLog(DT),
            is_over=is_over,
        )
    assert n == 4
    assert governed.governor.counts[Reason.EMERGENCY_STOP] == 1


def test_two_runs_with_the_same_faults_are_the_same_and_others_differ():
    def story(seed, hold_up=0.0):
        clock = VirtualClock()
        robot = FakeRobot(clock)
        faults = Faults(least=0.2, most=3.7, drop=0.1, stall=0.1, stall_ticks=6, seed=seed)

        class HeldUp(NumberedPlanner):
            def __call__(self, request):
                threading.Event().wait(hold_up)  # Real time, which must not matter.
                return super().__call__(request)

        log = TimingLog(DT)
        planner = Injected(HeldUp(clock), faults, clock=clock)
        play(robot, planner, clock, n_ticks=200, log=log)
        return robot.commands, log.report()

    assert story(1) == story(1, hold_up=1e-3)
    assert story(1) != story(2)
    assert story(1)[1].n_failed > 0


def test_t3_a_dropped_chunk_is_asked_for_again_at_once():
    clock = VirtualClock()
    robot, log = FakeRobot(clock), TimingLog(DT)

    class Failing(NumberedPlanner):
        def __call__(self, request):
            chunk = super().__call__(request)
            if request.tick in (4, 5):
                raise PlannerError("the connection was lost")
            return chunk

    planner = Failing(clock)
    play(robot, planner, clock, n_ticks=9, log=log)
    assert [request.tick for request in planner.requests] == [0, 4, 5, 6]
    assert [owner for _, _, owner, _ in robot.commands] == [0] * 6 + [6] * 3
    assert log.n_failed == 2


def test_r6_what_is_pending_of_an_earlier_episode_is_dropped():
    clock = VirtualClock()
    robot = FakeRobot(clock)
    planner = NumberedPlanner(clock, delay=5.0)
    inference = Inference(planner, clock=clock)
    governed = Governed(robot, governor(robot))
    for epoch in range(2):
        governed.arm()
        control_loop(
            governed,
            inference,
            clock=clock,
            horizons=planner.horizons,
            manner=Manner(),
            delay=DelayEstimate(),
            n_ticks=6,
            log=TimingLog(DT),
            epoch=epoch,
        )
    inference.close()
    # The chunk asked for at tick 4 of the first episode was still on its way.
    assert [(r.epoch, r.tick) for r in planner.requests] == [(0, 0), (0, 4), (1, 0), (1, 4)]
    assert inference.n_outdated == 1
    assert [(tick, owner, i) for _, tick, owner, i in robot.commands[6:]] == [
        (k, 0, k) for k in range(6)
    ]


def test_waking_up_late_commands_the_present_tick():
    class SleepyClock(VirtualClock):
        def sleep_until(self, deadline):
            late = 2.25 * DT if deadline == 3 * DT else 0.0
            super().sleep_until(deadline + late)

    clock = SleepyClock()
    robot, log = FakeRobot(clock), TimingLog(DT)
    play(robot, NumberedPlanner(clock, action=8), clock, n_ticks=7, log=log)
    assert [(time / DT, tick) for time, tick, *_ in robot.commands] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (5.25, 5),
        (6, 6),
    ]
    assert (log.n_missed, log.n_missed_stalled) == (2, 0)  # Virtual time is never the system's.


def test_t6_history_repeats_the_first_observation_and_ends_now():
    *_, planner = run(delay=2.0, n_ticks=9, obs=3)
    seen = [(request.history["state"][:, 0] - 3.0) / DT for request in planner.requests]
    assert [h.tolist() for h in seen] == [[0, 0, 0], [2, 3, 4], [6, 7, 8]]


def test_history_fills_missed_ticks_and_shares_no_memory_with_the_robot():
    history, buffer = History(3), np.zeros(1)
    for tick in (0, 1, 5):
        buffer[0] = tick
        history.add(tick, {"a": buffer})
    assert history.stacked()["a"].tolist() == [[1], [1], [5]]


def test_a_seam_is_told_apart_from_the_inside_of_a_chunk():
    _, commands, log, _, _ = run(n_ticks=12)
    # (0, 3) to (4, 0) and (4, 3) to (8, 0), of three elements' mean square; (k, i) to (k, i + 1).
    assert log.seam_jumps.newest().tolist() == pytest.approx([np.sqrt((16 + 9) / 2)] * 2)
    assert log.inner_jumps.newest().tolist() == pytest.approx([np.sqrt(0.5)] * 9)
    assert len(commands) == 12


def test_a_blended_seam_reaches_the_robot():
    def seam(old, new, n_merged):
        return blend(old, new, n_merged, n_ticks=1)

    _, commands, _, _, _ = run(n_ticks=6, seam=seam)
    assert [c[2:] for c in commands[3:]] == [(0, 3), (2, 2), (4, 1)]  # Half of (0, 4) and (4, 0).


def test_episode_that_is_over_ends_the_loop_and_stops_the_robot():
    answers = iter([False, False, True])
    n, commands, _, robot, _ = run(is_over=lambda: next(answers), n_ticks=10)
    assert (n, len(commands), robot.n_stops) == (2, 2, 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("where", ["read", "command", "planner"])
def test_s12_robot_is_stopped_whatever_happens(error, where):
    clock = VirtualClock()
    robot, planner = FakeRobot(clock), NumberedPlanner(clock)
    armed = threading.Event()

    def fail(*_):
        if armed.is_set() or where != "read":
            raise error
        armed.set()  # Arming and the first plan read as well.
        return Observation({"state": np.zeros(1, np.float32)}, capture_time=clock.now())

    if where == "planner":
        if error is KeyboardInterrupt:
            pytest.skip("Ctrl-C comes to the control thread")
        planner.__class__ = type("Failing", (NumberedPlanner,), {"__call__": fail})
    else:
        setattr(robot, where, fail)
    with pytest.raises(error):
        play(robot, planner, clock, n_ticks=5)
    assert robot.n_stops >= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_s1_action_that_is_not_finite_never_reaches_the_robot(bad):
    clock = VirtualClock()
    robot, log = FakeRobot(clock), TimingLog(DT)

    class Bad(NumberedPlanner):
        def __call__(self, request):
            chunk = super().__call__(request)
            if request.tick == 4:
                chunk.actions[3, 1] = bad
            return chunk

    with pytest.raises(UnsafeActionError, match=r"tick 4.*action 3, element 1"):
        play(robot, Bad(clock), clock, n_ticks=9, log=log)
    assert len(robot.commands) >= 4
    assert np.isfinite(robot.commands).all()
    assert (robot.n_stops, log.n_unsafe) == (1, 1)


def test_episodes_do_not_make_a_period_between_them():
    clock, log = VirtualClock(), TimingLog(DT)
    for epoch in range(2):
        robot = FakeRobot(clock)
        play(robot, NumberedPlanner(clock), clock, n_ticks=3, log=log, epoch=epoch)
        clock.advance(100.0)
    assert log.periods.newest().tolist() == [DT] * 4


def test_in_real_time_the_same_actions_go_out_in_their_order():
    clock = WallClock()
    robot = FakeRobot(clock, dt=0.01)
    planner = NumberedPlanner(VirtualClock(), dt=0.01)  # Thinks for no time.
    log = TimingLog(0.01)
    play(robot, planner, clock, n_ticks=30, log=log, patience=0.9)
    ticks = [tick for _, tick, *_ in robot.commands]
    assert ticks == sorted(set(ticks))  # However late the computer is.
    assert all(owner + index == tick for _, tick, owner, index in robot.commands)
    assert len(ticks) + log.n_missed == 30


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"starvation": "panic"}, "'panic'.*hold, finish"),
        ({"patience": 1.0}, r"1\.0"),
        ({"patience": None}, "patience is None"),
        ({"max_missed": None}, "max_missed is None"),
        ({"start_timeout": np.nan}, "start_timeout is nan"),
        ({"urgent_after": 0}, "urgent_after is 0"),
        ({"is_synchronous": True}, "give starvation=hold"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Manner(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"least": -1}, {"least": 2, "most": 1}, {"drop": 1.0}, {"stall": 1.5}]
)
def test_wrong_faults_are_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        Faults(**wrong)


def test_r1_an_overrun_storm_first_hurries_the_policy_and_then_ends_the_episode():
    clock = VirtualClock()
    robot = FakeRobot(clock)

    class SlowerAndSlower(NumberedPlanner):
        def __call__(self, request):
            self.delay = 0.0 if request.is_urgent else 1.0 + request.tick / 4
            return super().__call__(request)

    planner = SlowerAndSlower(clock, pred=16)
    play(robot, planner, clock, n_ticks=40, urgent_after=2)
    # Each is later than all before it: two in a row, then one in time, as it hurries.
    assert [request.is_urgent for request in planner.requests[:6]] == [0, 0, 0, 1, 0, 0]

    class Stalling(VirtualClock):
        def sleep_until(self, deadline):
            super().sleep_until(deadline + (7 * DT if deadline == 5 * DT else 0.0))

    clock = Stalling()
    robot = FakeRobot(clock)
    with pytest.raises(OverrunError, match=r"7 control ticks in a row.*max_missed=7"):
        play(robot, NumberedPlanner(clock, action=8), clock, n_ticks=40, max_missed=6)
    assert len(robot.commands) == 5
    assert robot.n_stops == 1


def test_r3_memory_does_not_grow():
    clock = VirtualClock()

    class Forgetful(FakeRobot):
        def command(self, action, tick):
            pass

    class Light(NumberedPlanner):
        def __call__(self, request):
            chunk = super().__call__(request)
            self.requests.clear()
            return chunk

    grown = []

    def is_over():
        if tracemalloc.is_tracing():
            grown.append(tracemalloc.get_traced_memory()[0])
        return False

    log = TimingLog(DT)
    planner = Light(clock, delay=1.0)
    play(Forgetful(clock), planner, clock, n_ticks=200, log=log, seam=switch)
    tracemalloc.start()
    try:
        play(Forgetful(clock), planner, clock, n_ticks=4000, log=log, epoch=1, is_over=is_over)
    finally:
        tracemalloc.stop()
    # The list itself holds 32 bytes and a pointer a tick; 4000 ticks leave nothing else.
    assert grown[-1] - grown[500] < 3500 * 48 + 20_000


@given(
    offsets=st.lists(st.floats(-1, 1), min_size=12, max_size=12),
    delay=st.integers(0, 8),
)
def test_t1_a_blended_seam_jumps_by_its_share_of_the_difference_and_no_more(offsets, delay):
    """Chunks of one slope, each moved by an offset: all jumps within are the slope."""
    clock, slope, n_ticks = VirtualClock(), 0.5, 4
    robot, log = FakeRobot(clock), TimingLog(DT)

    class Offset(NumberedPlanner):
        def __call__(self, request):
            ticks = request.tick + np.arange(self.horizons.pred)
            offset = offsets[request.tick // 4 % len(offsets)]
            self.clock.advance(self.delay * DT if request.tick else 0.0)
            actions = np.repeat((slope * ticks + offset)[:, None], 2, axis=1)
            return ActionChunk(actions, request.tick, self.contract)

    def seam(old, new, n_merged):
        return blend(old, new, n_merged, n_ticks=n_ticks)

    planner = Offset(clock, delay=float(delay), pred=16)
    play(robot, planner, clock, n_ticks=40, log=log, seam=seam, reckoned=delay)
    assert log.seam_jumps.n > 0
    # Old plans may be mixtures themselves, so a difference is at most 2 wherever they meet.
    assert log.seam_jumps.newest().max() <= slope + 2 / (n_ticks + 1) + 1e-9
    assert log.n_missed == log.n_held == 0


def test_a_request_tells_the_last_command_and_what_is_executed_meanwhile():
    *_, planner = run(delay=2.0, n_ticks=13, reckoned=2)
    first, second, third = planner.requests[:3]
    assert first.decided is None  # Nothing was commanded yet.
    # Action i of the chunk of tick k is (k, i); chunks are asked for every 4 ticks.
    assert second.tick == 4
    assert second.decided.tolist() == [[0, 3], [0, 4], [0, 5]]
    assert third.tick == 8
    assert third.decided.tolist() == [[4, 3], [4, 4], [4, 5]]


def test_nothing_is_decided_where_the_plan_ends_before():
    # The chunk asked for at tick 4 is there at 10, and ends at 12: 4 more ticks are not decided.
    *_, planner = run(delay=6.0, n_ticks=12, reckoned=4)
    assert [(r.tick, r.delay, r.decided is None) for r in planner.requests] == [
        (0, 4, True),
        (4, 4, False),
        (10, 4, True),
    ]
