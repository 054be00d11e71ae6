"""What is told to those who watch: the right numbers, within the limits, and the last ones too."""

import math
import threading
from typing import cast

import numpy as np
import pytest
from websockets.sync.client import connect

from data.types import Contract, Field, Horizons, Observation
from policy.control.governed import Governed
from policy.control.governor import Governor
from policy.control.latency import TimingLog
from policy.control.limits import Limits
from policy.control.plan import Plan
from policy.serving.background import in_background
from policy.serving.client import RemotePlanner
from policy.serving.errors import Code, WireError
from policy.serving.messages import Hello, Report, Value
from policy.serving.server import PolicyServer
from policy.serving.settings import ServerSettings
from policy.serving.wire import decode, encode
from policy.telemetry import N_JUDGED, N_SHOWN, Telemetry
from policy.types import ActionChunk, Planner, Request

DT = 0.125
PATIENCE = 30.0  # s


def contract_of(size: int) -> Contract:
    return Contract({"state": Field(shape=(1,))}, Field(shape=(size,)), control_dt=DT)


class Robot:
    is_real = False

    def __init__(self, size: int):
        self.contract = contract_of(size)
        self.limits = (np.full(size, -np.inf), np.full(size, np.inf))

    def read(self) -> Observation:
        return Observation({"state": np.zeros(1, np.float32)}, capture_time=0.0)

    def pose(self) -> np.ndarray:
        return np.zeros(self.contract.action.size)

    def command(self, action: np.ndarray, tick: int) -> None:
        pass

    def stop(self) -> None:
        pass


class LocalPlanner:
    """Plans nothing; a planner in this process has nobody who watches."""

    contract, horizons = contract_of(2), Horizons(obs=1, pred=4, action=2)

    def __call__(self, request: Request) -> ActionChunk:
        raise NotImplementedError


class Ear(RemotePlanner):
    """Takes in what a server would be told, instead of connecting to one."""

    def __init__(self, error: Exception | None = None):
        self.told: list = []
        self.heard = threading.Event()
        self.error = error

    def report(self, values) -> None:
        self.told.append(dict(values))
        self.heard.set()
        if self.error is not None:
            raise self.error


def governed_of(size: int = 2, **limits: float) -> Governed:
    robot = Robot(size)
    action = robot.contract.action
    return Governed(robot, Governor(action, DT, Limits.of(action, DT, **limits)))


def telemetry(log: TimingLog, governed: Governed | None = None, planner=None) -> Telemetry:
    return Telemetry(cast(Planner, planner or LocalPlanner()), governed or governed_of(), log)


def planned(log: TimingLog, size: int, n_ticks: int) -> Plan:
    """Has a plan of `n_ticks` whose actions are all their tick."""
    plan = Plan(Field(shape=(size,)))
    actions = np.repeat(np.arange(n_ticks, dtype=np.float32)[:, None], size, axis=1)
    plan.merge(ActionChunk(actions, 0, contract_of(size)), tick=0, observed=0.0)
    log.course.start(plan)
    return plan


def test_times_are_told_in_milliseconds_with_their_percentiles():
    log = TimingLog(DT)
    for i in range(101):
        log.latencies.add(0.001 * i)
    values = telemetry(log).values()
    assert values["control_dt_ms"] == 125.0
    assert values["policy_latency_ms"] == pytest.approx(list(range(101 - N_SHOWN, 101)))
    sums = [values[f"policy_latency_ms_{name}"] for name in ("p50", "p99", "max")]
    assert sums == pytest.approx([50.0, 99.0, 100.0])


def test_percentiles_are_of_more_samples_than_are_shown_and_forget_old_ones():
    log = TimingLog(DT)
    log.ages.add(9.0)
    for _ in range(N_JUDGED - N_SHOWN):
        log.ages.add(2.0)
    for _ in range(N_SHOWN):
        log.ages.add(1.0)
    values = telemetry(log).values()
    assert values["age_ms"] == [1000.0] * N_SHOWN
    assert values["age_ms_p50"] == values["age_ms_max"] == 2000.0


def test_what_is_not_known_is_left_out_and_never_told_as_zero():
    log = TimingLog(DT)
    log.periods.add(math.nan)
    values = telemetry(log).values()
    curves = ("period_ms", "policy_latency_ms", "age_ms", "seam_jump", "sent", "planned")
    assert [name for name in values if name.startswith(curves)] == []
    log.periods.add(0.25)
    assert telemetry(log).values()["period_ms"] == [250.0]


def test_the_governor_is_told_with_its_fault_and_why_it_refused():
    governed = governed_of(velocity=1.0)
    told = telemetry(TimingLog(DT), governed)
    assert (told.values()["state"], told.values()["fault"]) == ("disarmed", "")
    governed.arm()
    governed.read()
    # 1 unit/s for 0.125 s is 0.125; element 0 wants more, once.
    for tick, wanted in enumerate(([0.0, 0.0], [0.5, 0.1])):
        governed.send(np.array(wanted), tick=tick, now=0.0, asked=0.0)
    values = told.values()
    assert (values["state"], values["refusals"], values["refused_velocity"]) == ("active", 1, 1)
    governed.send(np.array([np.nan, 0.0]), tick=2, now=0.0, asked=0.0)
    values = told.values()
    assert (values["state"], values["fault"]) == ("fault", "not finite")
    refused = {name: n for name, n in values.items() if name.startswith("refused_")}
    assert refused == {"refused_velocity": 1, "refused_not_finite": 1}


def test_the_course_is_told_tick_by_tick():
    log = TimingLog(DT)
    planned(log, 2, 5)
    log.course.add(0, np.array([0.5, -0.5]), is_seam=False)
    log.course.add(2, np.array([0.25, 1.0 / 3.0]), is_seam=True)
    values = telemetry(log).values()
    assert values["sent_ticks"] == [0.0, 2.0]
    assert values["sent_actions"] == [0.5, -0.5, 0.25, 0.33333]
    assert values["sent_seams"] == [2.0]
    assert values["planned_ticks"] == [3.0, 4.0]
    assert values["planned_actions"] == [3.0, 3.0, 4.0, 4.0]
    assert values["planned_seams"] == []


def test_delays_are_told_as_a_histogram():
    log = TimingLog(DT)
    for n_ticks in (3, 1, 3, 3):
        log.add_delay(n_ticks, reckoned=2)
    values = telemetry(log).values()
    assert (values["delay_ticks"], values["delay_counts"]) == ([1.0, 3.0], [1.0, 3.0])
    assert values["late"] == 3


@pytest.mark.parametrize("size", [1, 7, 60, 1000, 1500])
def test_a_report_of_any_size_of_action_can_be_sent(size):
    log, rng = TimingLog(DT), np.random.default_rng(0)
    planned(log, size, 500)
    for tick in range(300):
        log.course.add(tick, rng.normal(size=size), is_seam=True)
    for samples in (log.periods, log.delays, log.latencies, log.ages, log.seam_jumps):
        for _ in range(2 * N_JUDGED):
            samples.add(rng.exponential() * 10.0 ** rng.integers(-12, 12))
    for n_ticks in range(5000):
        log.delays_in_ticks[n_ticks] = 10**9
    governed = governed_of(size)
    for reason in governed.governor.counts:
        cast(dict, governed.governor._refusals._counts)[reason] = 10**9
    values = telemetry(log, governed).values()
    message = decode(encode(Report(values)))
    assert isinstance(message, Report)
    assert message.values == values
    assert ("sent_ticks" in values) == (size <= 1000)


def test_the_last_report_tells_how_it_ended():
    governed, ear = governed_of(), Ear()
    governed.arm()
    with telemetry(TimingLog(DT), governed, planner=ear):
        assert ear.heard.wait(PATIENCE)
        governed.emergency_stop()
    assert ear.told[0]["state"] == "ready"
    assert (ear.told[-1]["state"], ear.told[-1]["fault"]) == ("fault", "emergency stop")


def test_what_cannot_be_told_ends_the_telling_and_not_the_control(caplog):
    ear = Ear(WireError(Code.BAD_MESSAGE, "too much"))
    told = telemetry(TimingLog(DT), planner=ear)
    with told:
        told._thread.join(PATIENCE)
        assert not told._thread.is_alive()
    assert len(ear.told) == 1
    assert "nothing more is told to those who watch: too much" in caplog.text


def test_a_planner_in_this_process_is_told_nothing():
    with telemetry(TimingLog(DT)) as told:
        assert not told._thread.is_alive()


def test_those_who_watch_a_server_see_it():
    class Served(LocalPlanner):
        def __call__(self, request: Request) -> ActionChunk:
            actions = np.zeros((self.horizons.future, 2), np.float32)
            return ActionChunk(actions, request.tick, self.contract)

    log, planner = TimingLog(DT), Served()
    log.n_missed = 7
    server = PolicyServer(planner, ServerSettings(), warm_up=lambda: None)
    with (
        in_background(server),
        RemotePlanner(server.address, planner.contract) as remote,
        telemetry(log, planner=remote),
    ):
        report = newest_report(server)
    assert report["missed"] == 7
    assert report["state"] == "disarmed"


def newest_report(server: PolicyServer) -> dict[str, Value]:
    """What a peer that watches is told first."""
    with connect(server.address, proxy=None) as connection:
        connection.send(encode(Hello(role="watch")))
        connection.recv(PATIENCE)  # The welcome.
        message = decode(connection.recv(PATIENCE))
    assert isinstance(message, Report)
    return dict(message.values)
