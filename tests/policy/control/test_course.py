"""What is remembered of an episode's actions, and what is told of its plan."""

import sys
import threading

import numpy as np

from data.types import Contract, Field, Horizons, Observation
from policy.control.clock import VirtualClock
from policy.control.course import Course
from policy.control.delay import DelayEstimate
from policy.control.governed import Governed
from policy.control.governor import Governor
from policy.control.inference import Inference
from policy.control.latency import TimingLog
from policy.control.limits import Limits
from policy.control.loop import control_loop
from policy.control.manner import Manner
from policy.control.plan import Plan
from policy.types import ActionChunk

DT = 0.125  # A power of two: instants compare exactly.
CONTRACT = Contract({"state": Field(shape=(1,))}, Field(shape=(2,)), control_dt=DT)


def plan_of(*chunks: tuple[int, int]) -> Plan:
    """A plan of chunks (tick0, length), whose actions are (tick0, index)."""
    plan = Plan(CONTRACT.action)
    for tick0, length in chunks:
        actions = np.array([(tick0, i) for i in range(length)], np.float32)
        plan.merge(ActionChunk(actions, tick0, CONTRACT), tick=tick0, observed=0.0)
    return plan


def told(points) -> list[tuple]:
    return [(point.tick, *point.action.tolist(), point.is_seam) for point in points]


def test_the_last_ticks_are_kept_in_order_and_missed_ones_left_out():
    course = Course(n_kept=4)
    course.start(plan_of((0, 8)))
    for tick in (0, 1, 2, 4, 5, 6):
        course.add(tick, np.array([tick, -tick]), is_seam=tick == 4)
    assert told(course.sent(4)) == [(4, 4, -4, True), (5, 5, -5, False), (6, 6, -6, False)]
    assert told(course.sent(2)) == [(5, 5, -5, False), (6, 6, -6, False)]
    # More than is kept cannot be told.
    assert len(course.sent(100)) <= 4


def test_the_plan_is_told_from_the_next_tick_on_with_its_seam():
    course = Course()
    assert course.planned(9) == course.sent(9) == []
    course.start(plan_of((0, 4), (2, 4)))
    course.add(1, np.zeros(2), is_seam=False)
    assert told(course.planned(9)) == [(2, 2, 0, True)] + [(2 + i, 2, i, False) for i in (1, 2, 3)]
    assert [point.tick for point in course.planned(2)] == [2, 3]
    course.add(5, np.zeros(2), is_seam=False)
    assert course.planned(9) == []


def test_another_episode_starts_with_nothing_sent():
    course = Course()
    course.start(plan_of((0, 2)))
    course.add(0, np.zeros(2), is_seam=False)
    course.start(plan_of((0, 3)))
    assert course.sent(9) == []
    assert [point.tick for point in course.planned(9)] == [0, 1, 2]


def test_a_reader_sees_whole_waypoints_while_they_are_written():
    course, n_ticks = Course(n_kept=8), 20_000
    course.start(plan_of((0, 1)))

    def write() -> None:
        for tick in range(n_ticks):
            course.add(tick, np.full(2, tick), is_seam=tick % 2 == 0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # So that the threads do get into each other's way.
    try:
        writer = threading.Thread(target=write)
        writer.start()
        while writer.is_alive():
            points = course.sent(8)
            assert [point.tick for point in points] == sorted({point.tick for point in points})
            assert all((point.action == point.tick).all() for point in points)
            assert all(point.is_seam == (point.tick % 2 == 0) for point in points)
        writer.join()
    finally:
        sys.setswitchinterval(interval)
    assert [point.tick for point in course.sent(8)] == list(range(n_ticks - 8, n_ticks))


class Robot:
    """Stands anywhere; remembers what it was told."""

    contract, is_real, limits = CONTRACT, False, (np.full(2, -np.inf), np.full(2, np.inf))

    def __init__(self, clock: VirtualClock):
        self.clock, self.commands = clock, []

    def read(self) -> Observation:
        return Observation({"state": np.zeros(1, np.float32)}, capture_time=self.clock.now())

    def pose(self) -> None:
        return None

    def command(self, action: np.ndarray, tick: int) -> None:
        self.commands.append((tick, *action.tolist()))

    def stop(self) -> None:
        pass


class NumberedPlanner:
    """Action i of the chunk asked for at tick k is (k, i)."""

    contract, horizons = CONTRACT, Horizons(obs=1, pred=8, action=4)

    def __call__(self, request) -> ActionChunk:
        actions = np.array([(request.tick, i) for i in range(8)], np.float32)
        return ActionChunk(actions, request.tick, CONTRACT)


def test_the_loop_tells_what_it_sent_and_what_it_would_send_next():
    clock, log, planner = VirtualClock(), TimingLog(DT), NumberedPlanner()
    robot = Robot(clock)
    limits = Limits.of(CONTRACT.action, DT)
    governed = Governed(robot, Governor(CONTRACT.action, DT, limits, start="approach"))
    governed.arm()
    inference = Inference(planner, clock=clock)
    try:
        control_loop(
            governed,
            inference,
            clock=clock,
            horizons=planner.horizons,
            manner=Manner(),
            delay=DelayEstimate(n_warm_up=0, fixed=0),
            n_ticks=10,
            log=log,
        )
    finally:
        inference.close()
    sent = log.course.sent(100)
    assert [(point.tick, *point.action.tolist()) for point in sent] == robot.commands
    assert [point.tick for point in sent if point.is_seam] == [4, 8]
    assert told(log.course.planned(3)) == [(10, 8, 2, False), (11, 8, 3, False), (12, 8, 4, False)]
