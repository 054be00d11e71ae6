# pyright: reportArgumentType=false
"""The simulated robot under a virtual clock."""

import functools
import math
from collections.abc import Callable

import gymnasium
import numpy as np
import pytest

from data.types import Contract
from envs.robots.sim import SimRobot, clipped

MAKE = functools.partial(gymnasium.make, "envs.pillar:cadence/Pillar-v0")
DT = 0.1
HOLD = np.array([-0.2, 0.0, 0.15, 1.0], np.float32)
MOVE = np.array([-0.1, 0.1, 0.15, 1.0], np.float32)


class Clock:
    now = 5.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def make_robot(clock: Clock, make_env: Callable = MAKE, **latencies: float) -> SimRobot:
    return SimRobot(make_env, clock=clock, read_contract=Contract.from_json, **latencies)


def direct(actions, seed=0):
    """The observation of the env itself after each of the actions, the first before them."""
    env = MAKE()
    observations = [env.reset(seed=seed)[0]]
    for action in actions:
        observations.append(env.step(action)[0])
    return observations


def assert_same(reading, observation):
    assert reading.fields.keys() == observation.keys()
    for name in observation:
        np.testing.assert_array_equal(reading.fields[name], observation[name])


def test_in_time_it_is_the_env(clock):
    robot = make_robot(clock)
    actions = [HOLD, MOVE, MOVE, HOLD]
    expected = direct(actions)
    for tick, action in enumerate(actions):
        clock.now = 5.0 + tick * DT
        reading = robot.read()
        assert_same(reading, expected[tick])
        assert reading.capture_time == pytest.approx(clock.now)
        clock.now += 0.03  # the policy thinks
        robot.command(action, tick)
    clock.now = 5.0 + 4 * DT
    assert_same(robot.read(), expected[4])
    assert robot.missed == robot.clipped == 0


def test_jitter_of_a_loop_does_not_delay_observations(clock):
    robot = make_robot(clock)
    start = clock.now
    clock.now = start + 0.0015  # the first read is late, the others are less so
    robot.read()
    for tick in range(3):
        clock.now = start + tick * DT + 0.0015
        robot.command(MOVE, tick)
        clock.now = start + (tick + 1) * DT
        assert_same(robot.read(), direct([MOVE] * (tick + 1))[-1])


def test_world_stands_still_until_the_first_command(clock):
    robot = make_robot(clock)
    clock.now += 3.0
    reading = robot.read()
    assert_same(reading, direct([])[0])
    assert reading.capture_time == clock.now
    clock.now += 0.25  # a slow first plan: two periods pass before it arrives
    robot.command(MOVE, 0)
    clock.now += 0.05
    assert_same(robot.read(), direct([MOVE])[-1])
    assert robot.missed == 0


def test_missed_ticks_hold_the_last_action_and_are_counted(clock):
    robot = make_robot(clock)
    robot.read()
    robot.command(MOVE, 0)
    clock.now += 4 * DT
    assert_same(robot.read(), direct([MOVE] * 4)[-1])
    assert robot.missed == 3


def test_last_command_of_a_period_counts(clock):
    robot = make_robot(clock)
    robot.read()
    robot.command(HOLD, 0)
    robot.command(MOVE, 0)
    clock.now += DT
    assert_same(robot.read(), direct([MOVE])[-1])


def test_command_latency_moves_the_action_to_a_later_period(clock):
    robot = make_robot(clock, command_latency=0.15)
    robot.read()
    robot.command(MOVE, 0)  # arrives in period 1
    clock.now += 2 * DT
    assert_same(robot.read(), direct([MOVE])[-1])


def test_observation_latency_shows_the_past_with_its_time(clock):
    robot = make_robot(clock, observation_latency=0.15)
    robot.read()
    start = clock.now
    for tick in range(4):
        clock.now = start + tick * DT
        robot.command(MOVE, tick)
    clock.now = start + 4 * DT
    reading = robot.read()  # 0.4 - 0.15 = 0.25 s: the state of tick 2
    assert reading.capture_time == pytest.approx(start + 2 * DT)
    assert_same(reading, direct([MOVE] * 2)[-1])


def test_stop_holds_drops_what_is_on_its_way_and_may_be_repeated(clock):
    robot = make_robot(clock, command_latency=0.15)
    clock.now += 2 * DT
    robot.stop()
    robot.read()
    robot.command(MOVE, 0)
    clock.now += 3 * DT
    robot.command(HOLD, 3)  # on its way
    robot.stop()
    robot.stop()
    clock.now += 3 * DT
    assert_same(robot.read(), direct([MOVE] * 5)[-1])
    assert robot.missed == 1  # period 2; a stopped robot misses nothing


def test_commands_are_clipped_and_counted(clock):
    robot = make_robot(clock)
    low, high = robot.limits
    np.testing.assert_allclose(low, [-0.3, -0.25, 0.01, 0.0])
    np.testing.assert_allclose(high, [0.3, 0.25, 0.2, 1.0])
    robot.read()
    robot.command(np.array([-0.2, 0.0, 5.0, 1.0]), 0)
    robot.command(np.float32([-0.3, 0.25, 0.2, 1.0]), 0)  # rounding is no clipping
    assert robot.clipped == 1


@pytest.mark.parametrize(
    ("action", "is_clipped"),
    [(0.2 * (1 + 1e-7), False), (0.2001, True), (-1e-9, False), (-1e-6, True)],
)
def test_rounding_beside_a_limit_is_no_clipping_also_where_it_is_0(action, is_clipped):
    within, told = clipped(np.array([action]), (np.zeros(1), np.array([0.2])))
    assert told == is_clipped
    assert 0.0 <= within[0] <= 0.2


@pytest.mark.parametrize("action", [np.zeros(3), np.full(4, np.nan)])
def test_bad_command_is_refused(clock, action):
    robot = make_robot(clock)
    with pytest.raises(ValueError, match="for tick 7"):
        robot.command(action, 7)


@pytest.mark.parametrize("name", ["observation_latency", "command_latency"])
def test_negative_latency_is_refused(clock, name):
    with pytest.raises(ValueError, match=f"{name} is -1"):
        make_robot(clock, **{name: -1})


def run_expert(clock, side="left", seed=0):
    robot = make_robot(clock, observation_latency=0.02, command_latency=0.01)
    robot.reset(seed)
    act = MAKE().unwrapped.experts()[side](np.random.default_rng(0))  # type: ignore
    robot.read()  # period 0 begins
    start, trace = clock.now, []
    for tick in range(60):
        clock.now = start + tick * DT + (0.021 if tick else 0.0)
        trace.append(robot.read().fields["cube"])
        robot.command(act(robot.read().fields), tick)
        if robot.episode_over:
            break
    return robot, np.array(trace)


def test_expert_succeeds_through_the_robot_and_repeats_exactly():
    robot, first = run_expert(Clock())
    assert robot.episode_over
    assert robot.is_success
    assert robot.mode == 1
    assert robot.contract.control_dt == DT
    _, second = run_expert(Clock())
    np.testing.assert_array_equal(first, second)


def test_after_the_episode_the_world_stands_still_and_reset_starts_another(clock):
    robot = make_robot(clock, functools.partial(MAKE, max_episode_steps=2))
    robot.read()
    robot.command(MOVE, 0)
    clock.now += 10 * DT
    reading = robot.read()
    assert_same(reading, direct([MOVE] * 2)[-1])
    assert reading.capture_time == pytest.approx(clock.now)
    assert robot.episode_over
    assert not robot.is_success
    robot.reset(4)
    assert not robot.episode_over
    assert_same(robot.read(), direct([], seed=4)[0])
    assert math.isclose(robot.read().capture_time, clock.now)
    assert robot.render() is None
    robot.close()


def test_changes_are_not_repeated(clock):
    """Holding an action that is a change would go on moving."""

    class Delta(gymnasium.Wrapper):
        @property
        def metadata(self):
            contract = self.env.metadata["contract"]
            action = {**contract["action"], "kind": "delta"}
            return {**self.env.metadata, "contract": {**contract, "action": action}}

        def step(self, action):
            actions.append(action)
            return self.env.step(HOLD)

    actions = []
    robot = make_robot(clock, lambda: Delta(MAKE()))
    robot.read()
    robot.command(MOVE, 0)
    clock.now += 2 * DT
    robot.read()
    np.testing.assert_array_equal(actions, [MOVE, np.zeros(4)])
