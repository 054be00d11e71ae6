"""`cadence run`: episodes on a robot, what is told afterwards, and how it ends when things fail."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from envs.robots.sim import SimRobot
from policy import control_thread
from policy.control.latency import TimingLog
from policy.control_thread import before_others, logged_elsewhere
from policy.entry import compose_config
from policy.run import FAULT_STATUS, run
from policy.run_report import timing_table

SMALL = ["env=pick_place", "sampler.grid.n_steps=1", "episodes=1", "action_horizon=4"]


def test_table_shows_milliseconds_and_counts():
    log = TimingLog(0.1)
    log.add_latency(0.0125)
    log.add_command(time=1.0125, due=1.0, woken=1.0025, kept=0.0025)
    log.add_command(time=1.1, due=1.1, woken=1.1, kept=0.0)
    log.add_delay(2, reckoned=1)
    log.n_missed, log.n_missed_stalled = 2, 1
    lines = timing_table(log).splitlines()[1:]
    period, latency, wake, work, delay, own, _age, counts, late = lines
    assert period.split() == ["period", "(want", "100)", *["87.50"] * 6]
    assert latency.split() == ["policy", "latency", *["12.50"] * 6]
    assert wake.split()[-1] == "2.50"
    assert work.split()[-1] == "10.00"
    assert delay.split()[:3] == ["command", "delay", "6.25"]
    assert own.split()[-1] == "10.00"
    assert "commands 2  missed deadlines 2 (1 by the system)  stalls of the system 1" in counts
    assert "1 x 2  later than reckoned 1" in late


def test_table_of_an_interrupted_run_says_that_there_is_nothing():
    assert "no samples" in timing_table(TimingLog(0.1))


@pytest.mark.parametrize("setting", ["episodes", "seconds"])
def test_nothing_to_run_is_refused(setting):
    cfg = compose_config("run", ["env=pillar", "checkpoint=there", f"{setting}=0"])
    with pytest.raises(ValueError, match=f"{setting} is 0"):
        run(cfg)


@pytest.mark.parametrize("given", [[], ["checkpoint=there", "policy=ws://127.0.0.1:1"]])
def test_one_planner_is_needed(given):
    with pytest.raises(ValueError, match="give one of checkpoint=DIR and policy="):
        run(compose_config("run", ["env=pillar", *given]))


@pytest.mark.parametrize("given", ["sampler=rti", "engine=fused", "action_horizon=3"])
def test_what_a_server_decides_is_not_set_where_it_is_used(given):
    with pytest.raises(ValueError, match=f"{given.split('=')[0]} is set here, and the policy runs"):
        run(compose_config("run", ["env=pillar", "policy=ws://127.0.0.1:1", given]))


def test_an_engine_that_is_none_is_refused_before_a_checkpoint_is_read(tmp_path):
    given = [f"checkpoint={tmp_path / 'missing'}", "engine=fused", "engine.tolerance=2"]
    with pytest.raises(Exception, match=r"engine\.tolerance is 2"):
        run(compose_config("run", ["env=pillar", *given]))


def test_a_run_writes_what_it_did(pillar_checkpoint, tmp_path):
    settings = [*SMALL, f"checkpoint={pillar_checkpoint}", f"out={tmp_path}", "seconds=0.9"]
    results = run(compose_config("run", settings))
    assert isinstance(results, dict)
    written = json.loads((tmp_path / "run.json").read_text())
    assert written["complete"]
    assert written["episodes"][0]["ticks"] == 9
    timing = written["timing"]
    assert timing["n_commands"] + timing["n_missed"] == 9
    assert len(written["samples"]["delay"]) == timing["n_commands"]


@pytest.fixture
def commanded(monkeypatch):
    """Every action that reaches the simulated robot; `then(n, call)` calls after n of them."""
    actions, waiting, command = [], [], SimRobot.command

    def spy(self, action, tick):
        actions.append(np.array(action, float))
        command(self, action, tick)
        if waiting and len(actions) == waiting[0][0]:
            threading.Thread(target=waiting[0][1], daemon=True).start()

    monkeypatch.setattr(SimRobot, "command", spy)
    return actions, lambda n, call: waiting.append((n, call))


def settings_of(checkpoint, out, *more):
    # The episode has 100 ticks of 0.1 s, so it does not end by itself before.
    places = [f"checkpoint={checkpoint}", f"out={out}", "seconds=60"]
    return compose_config("run", [*SMALL, *places, *more])


def test_s13_an_emergency_stop_by_signal_ends_the_run_with_its_status(
    pillar_checkpoint, tmp_path, commanded
):
    commanded[1](4, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert run(settings_of(pillar_checkpoint, tmp_path)) == FAULT_STATUS
    written = json.loads((tmp_path / "run.json").read_text())
    assert written["fault"] == "emergency stop"
    assert written["refusals"]["emergency stop"] == 1
    assert not written["complete"]
    assert written["episodes"][0]["ticks"] < 100


def test_s12_ctrl_c_brings_the_robot_to_rest_within_its_limits(
    pillar_checkpoint, tmp_path, commanded
):
    previous = signal.getsignal(signal.SIGINT)
    commanded[1](8, lambda: os.kill(os.getpid(), signal.SIGINT))
    limits = "governor.limits={velocity: 0.2, acceleration: 1.0, jerk: 20.0}"
    with pytest.raises(KeyboardInterrupt):
        run(settings_of(pillar_checkpoint, tmp_path, limits))
    assert signal.getsignal(signal.SIGINT) == previous
    place = np.array(commanded[0])[:, :3]  # The gripper has no motion of its own.
    assert 8 <= len(place) < 100
    np.testing.assert_array_equal(place[-1], place[-2])
    for order, limit in ((1, 0.2), (2, 1.0), (3, 20.0)):
        rates = np.abs(np.diff(place, n=order, axis=0)) / 0.1**order
        assert rates.max() <= limit * (1 + 1e-6) + 1e-9
    assert not json.loads((tmp_path / "run.json").read_text())["complete"]


def serving(checkpoint, *settings):
    """A policy server in a process of its own, and its address."""
    command = [sys.executable, "-m", "policy.serve", f"checkpoint={checkpoint}", "port=0"]
    process = subprocess.Popen(
        [*command, "sampler.grid.n_steps=1", "action_horizon=4", *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "policy=ws" in line:
            return process, line.split("policy=")[1].strip()
    raise AssertionError("the server did not come up")


def test_s8_s12_killed_server_ends_in_a_hold_and_a_fault(pillar_checkpoint, tmp_path, commanded):
    process, address = serving(pillar_checkpoint)
    commanded[1](4, process.kill)
    try:
        settings = [
            *SMALL[:1],
            "episodes=1",
            f"policy={address}",
            f"out={tmp_path}",
            "seconds=60",
            "deadline=0.2",
            "seam=blend",
            "governor.watchdog=0.5",
        ]
        begun = time.monotonic()
        assert run(compose_config("run", settings)) == FAULT_STATUS
        assert time.monotonic() - begun < 30  # Not the whole episode.
    finally:
        process.kill()
        process.wait()
    written = json.loads((tmp_path / "run.json").read_text())
    assert written["fault"] == "starved"
    assert written["timing"]["n_failed"] > 0
    assert written["refusals"]["starved"] >= 5  # At 10 Hz, half a second without an action.


def test_s9_a_robot_that_stalls_is_not_commanded_blindly(pillar_checkpoint, tmp_path):
    settings = [
        *SMALL,
        f"checkpoint={pillar_checkpoint}",
        f"out={tmp_path}",
        "seconds=60",
        "robot=sim_process",
        "robot.faults.stalls=[[8, 30.0]]",
        "governor.max_observation_age=0.5",
        "governor.watchdog=0.4",
    ]
    assert run(compose_config("run", settings)) == FAULT_STATUS
    written = json.loads((tmp_path / "run.json").read_text())
    assert written["fault"] == "old observation"
    assert 8 <= written["episodes"][0]["ticks"] < 40


def test_what_is_logged_in_control_is_written_by_another_thread():
    threads = []

    class Spy(logging.StreamHandler):
        def emit(self, record):
            threads.append(threading.current_thread())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging, "StreamHandler", Spy)
        with logged_elsewhere():
            logging.getLogger("policy.control.refusals").warning("starved")
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


class Scheduler:
    """The system's, of which nothing is changed; threads that it is not told of are ordinary."""

    def __init__(self, patch, *, schedules=(), refuses=lambda thread: False):
        self.schedules, self.refuses = dict(schedules), refuses
        patch.setattr(os, "sched_getscheduler", lambda thread: self.of(thread)[0])
        patch.setattr(os, "sched_getparam", lambda thread: os.sched_param(self.of(thread)[1]))
        patch.setattr(os, "sched_setscheduler", self.set)

    def of(self, thread):
        return self.schedules.get(thread, (os.SCHED_OTHER, 0))

    def set(self, thread, policy, param):
        if self.refuses(thread):
            raise PermissionError("Operation not permitted")
        # As Linux tells it.
        self.schedules[thread] = policy, param.sched_priority


@contextlib.contextmanager
def another_thread():
    """Native number of a thread of ours."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    yield thread.native_id
    end.set()
    thread.join()


needs_priorities = pytest.mark.skipif(
    not hasattr(os, "SCHED_RESET_ON_FORK"), reason="the system has no such priorities"
)


@needs_priorities
def test_a_priority_is_given_back(monkeypatch):
    own = threading.get_native_id()
    ordinary, first = (os.SCHED_OTHER, 0), (os.SCHED_FIFO, 1)
    with another_thread() as other, another_thread() as driver:
        before = {own: (os.SCHED_BATCH, 0), driver: (os.SCHED_FIFO, 80)}
        scheduler = Scheduler(monkeypatch, schedules=before)
        with before_others(50):
            # Others of ours come after control, and before other programs: they may hold its lock.
            assert scheduler.of(own) == (os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, 50)
            assert scheduler.of(other) == first
            assert scheduler.of(driver) == (os.SCHED_FIFO, 80)  # It knows what it needs.
            born = another_thread()
            newest = born.__enter__()
            scheduler.schedules[newest] = first  # As it is born by one of ours.
        assert scheduler.of(own) == scheduler.of(newest) == (os.SCHED_BATCH, 0)
        assert (scheduler.of(other), scheduler.of(driver)) == (ordinary, (os.SCHED_FIFO, 80))
        born.__exit__(None, None, None)


@needs_priorities
def test_a_priority_is_given_back_after_an_error(monkeypatch):
    scheduler = Scheduler(monkeypatch)
    with pytest.raises(KeyError), before_others(50):
        raise KeyError
    assert set(scheduler.schedules.values()) == {(os.SCHED_OTHER, 0)}


@needs_priorities
def test_a_thread_that_ends_while_priorities_are_given_is_no_refusal(capsys, monkeypatch):
    with another_thread() as ended:
        pass
    scheduler = Scheduler(monkeypatch)

    def look(thread):
        if thread == ended:
            raise ProcessLookupError("No such process")
        return scheduler.of(thread)[0]

    monkeypatch.setattr(os, "sched_getscheduler", look)
    monkeypatch.setattr(control_thread, "_threads", lambda: {ended, threading.get_native_id()})
    with before_others(50):
        assert scheduler.of(threading.get_native_id())[1] == 50
    assert scheduler.of(threading.get_native_id()) == (os.SCHED_OTHER, 0)
    assert capsys.readouterr().out == ""


def test_a_refused_priority_is_told(capsys, monkeypatch):
    Scheduler(monkeypatch, refuses=lambda thread: True)
    with before_others(50):
        assert "realtime=50 is refused (Operation not permitted)" in capsys.readouterr().out


def test_a_system_without_priorities_says_so(capsys, monkeypatch):
    monkeypatch.delattr(os, "sched_getscheduler", raising=False)
    monkeypatch.setattr(control_thread, "TASKS", Path("/nowhere"))
    with before_others(50):
        assert "realtime=50 is refused" in capsys.readouterr().out


@pytest.mark.parametrize("priority", [0, 1, 100])
def test_a_priority_out_of_range_is_refused(priority):
    # With 1 control would not run before the program's other threads.
    with pytest.raises(ValueError, match=f"realtime is {priority}, it must be in 2..99"):
        before_others(priority).__enter__()
