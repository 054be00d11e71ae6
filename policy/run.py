"""Control a robot in wall-clock time with a trained policy, and report the timing.

    cadence run checkpoint=outputs/train/latest env=pillar episodes=3
    cadence run checkpoint=outputs/train/latest env=arm robot=sim_process seam.manner.patience=0
    cadence run policy=ws://127.0.0.1:8765 env=pillar        # planned by `cadence serve`
    cadence run policy=ws://... env=arm robot=ur robot.host=192.168.1.5 governor=limited

Episode i starts from seed `seed + i`. The control thread observes and commands once a control
period; the policy plans beside it, and `seam` says what is done until its chunk is there and where
chunks meet. Nothing reaches the robot but what the governor (`governor`) lets through: it is
application-level protection, not a certified safety function, and a robot's own emergency stop
stays mandatory. Ctrl-C brings the robot to rest within its limits and keeps what was measured; so
does `kill -USR1 PID` as an emergency stop, at the next tick. A fault of the governor ends the run
with exit status 3. `engine` says how the network is computed (see `cadence serve --help`).
Latencies are of warm calls. Writes run.json; with `trace=true` also what was seen, planned and
sent, for `cadence view`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Protocol, cast

from hydra.utils import instantiate
from omegaconf import DictConfig

from data.types import Contract
from policy.control.clock import WallClock
from policy.control.delay import DelayEstimate
from policy.control.governed import Governed
from policy.control.inference import Inference
from policy.control.latency import TimingLog
from policy.control.loop import control_loop
from policy.control.manner import Manner
from policy.control_thread import (
    before_others,
    emergency_stop_on_signal,
    logged_elsewhere,
    undisturbed,
)
from policy.durable import write_json
from policy.entry import entry, out_dir, plain, use_threads
from policy.fingerprint import fingerprint
from policy.interruption import Interruption
from policy.planning import AgentPlanner
from policy.run_planner import is_trained, planner_of
from policy.run_report import Episode, refusals_of, summary_line, timing_table
from policy.tasks import maker
from policy.telemetry import Telemetry
from policy.trace import Trace, TracedPlanner
from policy.types import Planner, Robot

FAULT_STATUS = 3


class EpisodicRobot(Robot, Protocol):
    """A robot that plays episodes, as those of envs/robots do."""

    episode_over: bool
    is_success: bool
    clipped: int
    mode: int

    def reset(self, seed: int) -> None:
        """Start a new episode."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def control_episodes(
    robot: EpisodicRobot,
    governed: Governed,
    inference: Inference,
    planner: Planner,
    *,
    manner: Manner,
    delay: DelayEstimate,
    seeds: Sequence[int],
    seconds: float,
    log: TimingLog,
    finished: list[Episode],
    is_interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """One episode per seed in wall-clock time; a fault of the governor ends them.

    Args:
        robot: on the clock of this process (`WallClock`).
        governed: the same robot behind its governor.
        inference: of the planner, on that clock.
        planner: tells the horizons.
        manner: how delays are dealt with.
        delay: the estimate, which learns.
        seeds: of the starts and of the policy's noise.
        seconds: longest episode.
        log: takes in the timing.
        finished: gets each episode as it ends, so that an interruption loses none.
        is_interrupted: asked at every tick; then the robot is brought to rest.

    Raises:
        KeyboardInterrupt: it was interrupted, and the robot rests.
    """
    n_ticks = math.ceil(seconds / robot.contract.control_dt)
    for epoch, seed in enumerate(seeds):
        if governed.fault is not None:  # Somebody stopped it in between.
            return
        robot.reset(seed)
        governed.arm()
        with undisturbed():
            ticks = control_loop(
                governed,
                inference,
                clock=WallClock(),
                horizons=planner.horizons,
                manner=manner,
                delay=delay,
                n_ticks=n_ticks,
                log=log,
                epoch=epoch,
                seed=seed,
                is_over=lambda: robot.episode_over or is_interrupted(),
            )
        if is_interrupted():
            raise KeyboardInterrupt
        fault = governed.fault
        finished.append(
            Episode(
                seed,
                robot.is_success,
                ticks,
                robot.clipped,
                robot.mode,
                fault.value if fault else "",
            )
        )
        print(f"start {seed}: {'success' if robot.is_success else 'no success'}, {ticks} ticks")
        if fault is not None:
            print(f"the governor stopped the robot: {fault.value}; see the log above")
            return


def run(cfg: DictConfig) -> dict | int:
    """Control as configured; returns what run.json holds, or the exit status of a fault."""
    for name in ("episodes", "seconds"):
        if cfg[name] <= 0:
            raise ValueError(f"{name} is {cfg[name]}, it must be positive")
    use_threads(cfg.threads)
    clock = WallClock()
    robot: EpisodicRobot = instantiate(cfg.robot)(
        maker(cfg, None), clock=clock.now, read_contract=Contract.from_json
    )
    log = TimingLog(robot.contract.control_dt)
    finished: list[Episode] = []
    try:
        governor = instantiate(cfg.governor)(
            action=robot.contract.action, control_dt=robot.contract.control_dt
        )
        trace = Trace(robot.contract) if cfg.trace else None
        governed = Governed(
            cast(Robot, robot), governor, watch=None if trace is None else trace.add_sent
        )
        manner, delay = instantiate(cfg.seam.manner), instantiate(cfg.seam.delay)
        with (
            emergency_stop_on_signal(governed),
            planner_of(cfg, robot.contract) as planner,
        ):
            out = out_dir(cfg, "run")
            try:
                with (
                    Inference(
                        TracedPlanner(planner, trace) if trace else planner, clock=clock
                    ) as inference,
                    logged_elsewhere(),
                    Interruption() as interruption,
                    Telemetry(planner, governed, log),
                    before_others(cfg.realtime),
                ):
                    control_episodes(
                        robot,
                        governed,
                        inference,
                        planner,
                        manner=manner,
                        delay=delay,
                        seeds=range(cfg.seed, cfg.seed + cfg.episodes),
                        seconds=cfg.seconds,
                        log=log,
                        finished=finished,
                        is_interrupted=lambda: interruption.requested,
                    )
            finally:
                results = _results(cfg, planner, governed, log, finished)
                write_json(out / "run.json", results)
                print(timing_table(log))
                print(summary_line(governed, finished))
                if trace is not None:
                    trace.write(out, [asdict(episode) for episode in finished])
    finally:
        robot.close()
    return FAULT_STATUS if governed.fault is not None else results


def _results(
    cfg: DictConfig,
    planner: Planner,
    governed: Governed,
    log: TimingLog,
    finished: Sequence[Episode],
) -> dict:
    return {
        "episodes": [asdict(episode) for episode in finished],
        "complete": len(finished) == cfg.episodes and governed.fault is None,
        "fault": governed.fault.value if governed.fault else None,
        "refusals": refusals_of(governed),
        "timing": log.report().to_json(),
        "samples": {
            "period": log.periods.newest().tolist(),
            "latency": log.latencies.newest().tolist(),
            "delay": log.delays.newest().tolist(),
        },
        "action_horizon": planner.horizons.action,
        "nfe": planner.agent.nfe if isinstance(planner, AgentPlanner) else None,
        "checkpoint": None if cfg.checkpoint is None else str(cfg.checkpoint),
        "policy": cfg.policy,
        "engine": plain(cfg.engine) if is_trained(cfg) else None,
        "seam": plain(cfg.seam),
        "seed": cfg.seed,
        "fingerprint": fingerprint(),
    }


def main() -> None:
    """Entry point."""
    entry("run", run)


if __name__ == "__main__":
    main()
