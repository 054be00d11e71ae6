# pyright: reportArgumentType=false
"""The UR driver against a fake controller, and the fake against the real package."""

import functools
import importlib
import inspect
import sys
import textwrap
import threading
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
from data.types import Contract, Horizons
from envs.robots import ur_rtde
from envs.robots.device_clock import DRIFT, DeviceClock
from envs.robots.errors import EmergencyStopError, ProtectiveStopError, RobotError, RobotLostError
from envs.robots.ur import UR
from policy.control.clock import WallClock
from policy.control.governed import Governed
from policy.control.inference import Inference
from policy.control.latency import TimingLog
from policy.control.limits import Limits
from policy.entry import CONFIGS, compose_config
from policy.run import control_episodes
from policy.types import ActionChunk, Robot

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

    def __init__(self, make_env=ARM, *, pauses=False, looks=0, robot_clock=None, **changes):
        self.clock = Clock()
        self.controller = FakeController(self.clock, pauses=pauses, looks=looks)
        sides = FakeControl(self.controller), FakeReceive(self.controller)
        settings = {k: v for k, v in SETTINGS.items() if not k.startswith("_")}
        self.robot = UR(
            make_env,
            clock=robot_clock or self.clock,
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


@pytest.mark.parametrize("looks", [0, 3])
@pytest.mark.parametrize("rest", [0.0, 0.05, 0.5])
def test_s8_every_episode_starts_without_the_watchdog_of_the_last_one(rest, looks):
    """However shortly after the stop it begins, and however long its first plan takes."""
    bench = Bench(looks=looks)
    for _ in range(3):
        bench.clock.now += 10 * SETTINGS["watchdog"]
        bench.move(bench.robot.pose() + 0.02, 5)
        bench.robot.stop()
        bench.clock.now += rest
        bench.robot.reset(0)
    assert len(bench.called("setWatchdog")) == 3


class LateAtFirst:
    """Plans to stay; its first chunk of an episode takes longer than the arm's watchdog waits."""

    horizons = Horizons(obs=1, pred=16, action=5)

    def __init__(self, bench):
        self.contract, self._clock = bench.robot.contract, bench.clock

    def __call__(self, request):
        if request.tick == 0:
            self._clock.now += 1.2 * SETTINGS["watchdog"]
        joints = request.history["joints"][-1]
        return ActionChunk(np.repeat(joints[None], 16, axis=0), request.tick, self.contract)


def test_s8_two_episodes_in_a_row_by_the_loop_that_controls():
    """The controller's time passes by commands and plans, so this computer may be slow."""
    wall = WallClock()
    bench = Bench(robot_clock=wall.now, silence=600.0)
    command = bench.robot.command

    def command_then_wait(action, tick):
        command(action, tick)
        bench.clock.now += DT

    bench.robot.command = command_then_wait
    never = [f"governor.{n}=1e9" for n in ("max_observation_age", "max_action_age", "watchdog")]
    patient = ["governor=limited", *never, "seam.manner.max_missed=100000"]
    cfg = compose_config("run", ["env=arm", "robot=ur", "robot.host=192.0.2.1", *patient])
    contract = bench.robot.contract
    governor = instantiate(cfg.governor)(action=contract.action, control_dt=contract.control_dt)
    finished, planner = [], LateAtFirst(bench)
    with Inference(planner, clock=wall) as inference:
        control_episodes(
            bench.robot,
            Governed(bench.robot, governor),
            inference,
            planner,
            manner=instantiate(cfg.seam.manner),
            delay=instantiate(cfg.seam.delay),
            seeds=[0, 1],
            seconds=0.3,
            log=TimingLog(DT),
            finished=finished,
        )
    assert [(episode.seed, episode.fault) for episode in finished] == [(0, ""), (1, "")]


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


def test_s12_a_program_that_a_protective_stop_only_pauses_does_not_go_on_after_a_reset():
    bench = Bench(pauses=True)
    bench.move(bench.robot.pose() + 1.0, 5)
    bench.controller.trip(PROTECTIVE)
    with pytest.raises(ProtectiveStopError):
        bench.robot.reset(0)
    bench.controller.resume()
    before = bench.robot.pose()
    bench.clock.now += 0.05
    np.testing.assert_array_equal(bench.robot.pose(), before)
    bench.robot.reset(0)
    bench.clock.now += 1.0
    bench.move(before + 0.02, 5)
    np.testing.assert_allclose(bench.robot.pose(), before + 0.02, atol=1e-6)


def test_s12_a_program_that_was_resumed_by_hand_is_ended_by_a_reset():
    bench = Bench(pauses=True)
    bench.move(bench.robot.pose() + 1.0, 5)
    bench.controller.trip(PROTECTIVE)
    bench.clock.now += 5.0
    bench.controller.resume()
    bench.robot.reset(0)
    before = bench.robot.pose()
    bench.clock.now += 1.0
    np.testing.assert_array_equal(bench.robot.pose(), before)
    bench.move(before, 1)


@pytest.mark.parametrize(("stuck", "word"), [("stopScript", "end"), ("reuploadScript", "start")])
def test_a_program_that_does_not_obey_is_told(bench, monkeypatch, stuck, word):
    monkeypatch.setattr("envs.robots.ur.LOOK", 0.0)
    monkeypatch.setattr(bench.robot._control, stuck, lambda: stuck == "reuploadScript")
    with pytest.raises(RobotLostError, match=f"does not {word} .* Remote Control"):
        bench.robot.reset(0)


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


@pytest.mark.parametrize("error", [RuntimeError, ValueError, IndexError])
def test_an_error_of_the_package_is_a_lost_robot_and_stop_counts_it(bench, error):
    def broken(*_):
        raise error("end of file")

    bench.robot._control.servoJ = bench.robot._control.servoStop = broken
    with pytest.raises(RobotLostError, match="end of file"):
        bench.robot.command(bench.controller.joints, 0)
    bench.robot.stop()
    assert bench.robot.failed_stops == 1


@pytest.mark.parametrize("ran", [1000.0, 10.0])
def test_a_controller_that_was_started_anew_is_usable_after_a_reset(bench, ran):
    """Also where it has run for longer by then than it had before, so that no stamp goes back."""
    bench.controller.before_start = ran - bench.clock.now
    bench.robot.reset(0)
    bench.move(bench.robot.pose(), 3)
    bench.robot.read()
    bench.controller.reboot()
    bench.clock.now += 60.0
    with pytest.raises(RobotLostError, match="broke"):
        bench.robot.read()
    bench.robot.reset(0)
    bench.clock.now += DT
    assert bench.clock.now - bench.robot.read().capture_time < DT
    bench.move(bench.robot.pose(), 3)


@pytest.mark.parametrize(
    ("joint", "value", "words"),
    [
        (2, np.nan, "'elbow' is at nan rad"),
        (5, -np.inf, "'wrist 3' is at -inf rad"),
        (1, np.degrees(-1.9), "'shoulder' is at -108.862 rad"),
        (0, 2 * np.pi + 0.11, "'base' is at 6.39319 rad"),
    ],
)
def test_s1_a_position_that_cannot_be_is_told_and_not_passed_on(bench, joint, value, words):
    bench.move(bench.robot.pose(), 1)
    told = bench.controller.joints.tolist()
    told[joint] = value
    bench.robot._receive.getActualQ = lambda: told
    for call in (bench.robot.read, bench.robot.pose):
        with pytest.raises(RobotError, match=words):
            call()
    told[joint] = np.sign(value) * 2 * np.pi if np.isfinite(value) else 0.0
    assert bench.robot.read().fields["joints"][joint] == np.float32(told[joint])


def test_s1_a_velocity_that_is_not_finite_is_told(bench):
    bench.robot._receive.getActualQd = lambda: [0.0, 0.0, 0.0, np.nan, 0.0, 0.0]
    with pytest.raises(RobotError, match=r"'wrist 1' .* moves at nan rad/s"):
        bench.robot.read()


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


def test_s13_stop_does_not_wait_for_a_call_of_the_package_that_hangs(bench):
    bench.move(bench.robot.pose(), 1)
    goal, servo = bench.robot.pose(), bench.robot._control.servoJ
    has_begun, may_end = threading.Event(), threading.Event()

    def hangs(*arguments):
        has_begun.set()
        may_end.wait(60)
        return servo(*arguments)

    bench.robot._control.servoJ = hangs
    commander = threading.Thread(target=bench.robot.command, args=(goal, 1))
    stopper = threading.Thread(target=bench.robot.stop)
    commander.start()
    assert has_begun.wait(60)
    stopper.start()
    stopper.join(30)
    has_returned, still_hangs = not stopper.is_alive(), commander.is_alive()
    may_end.set()
    for thread in (commander, stopper):
        thread.join(60)
    assert has_returned
    assert still_hangs
    assert bench.robot.failed_stops == 1
    # What the arm's own watchdog has not ended by then is stopped by another call.
    bench.robot.stop()
    assert bench.robot.failed_stops == 1


@pytest.mark.parametrize("name", ["servoStop", "stopScript", "disconnect"])
def test_close_goes_on_where_a_call_fails(bench, name):
    def broken(*_):
        raise RuntimeError("broken pipe")

    bench.move(bench.robot.pose(), 1)
    ended = []
    for side in (bench.robot._control, bench.robot._receive):
        end = side.disconnect
        side.disconnect = lambda end=end: (ended.append(end), end())[1]
    setattr(bench.robot._control, name, broken)
    bench.robot.close()
    assert len(ended) == (1 if name == "disconnect" else 2)
    assert not bench.controller.is_connected


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
        ({"silence": np.inf}, "silence is inf"),
        ({"deceleration": 0.0}, "deceleration is 0.0"),
        ({"deceleration": np.nan}, "deceleration is nan"),
        ({"constants": {"target": TARGET, "joints": [0.0] * 6}}, "'joints' is measured"),
        ({"constants": {"target": TARGET, "velocity": [0.0] * 6}}, "'velocity' is measured"),
        ({"constants": {"target": TARGET, "tagret": TARGET}}, "'tagret' is no field"),
        ({"constants": {"target": [0.0, np.nan, 0.0]}}, "constants.target is .* finite"),
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


def test_device_clock_begins_anew_where_the_device_does():
    clock = DeviceClock()
    assert clock.capture_time(1000.0, arrival=50.0) == 50.0
    assert clock.capture_time(3.0, arrival=60.0) == 60.0
    # A message that took 0.5 s longer than the first one of the new clock.
    assert clock.capture_time(4.0, arrival=61.5) == pytest.approx(61.0, abs=2 * DRIFT)
