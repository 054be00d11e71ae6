# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalSubscript=false
"""The simulated robot in its own process: like SimRobot, in real time, and alone if need be.

Nothing here depends on how fast this computer is: what happened is told from the times that the two
processes wrote down.
"""

import functools
import inspect
import os
import signal
import subprocess
import sys
import time
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from hydra.utils import instantiate

from data.types import Contract
from envs.robots.errors import RobotLostError
from envs.robots.shared_slot import SlotReader
from envs.robots.sim import SimRobot
from envs.robots.sim_process import SimProcess
from envs.robots.sim_process_side import CELLS, Faults, memory_bytes, state_dtype
from policy.entry import compose_config

ARM = functools.partial(gymnasium.make, "envs.arm:cadence/Arm-v0")
PILLAR = functools.partial(gymnasium.make, "envs.pillar:cadence/Pillar-v0")
ARM_DT, PILLAR_DT, LEAD = 0.01, 0.1, 0.2
LONG = 60.0  # s, after which something counts as hanging


class Clock:
    """The computer's clock, which remembers what it last showed."""

    shown = 0.0

    def __call__(self):
        self.shown = time.perf_counter()
        return self.shown


def make_robot(make_env=ARM, clock=time.perf_counter, **settings):
    settings = {"lead": LEAD, "watchdog": 30.0} | settings
    return SimProcess(make_env, clock=clock, read_contract=Contract.from_json, **settings)


def wait_until(condition, message):
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.002)


def sleep_until(moment):
    time.sleep(max(0.0, moment - time.perf_counter()))


def start_moving(robot, distance=0.2):
    """Send the arm away from where it is; the target."""
    goal = robot.pose() + distance
    robot.command(goal, 0)
    return goal


@pytest.fixture(scope="module")
def arm():
    """A robot without faults, for all tests that do not kill it."""
    robot = make_robot()
    yield robot
    robot.close()


def played(robot, clock, seed, n):
    """Command in the middle of `n` periods; origin, [(time, action)], and the reading after it."""
    robot.reset(seed)
    rng = np.random.default_rng(seed)
    hold = np.array([-0.2, 0.0, 0.15, 1.0])
    robot.read()
    origin, sent = clock.shown, []
    for tick in range(n):
        sleep_until(origin + (tick + 0.3) * PILLAR_DT)
        action = hold + rng.uniform(-0.05, 0.05, 4)
        robot.command(action, tick)
        sent.append((clock.shown, action))
    end = origin + (n - LEAD) * PILLAR_DT
    wait_until(lambda: robot.read().capture_time > end - 0.01, "the last state does not come")
    return origin, sent, robot.read()


def replayed(seed, origin, sent, until):
    """What SimRobot reads at `until` when it is commanded at the same times."""
    now = [origin - LEAD * PILLAR_DT]
    robot = SimRobot(PILLAR, clock=lambda: now[0], read_contract=Contract.from_json, seed=seed)
    robot.read()
    for moment, action in sent:
        now[0] = moment
        robot.command(action, 0)
    now[0] = until
    return robot, robot.read()


def test_same_commands_at_the_same_times_give_the_states_of_sim_robot():
    clock = Clock()
    robot = make_robot(PILLAR, clock)
    try:
        for attempt in range(8):
            origin, sent, reading = played(robot, clock, seed=attempt, n=4)
            if robot.late:  # The computer was too busy to deliver a command in its period.
                continue
            other, expected = replayed(attempt, origin, sent, reading.capture_time)
            assert expected.capture_time == pytest.approx(reading.capture_time, abs=1e-6)
            for name, values in expected.fields.items():
                np.testing.assert_array_equal(reading.fields[name], values)
            assert other.episode_over == robot.episode_over
            break
        else:
            pytest.fail("no episode in which all commands came in time")
    finally:
        robot.close()


def test_it_has_what_the_robot_protocol_asks_for(arm):
    arm.reset(0)
    env = ARM()
    start, _ = env.reset(seed=0)
    assert arm.is_real is False
    assert arm.contract == Contract.from_json(env.metadata["contract"])
    np.testing.assert_array_equal(arm.limits[0], arm.contract.action.low)
    reading = arm.read()
    for name, values in start.items():
        np.testing.assert_array_equal(reading.fields[name], values)
    np.testing.assert_array_equal(arm.pose(), start["joints"])
    assert (arm.missed, arm.held, arm.dropped, arm.mode) == (0, 0, 0, 0)
    assert not arm.episode_over
    assert not arm.is_success


def test_the_world_stands_still_until_the_first_command_and_then_moves_on_alone(arm):
    arm.reset(1)
    first = arm.read()
    time.sleep(5 * ARM_DT)
    second = arm.read()
    assert second.capture_time > first.capture_time
    np.testing.assert_array_equal(first.fields["joints"], second.fields["joints"])
    goal = start_moving(arm)
    wait_until(lambda: np.abs(arm.pose() - goal).max() < 0.01, "it does not get there")
    assert arm.missed > 0


def test_capture_times_are_on_the_clock_of_this_process(arm):
    """Before the reading, after the command that it shows the effect of, and a period apart.

    `time.monotonic` and `time.perf_counter` are the same clock on Linux, for all processes.
    """
    arm.reset(2)
    assert abs(time.monotonic() - time.perf_counter()) < 0.1
    before = time.monotonic()
    start_moving(arm)
    wait_until(lambda: (arm.read().fields["velocity"] != 0).any(), "it does not move")
    first = arm.read().capture_time
    assert before - ARM_DT < first < time.monotonic()
    wait_until(lambda: arm.read().capture_time > first, "time stands still")
    periods = (arm.read().capture_time - first) / ARM_DT
    assert abs(periods - round(periods)) < 0.05  # A period may be over 2 % early.
    assert round(periods) >= 1


def test_readings_never_go_back(arm):
    arm.reset(3)
    start_moving(arm)
    deadline = time.monotonic() + 0.5
    times = [arm.read().capture_time]
    while time.monotonic() < deadline:
        times.append(arm.read().capture_time)
    assert (np.diff(times) >= 0).all()
    assert times[-1] > times[0]


def test_stop_holds_and_may_be_repeated_and_reset_forgets_it(arm):
    arm.reset(4)
    start_moving(arm)
    wait_until(lambda: arm.missed > 0, "it does not run")
    arm.stop()
    arm.stop()

    def misses_nothing():
        missed, tick = arm.missed, arm.tick
        wait_until(lambda: arm.tick > tick + 5, "time stands still")
        return arm.missed == missed

    wait_until(misses_nothing, "it is not stopped")
    arm.reset(5)
    assert (arm.missed, arm.clipped) == (0, 0)
    np.testing.assert_array_equal(arm.pose(), ARM().reset(seed=5)[0]["joints"])


def test_commands_are_clipped_counted_and_refused_as_by_sim_robot(arm):
    arm.reset(6)
    arm.command(np.full(6, 50.0), 0)
    assert arm.clipped == 1
    with pytest.raises(ValueError, match="for tick 7"):
        arm.command(np.full(6, np.nan), 7)
    with pytest.raises(ValueError, match="for tick 8"):
        arm.command(np.zeros(5), 8)


def test_s8_without_a_command_the_watchdog_holds_counts_and_lets_go_again():
    robot = make_robot(watchdog=0.1, command_latency=0.03, observation_latency=0.05)
    try:
        start_moving(robot)
        wait_until(lambda: robot.held == 1, "the watchdog sleeps")
        wait_until(lambda: np.abs(robot.read().fields["velocity"]).max() < 1e-3, "it moves on")
        assert robot.held == 1
        age = time.perf_counter() - robot.read().capture_time
        assert age >= 0.05  # the observation latency
        robot.command(robot.pose(), 1)
        wait_until(lambda: robot.held == 2, "the watchdog does not watch again")
    finally:
        robot.close()


def test_a_stall_stops_the_world_and_lost_commands_are_the_same_ones_again():
    stall, at = 0.4, 5
    robot = make_robot(faults=Faults(stalls=[(at, stall)], drop=0.5, seed=1))
    try:
        start = robot.read().capture_time - LEAD * ARM_DT
        for tick in range(40):
            robot.command(robot.pose(), tick)
        ages = []

        def is_over_the_stall():
            ages.append(time.perf_counter() - robot.read().capture_time)
            return robot.tick > at + 3

        wait_until(is_over_the_stall, "it does not come back")
        tick, reading = robot.tick, robot.read()
        assert reading.capture_time >= start + tick * ARM_DT + stall - 1e-6
        assert max(ages) > stall / 4  # A controller can see that nothing new comes.
        dropped = robot.dropped
        assert 4 <= dropped <= 36  # Half of 40, within 5 standard deviations.
        robot.reset(0)  # the seed of the first episode
        for tick in range(40):
            robot.command(robot.pose(), tick)
        wait_until(lambda: robot.dropped == dropped, "others are lost")
    finally:
        robot.close()


def test_a_robot_that_dies_is_reported_at_once_and_stop_raises_nothing():
    robot = make_robot(faults=Faults(kill_at=3))
    try:
        start_moving(robot)
        with pytest.raises(RobotLostError, match="exit code -9"):
            wait_until(lambda: robot.read() is None, "its death goes unnoticed")
        for call in (robot.pose, lambda: robot.command(np.zeros(6), 0), lambda: robot.reset(0)):
            with pytest.raises(RobotLostError):
                call()
        robot.stop()
        assert not robot.is_success  # what is known of it can still be asked
    finally:
        robot.close()
    robot.close()
    robot.stop()
    with pytest.raises(RobotLostError, match="closed"):
        robot.read()


CONTROL = """
import functools, sys, time
import gymnasium
from envs.robots.sim_process import SimProcess
make = functools.partial(gymnasium.make, "envs.arm:cadence/Arm-v0")
robot = SimProcess(make, clock=time.perf_counter, read_contract=dict, watchdog=0.1, linger=1.5)
print(robot.pid, robot.memory_name, flush=True)
goal = robot.pose() + 0.2
while True:
    robot.command(goal, 0)
    time.sleep(0.01)
"""


def test_s12_when_the_controller_is_killed_the_robot_holds_and_ends_itself():
    with subprocess.Popen([sys.executable, "-c", CONTROL], stdout=subprocess.PIPE) as controller:
        assert controller.stdout is not None
        pid, name = controller.stdout.readline().decode().split()
        memory = SharedMemory(name)
        resource_tracker.unregister("/" + name, "shared_memory")  # It is not this process's.
        contract = ARM().metadata["contract"]
        n_commands, n_states = memory_bytes(contract)
        states = memory.buf[n_commands : n_commands + n_states]
        reader = SlotReader(states, state_dtype(contract), CELLS)
        wait_until(lambda: reader.newest()["tick"] > 3, "it does not move")
        os.kill(controller.pid, signal.SIGKILL)
        wait_until(lambda: reader.newest()["held"] == 1, "it does not hold")
        wait_until(lambda: not Path(f"/proc/{pid}").exists() or is_zombie(pid), "an orphan stays")
        assert np.abs(reader.newest()["fields"]["velocity"]).max() < 0.05
    assert not Path(f"/dev/shm/{name}").exists()
    reader.release()
    memory.close()


def is_zombie(pid):
    """Whether it has ended and only waits for somebody to ask after it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"watchdog": 0.01}, "watchdog is 0.01"),
        ({"lead": 1.0}, "lead is 1.0"),
        ({"observation_latency": -1}, "observation_latency is -1"),
        ({"linger": -1}, "linger is -1"),
        ({"observation_latency": 0.7}, "up to 0.7 s old"),
        ({"clock": lambda: 0.0}, "give time.perf_counter"),
    ],
)
def test_a_setting_out_of_range_is_refused_before_a_process_starts(settings, message):
    with pytest.raises(ValueError, match=message):
        make_robot(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop": 1.5}, "drop is 1.5"),
        ({"stalls": [(3, -1.0)]}, "the stall at tick 3 is -1.0"),
        ({"observation_jitter": -0.1}, "observation_jitter is -0.1"),
    ],
)
def test_a_fault_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Faults(**settings)


@pytest.mark.parametrize("name", ["sim", "sim_process"])
def test_s4_what_a_governor_keeps_to_can_be_given_to_a_simulated_robot(name):
    given = ["robot.limits.velocity=0.5", "robot.limits.jerk=[1,2,3,4,5,6]"]
    cfg = compose_config("run", ["env=arm", f"robot={name}", "governor=limited", *given])
    contract = Contract.from_json(ARM().metadata["contract"])
    make = instantiate(cfg.robot)
    inspect.signature(make).bind(ARM, clock=time.perf_counter, read_contract=Contract.from_json)
    action = contract.action
    governor = instantiate(cfg.governor)(action=action, control_dt=contract.control_dt)
    np.testing.assert_array_equal(governor.limits.velocity, np.full(6, 0.5))
    np.testing.assert_array_equal(governor.limits.jerk, [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(governor.limits.low, action.low)
    assert np.isinf(governor.limits.acceleration).all()
