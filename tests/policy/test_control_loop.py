"""The loop on a virtual clock: which action reaches the robot at which instant, exactly."""

from typing import cast

import numpy as np
import pytest

from data.types import Contract, Field, Horizons, Kind, Observation
from policy.control.clock import VirtualClock
from policy.control.latency import TimingLog
from policy.control.loop import History, Policy, control_loop
from policy.control.plan import UnsafeActionError
from policy.types import ActionChunk

DT = 0.125  # A power of two: instants compare exactly.


def contract(kind: Kind = "absolute"):
    state = Field(shape=(1,), unit="m")
    return Contract({"state": state}, Field(shape=(2,), unit="m", kind=kind), control_dt=DT)


class FakeRobot:
    """Remembers what it was told and when; its observation is the time."""

    def __init__(self, clock, kind: Kind = "absolute"):
        self.contract = contract(kind)
        self.limits = (np.array([-np.inf]), np.array([np.inf]))
        self.clock = clock
        self.commands = []
        self.n_stops = 0

    def read(self):
        now = self.clock.now()
        return Observation({"state": np.array([now], np.float32)}, capture_time=now)

    def command(self, action, tick):
        self.commands.append((self.clock.now() / DT, tick, *action.tolist()))

    def stop(self):
        self.n_stops += 1


class NumberedPolicy:
    """Action i of the chunk asked for at tick k is (k, i); thinking takes `delay` ticks."""

    def __init__(self, clock, *, delay=0.0, pred=8):
        self.clock, self.delay, self.pred = clock, delay, pred
        self.histories = []

    def __call__(self, history, tick):
        self.histories.append(history["state"][:, 0] / DT)
        self.clock.advance(self.delay * DT)
        actions = np.array([(tick, i) for i in range(self.pred)], np.float32)
        return ActionChunk(actions, tick, contract())


def run(
    *, delay=0.0, pred=8, action=4, obs=2, n_ticks=10, kind: Kind = "absolute", start=3.0, **kwargs
):
    clock = VirtualClock(start=start)
    robot, log = FakeRobot(clock, kind), TimingLog(DT)
    policy = NumberedPolicy(clock, delay=delay, pred=pred)
    horizons = Horizons(obs=obs, pred=pred, action=action)
    n = control_loop(
        robot, policy, clock=clock, horizons=horizons, n_ticks=n_ticks, log=log, **kwargs
    )
    shifted = [(t - start / DT, *rest) for t, *rest in robot.commands]
    return n, shifted, log, robot, policy


def test_instant_policy_sends_every_action_at_its_tick():
    n, commands, log, robot, _ = run(n_ticks=10, action=4)
    expected = [(k, k, 4 * (k // 4), k % 4) for k in range(10)]  # time, tick, chunk, index
    assert commands == expected
    assert n == 10
    assert robot.n_stops == 1
    report = log.report()
    assert (report.n_commands, report.n_missed, report.n_held) == (10, 0, 0)
    assert report.period is not None
    assert report.period.n == 9
    assert report.period.p50 == report.period.max == DT
    assert report.delay is not None
    assert report.delay.max == 0.0


def test_the_last_action_is_carried_out_before_the_robot_stops():
    clock = VirtualClock()
    robot = FakeRobot(clock)
    control_loop(
        robot,
        NumberedPolicy(clock),
        clock=clock,
        horizons=Horizons(2, 8, 4),
        n_ticks=3,
        log=TimingLog(DT),
    )
    assert clock.now() == 3 * DT


def test_inference_shorter_than_a_tick_delays_and_misses_nothing():
    _, commands, log, _, _ = run(delay=0.5, n_ticks=6, action=4)
    assert commands == [
        (0.5, 0, 0, 0),
        (1, 1, 0, 1),
        (2, 2, 0, 2),
        (3, 3, 0, 3),
        (4.5, 4, 4, 0),
        (5, 5, 4, 1),
    ]
    assert log.n_missed == 0
    assert log.periods == [d * DT for d in (0.5, 1, 1, 1.5, 0.5)]
    assert log.delays == [d * DT for d in (0.5, 0, 0, 0, 0.5, 0)]
    assert log.latencies == [0.5 * DT, 0.5 * DT]


def test_inference_of_two_and_a_half_ticks_skips_what_time_consumed():
    # Asked at tick 0, answered at 2.5: tick 2 runs, actions 0 and 1 are skipped. Asked again when
    # 4 ticks are consumed, at tick 4, answered at 6.5.
    n, commands, log, _, _ = run(delay=2.5, n_ticks=9, action=4)
    assert commands == [(2.5, 2, 0, 2), (3, 3, 0, 3), (6.5, 6, 4, 2), (7, 7, 4, 3)]
    # Missed: 0 and 1; 4 and 5; the chunk asked for at tick 8 arrives after the end, so 8 too.
    assert log.n_missed == 5
    assert log.report().n_commands + log.n_missed == 9 == n


def test_inference_of_exactly_one_tick_loses_exactly_that_tick():
    _, commands, log, _, _ = run(delay=1.0, n_ticks=4, action=4)
    assert commands == [(1, 1, 0, 1), (2, 2, 0, 2), (3, 3, 0, 3)]
    assert log.n_missed == 1


def test_time_that_is_not_a_binary_fraction_loses_no_tick():
    clock = VirtualClock(start=1e5 + 0.1)
    robot, log = FakeRobot(clock), TimingLog(0.1)
    robot.contract = Contract(robot.contract.observation, robot.contract.action, control_dt=0.1)
    control_loop(
        robot,
        NumberedPolicy(clock),
        clock=clock,
        horizons=Horizons(1, 8, 8),
        n_ticks=1000,
        log=log,
    )
    assert [tick for _, tick, *_ in robot.commands] == list(range(1000))
    assert log.n_missed == 0


def test_chunk_that_arrives_after_its_end_is_never_indexed_past_it():
    n, commands, log, _, _ = run(delay=3.0, pred=2, action=2, n_ticks=9)
    assert commands == []  # Nothing was ever sent, so there is nothing to hold.
    assert (log.report().n_commands, log.n_held) == (0, 0)
    assert log.n_missed == 9 == n


@pytest.mark.parametrize(
    ("kind", "held"), [("absolute", (4, 1)), ("delta", (0, 0)), ("relative", (0, 0))]
)
def test_starvation_holds_the_last_command(kind: Kind, held):
    class SlowLater(NumberedPolicy):
        def __call__(self, history, tick):
            self.delay = 3.0 if tick == 6 else 0.0
            return super().__call__(history, tick)

    clock = VirtualClock()
    robot, log = FakeRobot(clock, kind), TimingLog(DT)
    policy = SlowLater(clock, pred=2)
    control_loop(robot, policy, clock=clock, horizons=Horizons(1, 2, 2), n_ticks=11, log=log)
    # The chunk asked for at tick 6 reaches to tick 7 and arrives at tick 9.
    assert robot.commands[5:8] == [(5, 5, 4, 1), (9, 9, *held), (10, 10, 10, 0)]
    assert log.n_missed == 3
    assert log.n_held == 1


def test_waking_up_late_commands_the_present_tick():
    class SleepyClock(VirtualClock):
        def sleep_until(self, deadline):
            late = 2.25 * DT if deadline == 3 * DT else 0.0
            super().sleep_until(deadline + late)

    clock = SleepyClock()
    robot, log = FakeRobot(clock), TimingLog(DT)
    control_loop(
        robot,
        NumberedPolicy(clock),
        clock=clock,
        horizons=Horizons(1, 8, 8),
        n_ticks=7,
        log=log,
    )
    assert [(time, tick) for time, tick, *_ in robot.commands] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (5.25, 5),
        (6, 6),
    ]
    assert log.n_missed == 2


def test_history_repeats_the_first_observation_and_fills_missed_ticks():
    *_, policy = run(delay=2.5, n_ticks=9, action=4, obs=3, start=0.0)
    # Seen at ticks 0, 3 and 4 before asking at 4: the tick missed before 3 shows what 0 did.
    assert [history.tolist() for history in policy.histories] == [[0, 0, 0], [0, 3, 4], [4, 7, 8]]
    history = History(3)
    for tick in (0, 1, 5):
        history.add(tick, {"a": np.array([tick])})
    assert history.stacked()["a"].tolist() == [[1], [1], [5]]


def test_history_does_not_share_memory_with_the_robot():
    history, buffer = History(2), np.zeros(1)
    history.add(0, {"a": buffer})
    buffer[0] = 7.0
    history.add(1, {"a": buffer})
    assert history.stacked()["a"].tolist() == [[0.0], [7.0]]


def test_episode_that_is_over_ends_the_loop_and_stops_the_robot():
    answers = iter([False, False, True])
    n, commands, _, robot, _ = run(is_over=lambda: next(answers), n_ticks=10)
    assert n == 2
    assert len(commands) == 2
    assert robot.n_stops == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("where", ["read", "command", "policy"])
def test_robot_is_stopped_whatever_happens(error, where):
    clock = VirtualClock()
    robot, log = FakeRobot(clock), TimingLog(DT)

    def fail(*_):
        raise error

    policy: Policy = NumberedPolicy(clock)
    if where == "policy":
        policy = cast(Policy, fail)
    else:
        setattr(robot, where, fail)
    with pytest.raises(error):
        control_loop(robot, policy, clock=clock, horizons=Horizons(1, 8, 4), n_ticks=5, log=log)
    assert robot.n_stops == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_action_that_is_not_finite_never_reaches_the_robot(bad):
    clock = VirtualClock()
    robot, log = FakeRobot(clock), TimingLog(DT)

    def policy(history, tick):
        actions = np.zeros((4, 2), np.float32)
        if tick == 2:
            actions[3, 1] = bad
        return ActionChunk(actions, tick, robot.contract)

    with pytest.raises(UnsafeActionError, match=r"tick 2.*action 3, element 1"):
        control_loop(robot, policy, clock=clock, horizons=Horizons(1, 4, 2), n_ticks=9, log=log)
    assert len(robot.commands) == 2
    assert np.isfinite(robot.commands).all()
    assert (robot.n_stops, log.n_unsafe) == (1, 1)


def test_episodes_do_not_make_a_period_between_them():
    clock, log = VirtualClock(), TimingLog(DT)
    for _ in range(2):
        control_loop(
            FakeRobot(clock),
            NumberedPolicy(clock),
            clock=clock,
            horizons=Horizons(1, 8, 8),
            n_ticks=3,
            log=log,
        )
        clock.advance(100.0)
    assert log.periods == [DT] * 4
