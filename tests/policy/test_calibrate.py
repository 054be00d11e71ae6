"""`cadence calibrate` on a simulated robot under a virtual clock, whose latencies are known."""

from typing import cast

import gymnasium
import numpy as np
import pytest

from data.types import Contract
from envs.robots.sim import SimRobot
from policy.calibrate import Steps, write_into
from policy.control.calibration import command_latency, observation_latency
from policy.control.clock import VirtualClock
from policy.control.governed import Governed
from policy.control.governor import Governor
from policy.control.limits import Limits
from policy.types import Robot

DT = 0.01


def arm():
    return gymnasium.make("envs.arm:cadence/Arm-v0")


@pytest.mark.parametrize("limits", [{}, {"velocity": 1.05, "acceleration": 1.4, "jerk": 20.0}])
@pytest.mark.parametrize("latency", [0.0, 0.013, 0.05])
def test_what_it_finds_is_what_was_put_in(latency, limits):
    clock = VirtualClock()
    robot = SimRobot(
        arm,
        clock=clock.now,
        read_contract=Contract.from_json,
        command_latency=latency,
        observation_latency=0.02,
    )
    field = robot.contract.action
    governed = Governed(
        cast(Robot, robot),
        Governor(field, DT, Limits.of(field, DT, **limits), max_observation_age=1.0),
    )
    stepping = Steps(cast(Robot, robot), governed, clock, element=0, threshold=1e-3, seconds=0.3)
    steps = []
    for number, phase in enumerate(np.linspace(0, 0.9, 6)):
        robot.reset(number)
        governed.arm()
        steps.append(stepping.take(0.05, phase=float(phase)))
        governed.stop()
    found = command_latency(steps, threshold=1e-3)
    # A command counts for the whole of the period in which it arrives. Along a ramp this arm's
    # position control is 0.02 s behind, which is part of its latency.
    assert found.low - DT - 0.021 * bool(limits) <= latency <= found.high
    assert found.high - found.low <= (2 if limits else 1.01) * DT
    age = observation_latency(steps)
    # Readings come every DT; the first ones of an episode are fresher.
    assert age.low <= 0.02 + DT / 2 <= age.high <= 0.02 + DT
    robot.close()


def test_latencies_are_written_and_nothing_else(tmp_path):
    file = tmp_path / "robot.yaml"
    text = "_target_: x\nobservation_latency: {}  # s\ncommand_latency: {}\nwatchdog: 0.5  # s\n"
    file.write_text(text.format("0.0", "0.25"))
    found = write_into(file, {"observation_latency": 0.01234, "command_latency": 0.5, "other": 1.0})
    assert found == ["observation_latency", "command_latency"]
    assert file.read_text() == text.format("0.0123", "0.5000")
