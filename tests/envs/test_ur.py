# pyright: reportArgumentType=false
"""The UR driver against a fake controller, and the fake against the real package."""

import functools
import importlib
import inspect
import sys
import textwrap
import time
import typing
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import yaml
from fake_ur import FAULT, NORMAL, PROTECTIVE, SAFEGUARD, FakeControl, FakeController, FakeReceive
from hydra.utils import instantiate
from omegaconf import OmegaConf

import envs.robots
from data.types import Contract
from envs.robots import ur_rtde
from envs.robots.device_clock import DRIFT, DeviceClock
from envs.robots.errors import EmergencyStopError, ProtectiveStopError, RobotError, RobotLostError
from envs.robots.ur import UR
from policy.control.limits import Limits
from policy.entry import CONFIGS
from policy.types import Robot

ARM = functools.partial(gymnasium.make, "envs.arm:cadence/Arm-v0")
CONTRACT = ARM().metadata["contract"]
SETTINGS = yaml.safe_load((CONFIGS / "robot" / "ur.yaml").read_text())
DT = SETTINGS["control_dt"]
TARGET = SETTINGS["constants"]["target"]


class Clock:
    now = 50.0

    def __call__(self):
        return self.now


class Bench:
    """A driver, the controller that it talks to, and the clock of both."""

    def __init__(self, make_env=ARM, **changes):
        self.clock = Clock()
        self.controller = FakeController(self.clock)
        sides = FakeControl(self.controller), FakeReceive(self.controller)
        settings = {k: v for k, v in SETTINGS.items() if not k.startswith("_")}
        self.robot = UR(
            make_env,
            clock=self.clock,
            read_contract=Contract.from_json,
            connect=lambda host: sides,
            **settings | {"host": "192.0.2.1"} | changes,
        )
        self.robot.reset(0)

    def called(self, name):
        return [arguments for called, arguments in self.controller.calls if called == name]

    def move(self, goal, n):
        """Command the same joints for `n` ticks."""
        for tick in range(n):
            self.robot.command(goal, tick)
            self.clock.now += DT


@pytest.fixture
def bench():
    return Bench()


def env_with(**entries):
    """What makes an env with some entries of the contract changed."""
    contract = {**CONTRACT, **entries}
    return lambda: SimpleNamespace(metadata={"contract": contract}, close=lambda: None)


def test_it_is_the_arm_of_the_contract(bench):
    robot = bench.robot
    assert robot.is_real is True
    assert robot.contract == Contract.from_json(CONTRACT)
    reading = robot.read()
    np.testing.assert_allclose(reading.fields["joints"], bench.controller.joints, atol=1e-6)
    np.testing.assert_array_equal(reading.fields["velocity"], np.zeros(6))
    np.testing.assert_allclose(reading.fields["target"], TARGET, atol=1e-6)
    for name, field in robot.contract.observation.items():
        assert reading.fields[name].shape == field.shape
        assert reading.fields[name].dtype == field.dtype
    np.testing.assert_allclose(robot.pose(), bench.controller.joints, atol=1e-6)


def test_commands_move_the_arm_and_keep_its_watchdog_quiet(bench):
    goal = bench.robot.pose() + 0.3
    bench.move(goal, 50)
    np.testing.assert_allclose(bench.robot.pose(), goal, atol=1e-6)
    sent = bench.called("servoJ")
    assert len(sent) == len(bench.called("kickWatchdog")) == 50
    q, _, _, time, lookahead_time, gain = sent[0]
    np.testing.assert_allclose(q, goal)
    assert (time, lookahead_time, gain) == (DT, SETTINGS["lookahead_time"], SETTINGS["gain"])
    assert bench.called("setWatchdog") == [(1 / SETTINGS["watchdog"],)]


def test_reading_shows_velocity_and_when_it_was(bench):
    bench.move(bench.robot.pose() + 1.0, 5)
    reading = bench.robot.read()
    np.testing.assert_allclose(reading.fields["velocity"], np.ones(6), atol=1e-6)
    assert reading.capture_time == pytest.approx(bench.clock.now)


def test_s8_without_commands_the_watchdog_stops_the_arm_and_reset_starts_again(bench):
    bench.move(bench.robot.pose() + 1.0, 5)
    bench.clock.now += 10 * SETTINGS["watchdog"]
    with pytest.raises(RobotLostError, match=r"watchdog=0.1 s: reset"):
        bench.robot.command(bench.robot.pose(), 5)
    before = bench.robot.pose()
    bench.clock.now += 1.0
    np.testing.assert_array_equal(bench.robot.pose(), before)
    bench.robot.reset(1)
    bench.move(before + 0.02, 10)
    np.testing.assert_allclose(bench.robot.pose(), before + 0.02, atol=1e-6)
    assert len(bench.called("setWatchdog")) == 2


def test_standing_before_the_first_command_trips_no_watchdog(bench):
    """A policy may warm up as long as it likes."""
    bench.clock.now += 100.0
    bench.robot.read()
    bench.move(bench.robot.pose(), 1)


@pytest.mark.parametrize(
    ("bit", "error", "words"),
    [
        (PROTECTIVE, ProtectiveStopError, "protective stop"),
        (SAFEGUARD, EmergencyStopError, "safeguard"),
        (5, EmergencyStopError, "system emergency"),
        (6, EmergencyStopError, "robot's emergency"),
        (7, EmergencyStopError, "emergency"),
        (3, RobotError, "recovery"),
        (8, RobotError, "violation"),
        (FAULT, RobotError, "fault"),
        (10, RobotError, "due to safety"),
    ],
)
def test_a_safety_stop_in_the_middle_is_told_and_needs_a_reset(bench, bit, error, words):
    bench.move(bench.robot.pose() + 1.0, 5)
    bench.controller.trip(bit)
    n_sent = len(bench.called("servoJ"))
    for call in (
        bench.robot.read,
        bench.robot.pose,
        lambda: bench.robot.command(np.zeros(6), 5),
        lambda: bench.robot.reset(0),
    ):
        with pytest.raises(error, match=words) as caught:
            call()
        assert type(caught.value) is error
    assert len(bench.called("servoJ")) == n_sent
    bench.robot.stop()
    bench.controller.safety = {NORMAL}
    bench.robot.reset(0)
    bench.move(bench.robot.pose(), 1)


def test_a_stop_that_comes_between_check_and_command_is_told_as_what_it_is(bench):
    bench.move(bench.robot.pose(), 1)
    is_running = bench.robot._control.isProgramRunning

    def then_trip():
        answer = is_running()
        bench.controller.trip(PROTECTIVE)
        return answer

    bench.robot._control.isProgramRunning = then_trip
    with pytest.raises(ProtectiveStopError):
        bench.robot.command(bench.controller.joints, 1)


def test_a_lost_connection_is_told_and_reset_connects_again(bench):
    bench.move(bench.robot.pose(), 3)
    bench.controller.is_connected = bench.controller.is_reachable = False
    for call in (bench.robot.read, lambda: bench.robot.command(np.zeros(6), 3)):
        with pytest.raises(RobotLostError, match="broke"):
            call()
    bench.robot.stop()
    assert bench.robot.failed_stops == 1
    with pytest.raises(RobotLostError, match="does not answer"):
        bench.robot.reset(0)
    bench.controller.is_reachable = True
    bench.robot.reset(0)
    assert bench.robot.failed_stops == 0
    bench.move(bench.robot.pose(), 1)


def test_an_error_of_the_package_is_a_lost_robot_and_stop_counts_it(bench):
    def broken(*_):
        raise RuntimeError("end of file")

    bench.robot._control.servoJ = bench.robot._control.servoStop = broken
    with pytest.raises(RobotLostError, match="end of file"):
        bench.robot.command(bench.controller.joints, 0)
    bench.robot.stop()
    assert bench.robot.failed_stops == 1


def test_s9_a_controller_that_falls_silent_is_lost(bench):
    bench.robot.read()
    bench.controller.is_frozen = True
    bench.clock.now += SETTINGS["silence"] - 1e-6
    old = bench.robot.read()
    assert bench.clock.now - old.capture_time == pytest.approx(SETTINGS["silence"], abs=1e-3)
    bench.clock.now += 2e-6
    with pytest.raises(RobotLostError, match=r"nothing new for 0\.100 s"):
        bench.robot.read()


def test_s13_stop_decelerates_and_may_be_repeated(bench):
    goal = bench.robot.pose() + 1.0
    bench.move(goal, 5)
    for _ in range(3):
        bench.robot.stop()
    before = bench.robot.pose()
    bench.clock.now += 1.0
    np.testing.assert_array_equal(bench.robot.pose(), before)
    assert bench.called("servoStop") == [(SETTINGS["deceleration"],)] * 3
    assert bench.robot.failed_stops == 0


def test_close_stops_ends_the_program_and_disconnects(bench):
    bench.move(bench.robot.pose(), 1)
    bench.robot.close()
    names = [name for name, _ in bench.controller.calls]
    assert names[-2:] == ["servoStop", "stopScript"]
    assert not bench.controller.is_connected


def test_commands_are_clipped_to_the_narrower_limits_and_bad_ones_refused(bench):
    low, high = bench.robot.limits
    np.testing.assert_array_equal(low, SETTINGS["limits"]["low"])
    assert high[1] == CONTRACT["action"]["high"][1] == 0.0
    bench.robot.command(np.full(6, 50.0), 0)
    np.testing.assert_array_equal(bench.called("servoJ")[0][0], high)
    assert bench.robot.clipped == 1
    for action in (np.full(6, np.nan), np.zeros(5)):
        with pytest.raises(ValueError, match="for tick 7"):
            bench.robot.command(action, 7)
    assert len(bench.called("servoJ")) == 1


DEGREES = {**CONTRACT["action"], "unit": "deg"}
SEVEN = {"shape": (7,), "unit": "rad"}
DELTA = {**CONTRACT["action"], "kind": "delta"}
FIELDS = CONTRACT["observation"]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"action": DEGREES}, "deg"),
        ({"action": SEVEN}, "7"),
        ({"action": DELTA}, "delta"),
        ({"control_dt": 0.02}, "0.02"),
        ({"observation": {**FIELDS, "joints": {"shape": (6,), "unit": "deg"}}}, "deg"),
        ({"observation": {**FIELDS, "velocity": {"shape": (6,), "unit": "rad"}}}, "rad/s"),
        ({"observation": {**FIELDS, "force": {"shape": (3,), "unit": "N"}}}, r"constants\.force"),
        ({"observation": {**FIELDS, "target": {"shape": (2,), "unit": "m"}}}, r"\(3,\)"),
    ],
)
def test_s7_a_contract_of_other_numbers_is_refused(entries, words):
    with pytest.raises(ValueError, match=words):
        Bench(env_with(**entries))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lookahead_time": 0.01}, "lookahead_time is 0.01"),
        ({"gain": 50.0}, "gain is 50.0"),
        ({"watchdog": 0.01}, "watchdog is 0.01"),
        ({"silence": -1.0}, "silence is -1.0"),
        ({"limits": {"low": [-1.0] * 6}}, r"lacks \['high'\]"),
        ({"limits": {"low": [1.0] * 6, "high": [-1.0] * 6}}, "low below high"),
        ({"limits": {"low": [-1.0] * 5, "high": [1.0] * 5}}, "6 numbers"),
    ],
)
def test_a_setting_out_of_range_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Bench(**changes)


def test_s4_the_file_carries_complete_limits_for_a_governor(bench):
    limits = Limits.of(bench.robot.contract.action, DT, **bench.robot.motion_limits)
    assert limits.is_complete
    config = OmegaConf.load(CONFIGS / "robot" / "ur.yaml")
    config.host = "192.0.2.1"
    made = instantiate(config, connect=lambda host: (None, None))(
        ARM, clock=Clock(), read_contract=Contract.from_json
    )
    assert made.motion_limits == bench.robot.motion_limits


def test_without_the_package_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rtde_control", None)
    with pytest.raises(ImportError, match=r"cadence\[ur\]"):
        ur_rtde.connect("192.0.2.1")


@pytest.mark.parametrize(
    ("module", "name", "fake", "protocol"),
    [
        ("rtde_control", "RTDEControlInterface", FakeControl, ur_rtde.Control),
        ("rtde_receive", "RTDEReceiveInterface", FakeReceive, ur_rtde.Receive),
    ],
)
def test_the_fake_and_the_driver_speak_the_real_package(module, name, fake, protocol):
    """Same methods, number of arguments and types as its compiled classes say in their docs."""
    real = getattr(pytest.importorskip(module), name)
    assert importlib.import_module(module)
    for method in [m for m in vars(protocol) if not m.startswith("_")]:
        line = getattr(real, method).__doc__.strip().splitlines()[0]
        assert line.startswith(f"{method}(self")
        parameters = line[: line.rindex(")")].count(": ") - 1
        for ours in (getattr(fake, method), getattr(protocol, method)):
            assert len(inspect.signature(ours).parameters) - 1 == parameters, line
            returned = typing.get_type_hints(ours)["return"]
            shown = "None" if returned is type(None) else getattr(returned, "__name__", "")
            shown = str(returned) if typing.get_args(returned) else shown
            assert line.endswith(f"-> {shown}"), line


class Joints:
    """A device with LeRobot's interface."""

    def __init__(self):
        self.position = {f"{name}.pos": 0.5 for name in ("base", "elbow")}

    def connect(self):
        pass

    def disconnect(self):
        pass

    def get_observation(self):
        return dict(self.position)

    def send_action(self, action):
        self.position = action


def test_the_skeleton_of_a_driver_in_the_docstring_works():
    text = envs.robots.__doc__ or ""
    code = textwrap.dedent(text[text.index("    import threading") : text.index("Its file in")])
    names: dict = {}
    exec(code, names)
    action = {"shape": (2,), "unit": "rad", "low": (-1, -1), "high": (1, 1)}
    entry = {"observation": {"joints": {"shape": (2,)}}, "action": action, "control_dt": 0.01}
    robot = names["JointRobot"](
        env_with(**entry),
        clock=time.perf_counter,
        read_contract=Contract.from_json,
        device=Joints(),
        joints=("base", "elbow"),
        limits={},
        silence=60.0,
    )
    asked = [name for name in vars(Robot) if not name.startswith("_")]
    for name in [*asked, *Robot.__annotations__]:
        assert hasattr(robot, name), name
    robot.reset(0)
    np.testing.assert_allclose(robot.pose(), 0.5)
    robot.command(np.array([0.1, 3.0]), 0)
    deadline = time.monotonic() + 60
    while not np.allclose(robot.pose(), [0.1, 1.0]):
        assert time.monotonic() < deadline
    robot.close()


def test_device_clock_finds_the_offset_of_a_drifting_clock_behind_a_jittery_line():
    rng = np.random.default_rng(0)
    clock, offset = DeviceClock(), -1234.5
    errors = []
    for k in range(3000):
        true = 0.01 * k
        stamp = (true - offset) * (1 + DRIFT / 2)  # which is fast
        delay = 0.0005 + rng.exponential(0.002)
        arrival = true + delay
        told = clock.capture_time(stamp, arrival=arrival)
        assert told <= arrival
        errors.append(told - true)
    # Once a fast message has come, it is off by what that took, and by the drift since.
    assert np.abs(errors[500:]).max() < 0.0015
    assert np.diff(errors).max() < 0.01
