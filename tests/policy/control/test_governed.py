"""Nothing reaches the driver but through the governor, and a real robot is not moved without."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest

import policy
from data.types import Contract, Field, Observation
from policy.control.governed import Governed
from policy.control.governor import Governor, State
from policy.control.limits import Limits
from policy.control.refusals import Reason

DT = 0.125
FIELD = Field(shape=(2,), unit="rad", low=(-1, -1), high=(1, 1))
CONTRACT = Contract({"state": Field(shape=(2,))}, FIELD, control_dt=DT)
MOTION = {"velocity": 1.0, "acceleration": 4.0, "jerk": 40.0}

POLICY = Path(policy.__file__).parent
ALLOWED = {"control/governed.py"}


class FakeRobot:
    """Follows every command, and remembers it."""

    def __init__(self, *, is_real=False, pose=(0.0, 0.0)):
        self.contract, self.is_real = CONTRACT, is_real
        self.limits = (np.full(2, -1.0), np.full(2, 1.0))
        self.commands, self.ticks, self.n_stops = [], [], 0
        self._pose = None if pose is None else np.array(pose)

    def read(self):
        return Observation({"state": np.zeros(2)}, capture_time=0.0)

    def pose(self):
        return self._pose

    def command(self, action, tick):
        self.commands.append(action.tolist())
        self.ticks.append(tick)

    def stop(self):
        self.n_stops += 1


def governed(robot=None, *, limits=None, **changes):
    made = Limits.of(FIELD, DT, **(MOTION if limits is None else limits))
    settings = {"pose_tolerance": 0.01, "max_observation_age": 0.5, **changes}
    return Governed(robot or FakeRobot(), Governor(FIELD, DT, made, **settings))


def commands_a_driver(source: str) -> bool:
    """Whether something calls `x.command(...)`, or hands on a `robot.command`."""
    tree = ast.parse(source)
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return any(
        node in called or ast.unparse(node.value).lower().endswith("robot")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "command"
    )


def test_s5_nothing_else_holds_a_drivers_command():
    found = {
        path.relative_to(POLICY).as_posix()
        for path in POLICY.rglob("*.py")
        if ".command" in path.read_text() and commands_a_driver(path.read_text())
    }
    assert found == ALLOWED


def test_s5_a_command_is_found_where_there_is_one():
    assert commands_a_driver("robot.command(action, 0)")
    assert commands_a_driver("self.driver().command(action, 0)")
    assert commands_a_driver("send = self._robot.command")
    assert not commands_a_driver("command(action); print(report.command)")


def test_s5_the_driver_gets_exactly_what_is_let_through():
    robot = FakeRobot()
    made = governed(robot)
    made.arm()
    made.read()
    rng = np.random.default_rng(0)
    wanted = [np.zeros(2), *rng.uniform(-2, 2, (5, 2)), None, np.full(2, math.nan), np.zeros(2)]
    sent = [made.send(w, tick=k, now=0.0, asked=0.0) for k, w in enumerate(wanted)]
    assert robot.commands == [np.asarray(action).tolist() for action in sent]
    assert robot.ticks == list(range(len(wanted)))
    assert made.fault is Reason.NOT_FINITE


def test_s4_a_real_robot_with_a_limit_missing_is_refused_by_its_name():
    limits = {"velocity": 1.0, "acceleration": (4.0, math.inf)}
    with pytest.raises(ValueError, match="no limit of acceleration of element 1, jerk of element"):
        governed(FakeRobot(is_real=True), limits=limits)
    governed(FakeRobot(is_real=False), limits=limits)
    governed(FakeRobot(is_real=True)).arm()


def test_s4_a_real_robot_that_does_not_tell_its_pose_is_not_armed():
    made = governed(FakeRobot(is_real=True, pose=None))
    with pytest.raises(ValueError, match="does not tell its pose"):
        made.arm()
    assert made.state is State.DISARMED
    simulated = governed(FakeRobot(pose=None))
    simulated.arm()
    assert simulated.state is State.READY


def test_s7_a_governor_for_another_contract_is_refused():
    other = Field(shape=(2,), unit="deg", low=(-1, -1), high=(1, 1))
    with pytest.raises(ValueError, match="make both from the same contract"):
        Governed(FakeRobot(), Governor(other, DT, Limits.of(other, DT)))
    with pytest.raises(ValueError, match=r"control_dt of 0.25 s, the robot has 0.125 s"):
        Governed(FakeRobot(), Governor(FIELD, 2 * DT, Limits.of(FIELD, 2 * DT)))


def test_nothing_is_sent_before_arming_and_after_a_stop():
    robot = FakeRobot()
    made = governed(robot)
    made.read()
    assert made.send(np.zeros(2), tick=0, now=0.0, asked=0.0) is None
    made.arm()
    made.stop()
    made.stop()
    assert made.send(np.zeros(2), tick=1, now=0.0, asked=0.0) is None
    assert robot.commands == []
    assert robot.n_stops == 2


def test_s9_the_newest_observation_counts_and_none_is_too_old():
    robot = FakeRobot()
    made = governed(robot, max_observation_age=0.5)
    made.arm()
    made.send(np.zeros(2), tick=0, now=0.0, asked=0.0)
    assert made.state is State.READY  # Never read.
    made.read()
    made.send(np.zeros(2), tick=1, now=0.5, asked=0.5)
    assert made.state is State.ACTIVE
    made.send(np.zeros(2), tick=2, now=0.75, asked=0.75)
    assert made.governor.counts[Reason.OLD_OBSERVATION] == 1


def in_motion(robot):
    made = governed(robot)
    made.arm()
    made.read()
    for tick in range(4):
        made.send(np.full(2, tick / 2), tick=tick, now=0.0, asked=0.0)
    return made


def test_a_motion_may_end_without_a_refusal():
    robot = FakeRobot()
    made = in_motion(robot)
    counts = dict(made.governor.counts)
    speed = robot.commands[-1][0] - robot.commands[-2][0]
    assert speed > 0
    tick = 4
    while not made.governor.is_at_rest:
        sent = made.brake(tick=tick)
        assert np.asarray(sent).tolist() == robot.commands[-1]
        tick += 1
        assert tick < 40
    assert robot.ticks == list(range(tick))
    assert robot.commands[-1] == robot.commands[-2]
    assert made.state is State.ACTIVE
    assert made.governor.counts == counts
    made.stop()
    assert made.brake(tick=tick) is None
    assert robot.ticks == list(range(tick))


def test_s13_an_emergency_stop_holds_until_reset_and_rearmed():
    robot = FakeRobot()
    made = governed(robot)
    made.arm()
    made.read()
    made.send(np.zeros(2), tick=0, now=0.0, asked=0.0)
    made.emergency_stop()
    made.send(np.ones(2), tick=1, now=0.0, asked=0.0)
    assert robot.commands[-1] == [0.0, 0.0]
    with pytest.raises(RuntimeError, match="reset first"):
        made.arm()
    made.reset()
    made.arm()
    made.send(np.zeros(2), tick=2, now=0.0, asked=0.0)
    assert made.state is State.ACTIVE


def test_who_watches_is_told_what_was_seen_and_sent():
    robot, told = FakeRobot(), []
    made = Governed(
        robot,
        governed().governor,
        watch=lambda seen, sent, tick: told.append((seen, sent.tolist(), tick)),
    )
    made.arm()
    made.brake(tick=0)  # Nothing was read yet, so nothing was seen.
    seen = made.read()
    sent = made.send(np.full(2, 0.001), tick=1, now=0.0, asked=0.0)
    assert sent is not None
    assert told == [(seen, sent.tolist(), 1)]
    assert robot.commands[-1] == sent.tolist()
