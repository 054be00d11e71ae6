"""Measure the latencies of a robot, and write them into its configuration.

    cadence calibrate env=arm robot=sim_process robot.command_latency=0.03
    cadence calibrate env=arm robot=sim into=configs/robot/sim.yaml

It moves! One element of the action is stepped to and fro by `amplitude`, `repeats` times, through
the governor; stand clear, with a hand at the emergency stop (`kill -USR1 PID` is one, too). Two
latencies are told apart by the robot's own capture stamps, so they are as honest as these are: how
old a reading is when it is taken, and how long a command takes until the robot moves. The second
one is known as finely as readings are apart, and finer with more repeats; where motion is limited
the step is a ramp, and what the robot's position control lags behind it is counted. Writes
calibrate.json, and with `into=FILE` the lines observation_latency and command_latency of that file,
where it has them.
"""

import re
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from data.types import Contract
from policy.control.calibration import Step, command_latency, observation_latency
from policy.control.clock import Clock, WallClock
from policy.control.governed import Governed
from policy.control_thread import emergency_stop_on_signal
from policy.durable import write_json, write_text
from policy.entry import entry, out_dir
from policy.fingerprint import fingerprint
from policy.progress import progress_bar
from policy.tasks import maker
from policy.types import Robot

POLL = 0.001  # Between two looks at the robot [s].


class Steps:
    """Steps one element of the action and keeps what is seen of it.

    Args:
        robot: to be looked at.
        governed: the same behind its governor.
        clock: of the robot.
        element: of the action.
        threshold: change that counts as motion, in the element's unit.
        seconds: at rest before a step, and seen after it.

    Raises:
        ValueError: the robot does not tell its pose.
    """

    def __init__(
        self,
        robot: Robot,
        governed: Governed,
        clock: Clock,
        *,
        element: int,
        threshold: float,
        seconds: float,
    ):
        self._robot, self._governed, self._clock = robot, governed, clock
        self._element, self._threshold, self._seconds = element, threshold, seconds
        self._rows: list[tuple[float, float, float]] = []
        if robot.pose() is None:
            raise ValueError("the robot does not tell its pose, so nobody can see it move")

    def take(self, amplitude: float, *, phase: float) -> Step:
        """One step from where the robot is.

        It is timed by what the governor sends, which may be slower than what is wanted.

        Args:
            amplitude: how far, in the element's unit.
            phase: part of a control period by which the step comes later.

        Raises:
            ValueError: the governor stopped the robot, or never lets it move so far.
        """
        self._rows = []
        dt, pose = self._robot.contract.control_dt, self._pose()
        self._hold(pose, self._clock.now() + self._seconds)
        self._clock.sleep_until(self._clock.now() + phase * dt)
        there = pose.copy()
        there[self._element] += amplitude
        sent = self._hold(there, self._clock.now() + self._seconds)
        if sent is None:
            raise ValueError(
                f"the governor sent nothing beyond {self._threshold:g} within {self._seconds:g} s "
                f"of a step of {amplitude:g}: give more seconds, or a smaller threshold"
            )
        read, captured, position = np.array(self._rows).T
        return Step(sent, read, captured, position)

    def come_to_rest(self) -> None:
        """Brake within the governor's limits, then let the driver hold."""
        tick, start = 0, self._clock.now()
        while not self._governed.governor.is_at_rest:
            self._clock.sleep_until(start + tick * self._robot.contract.control_dt)
            self._governed.brake(tick=tick)
            tick += 1
        self._governed.stop()

    def _hold(self, wanted: np.ndarray, end: float) -> float | None:
        """Command the same action until `end`; returns when what was sent first moved [s]."""
        dt, start = self._robot.contract.control_dt, self._clock.now()
        tick, rest, moved = 0, self._pose()[self._element], None
        while self._clock.now() < end:
            if self._clock.now() >= start + tick * dt:
                self._governed.read()
                now = self._clock.now()
                sent = self._governed.send(wanted, tick=tick, now=now, asked=now)
                tick += 1
                if self._governed.fault is not None:
                    raise ValueError(f"the governor stopped it: {self._governed.fault.value}")
                assert sent is not None
                if moved is None and abs(sent[self._element] - rest) > self._threshold:
                    moved = now
            seen = self._robot.read()
            row = self._clock.now(), seen.capture_time, float(self._pose()[self._element])
            self._rows.append(row)
            self._clock.sleep_until(self._clock.now() + POLL)
        return moved

    def _pose(self) -> np.ndarray:
        pose = self._robot.pose()
        assert pose is not None
        return pose


def write_into(file: Path, latencies: dict[str, float]) -> list[str]:
    """Replace the lines of a robot's YAML that hold latencies; returns the names that it has."""
    text, found = file.read_text(), []
    for name, seconds in latencies.items():
        text, n = re.subn(
            rf"(?m)^({name}:)[ \t]*[^#\n]*?([ \t]*#.*)?$",
            lambda m, s=seconds: f"{m[1]} {s:.4f}{m[2] or ''}",
            text,
        )
        found += [name] * (n > 0)
    write_text(file, text)
    return found


def run(cfg: DictConfig) -> dict:
    """Measure as configured; returns what calibrate.json holds."""
    for name in ("repeats", "seconds", "threshold"):
        if not cfg[name] > 0:
            raise ValueError(f"{name} is {cfg[name]}, it must be positive")
    into = None if cfg.into is None else Path(str(cfg.into))
    if into is not None and not into.is_file():
        raise ValueError(f"into is {into}, which is no file: give a robot's YAML, or into=null")
    clock = WallClock()
    robot = instantiate(cfg.robot)(
        maker(cfg, None), clock=clock.now, read_contract=Contract.from_json
    )
    try:
        action = robot.contract.action
        if action.kind != "absolute" or not 0 <= cfg.element < action.size:
            raise ValueError(
                f"element is {cfg.element} of {action.size} {action.kind} ones: give one of an "
                f"absolute action"
            )
        governor = instantiate(cfg.governor)(action=action, control_dt=robot.contract.control_dt)
        governed = Governed(cast(Robot, robot), governor)
        out = out_dir(cfg, "calibrate")
        stepping = Steps(
            cast(Robot, robot),
            governed,
            clock,
            element=cfg.element,
            threshold=cfg.threshold,
            seconds=cfg.seconds,
        )
        steps, rng = [], np.random.default_rng(0)
        with (
            emergency_stop_on_signal(governed),
            progress_bar(total=cfg.repeats, unit="step") as bar,
        ):
            for number in range(cfg.repeats):
                robot.reset(cfg.seed + number // 2)
                governed.arm()
                try:
                    to_or_fro = cfg.amplitude * (-1) ** number
                    steps.append(stepping.take(to_or_fro, phase=rng.random()))
                finally:
                    stepping.come_to_rest()
                bar.update(1)
    finally:
        robot.close()
    measured = {
        "observation_latency": observation_latency(steps),
        "command_latency": command_latency(steps, threshold=cfg.threshold),
    }
    results = {name: asdict(latency) for name, latency in measured.items()}
    write_json(out / "calibrate.json", {**results, "fingerprint": fingerprint()})
    for name, latency in measured.items():
        print(f"{name}: {latency.middle:.4f} s, between {latency.low:.4f} and {latency.high:.4f}")
    if into is not None:
        found = write_into(into, {name: latency.middle for name, latency in measured.items()})
        print(f"written into {into}: {', '.join(found) or 'nothing, it has no such lines'}")
    return results


def main() -> None:
    """Entry point."""
    entry("calibrate", run)


if __name__ == "__main__":
    main()
