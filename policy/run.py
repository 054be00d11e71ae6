"""Control a robot in wall-clock time with a trained policy, and report the timing.

    cadence run checkpoint=outputs/train/latest env=pillar episodes=3
    cadence run checkpoint=outputs/train/latest env=pillar robot.command_latency=0.05

Episode i starts from seed `seed + i`. The loop observes and commands once a control period; when a
chunk's executed actions are consumed it waits for the policy, and a tick that ends meanwhile counts
as missed. Latencies are of warm calls. Writes run.json. Ctrl-C stops the robot and keeps what was
measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from data.types import Contract
from envs.robots.sim import SimRobot
from policy.agent import Agent
from policy.control.clock import WallClock
from policy.control.latency import Summary, TimingLog
from policy.control.loop import control_loop
from policy.durable import write_json
from policy.entry import entry, out_dir, pick_device, use_threads
from policy.fingerprint import fingerprint
from policy.tasks import check_told, maker
from policy.types import ActionChunk, Robot


@dataclass(frozen=True)
class Episode:
    """What became of one start on the robot.

    Args:
        seed: of the start and of the policy's noise.
        success: whether the task was done.
        ticks: control ticks that passed.
        clipped: commands that were moved to the robot's limits.
        mode: way taken, where the task has several; 0 is none.
    """

    seed: int
    success: bool
    ticks: int
    clipped: int
    mode: int


class StreamPolicy:
    """One stream of an agent, as the control loop asks for it.

    Args:
        agent: whose chunks are executed.
        seed: of the noise.
    """

    def __init__(self, agent: Agent, seed: int):
        self._agent = agent
        self._streams = agent.start([seed])
        self._tick: int | None = None

    def __call__(self, history: Mapping[str, np.ndarray], tick: int) -> ActionChunk:
        """The chunk for `tick`; the stream moves on by the ticks that passed since the last."""
        if self._tick is not None:
            passed = tick - self._tick
            if passed < self._agent.horizons.future:
                self._agent.shift(self._streams, passed)
            else:  # Nothing of the last plan is left.
                self._agent.renew(self._streams, 0)
                self._streams.ticks[0] += passed
        self._tick = tick
        batch = {name: values[None] for name, values in history.items()}
        actions = self._agent.chunk(self._streams, batch)[0]
        return ActionChunk(actions, tick, self._agent.contract)


def timing_table(log: TimingLog) -> str:
    """Period, latency and delay in milliseconds, and what was missed, for a terminal."""
    report = log.report()
    lines = [f"{'[ms]':<18}{'mean':>9}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}"]
    for name, summary in (
        (f"period (want {1e3 * report.control_dt:g})", report.period),
        ("policy latency", report.latency),
        ("command delay", report.delay),
    ):
        lines.append(f"{name:<18}{_milliseconds(summary)}")
    lines.append(
        f"commands {report.n_commands}  missed deadlines {report.n_missed}  "
        f"held {report.n_held}  refused chunks {report.n_unsafe}"
    )
    return "\n".join(lines)


def _milliseconds(summary: Summary | None) -> str:
    if summary is None:
        return "  no samples"
    values = (summary.mean, summary.p50, summary.p95, summary.p99, summary.max)
    return "".join(f"{1e3 * value:>9.2f}" for value in values)


def control_episodes(
    robot: SimRobot[Contract],
    agent: Agent,
    *,
    seeds: Sequence[int],
    seconds: float,
    log: TimingLog,
    finished: list[Episode],
) -> None:
    """One episode per seed on a simulated robot in wall-clock time.

    Args:
        robot: on the clock of this process (`WallClock`).
        agent: that plans.
        seeds: of the starts and of the policy's noise.
        seconds: longest episode.
        log: takes in the timing.
        finished: gets each episode as it ends, so that an interruption loses none.
    """
    n_ticks = round(seconds / robot.contract.control_dt)
    for seed in seeds:
        robot.reset(seed)
        _warm_up(robot, agent)
        ticks = control_loop(
            cast(Robot, robot),
            StreamPolicy(agent, seed),
            clock=WallClock(),
            horizons=agent.horizons,
            n_ticks=n_ticks,
            log=log,
            is_over=lambda: robot.episode_over,
        )
        finished.append(Episode(seed, robot.is_success, ticks, robot.clipped, robot.mode))
        print(f"start {seed}: {'success' if robot.is_success else 'no success'}, {ticks} ticks")


def _warm_up(robot: SimRobot[Contract], agent: Agent) -> None:
    """Plan once for nothing: the first calls of a network are slower than all others."""
    fields = robot.read().fields
    history = {k: np.stack([value] * agent.horizons.obs) for k, value in fields.items()}
    StreamPolicy(agent, 0)(history, 0)


def run(cfg: DictConfig) -> dict:
    """Control as configured; returns what run.json holds."""
    for name in ("episodes", "seconds"):
        if cfg[name] <= 0:
            raise ValueError(f"{name} is {cfg[name]}, it must be positive")
    use_threads(cfg.threads)
    device = pick_device(cfg.device)
    agent = Agent.load(
        cfg.checkpoint,
        instantiate(cfg.sampler),
        action_horizon=cfg.action_horizon,
        device=device,
        rows=1,
        goal_weight=cfg.goal_weight,
    )
    robot = instantiate(cfg.robot)(
        maker(cfg, None), clock=WallClock().now, read_contract=Contract.from_json
    )
    this = f"checkpoint {cfg.checkpoint}"
    check_told(agent.contract, robot.contract, this=this, that="the robot")
    agent.contract.check(robot.contract, this=this, that="the robot")
    out = out_dir(cfg, "run")
    print(f"device: {device}, {agent.calls}")
    log = TimingLog(robot.contract.control_dt)
    finished: list[Episode] = []
    try:
        control_episodes(
            robot,
            agent,
            seeds=range(cfg.seed, cfg.seed + cfg.episodes),
            seconds=cfg.seconds,
            log=log,
            finished=finished,
        )
    finally:
        robot.close()
        results = {
            "episodes": [asdict(episode) for episode in finished],
            "complete": len(finished) == cfg.episodes,
            "timing": log.report().to_json(),
            "samples": {"period": log.periods, "latency": log.latencies, "delay": log.delays},
            "nfe": agent.nfe,
            "action_horizon": agent.horizons.action,
            "checkpoint": str(cfg.checkpoint),
            "seed": cfg.seed,
            "fingerprint": fingerprint(),
        }
        write_json(out / "run.json", results)
        print(timing_table(log))
        print(
            f"successes {sum(e.success for e in finished)} of {len(finished)} episodes, "
            f"commands clipped to the limits: {sum(e.clipped for e in finished)}"
        )
    return results


def main() -> None:
    """Entry point."""
    entry("run", run)


if __name__ == "__main__":
    main()
