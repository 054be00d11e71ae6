"""Episodes in the real control loop, on a virtual clock, with delays injected.

The loop, its threads and mailboxes and the governor are those that control a robot; only time is
simulated. An episode's result depends on the checkpoint, the settings and its seed alone.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from data.types import Contract
from envs.robots.sim import SimRobot
from envs.vector import MakeEnv
from policy.control.clock import VirtualClock
from policy.control.delay import DelayEstimate
from policy.control.governed import Governed
from policy.control.governor import Governor
from policy.control.inference import Inference
from policy.control.injected import Faults, Injected
from policy.control.latency import TimingLog
from policy.control.loop import control_loop
from policy.control.manner import Manner
from policy.planning import AgentPlanner
from policy.play import Episode
from policy.progress import progress_bar
from policy.types import Robot

LONGEST = 1_000_000  # ticks; environments end their episodes themselves


def play_async(
    planner: AgentPlanner,
    make_env: MakeEnv,
    seeds: Sequence[int],
    *,
    manner: Manner,
    make_delay: Callable[[], DelayEstimate],
    make_governor: Callable[[SimRobot[Contract]], Governor],
    faults: Faults,
    log: TimingLog,
    finished: list[Episode],
    is_interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, int]:
    """Play one episode per seed.

    Args:
        planner: whose chunks are executed.
        make_env: makes the environment, at the level of single actions.
        seeds: of the starts and of the policy's noise.
        manner: how the loop deals with delays.
        make_delay: makes the estimate of the delay, anew for each episode.
        make_governor: makes what every command passes.
        faults: what is injected.
        log: takes in the timing, in simulated seconds.
        finished: gets each episode as it ends, so that an interruption loses none.
        is_interrupted: asked at every tick; then the episode ends and counts for nothing.

    Returns:
        How often the governor met each reason to send something else.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """
    clock = VirtualClock()
    robot = SimRobot(make_env, clock=clock.now, read_contract=Contract.from_json)
    governed = Governed(cast(Robot, robot), make_governor(robot))
    with (
        contextlib.closing(robot),
        Inference(Injected(planner, faults, clock=clock), clock=clock) as inference,
        progress_bar(total=len(seeds), unit="episode") as bar,
    ):
        for epoch, seed in enumerate(seeds):
            robot.reset(seed)
            governed.arm()
            control_loop(
                governed,
                inference,
                clock=clock,
                horizons=planner.horizons,
                manner=manner,
                delay=make_delay(),
                n_ticks=LONGEST,
                log=log,
                epoch=epoch,
                seed=seed,
                is_over=lambda: robot.episode_over or is_interrupted(),
            )
            if is_interrupted():
                raise KeyboardInterrupt
            if governed.fault is not None:
                governed.reset()
            finished.append(
                Episode(
                    seed,
                    score=robot.score,
                    success=robot.is_success,
                    length=robot.length,
                    mode=robot.mode,
                    total=robot.total,
                )
            )
            n_successes = sum(episode.success for episode in finished)
            bar.set_postfix_str(f"{n_successes} of {len(finished)} succeeded", refresh=False)
            bar.update(1)
    return {reason.value: n for reason, n in governed.governor.counts.items() if n}


def relative_jumps(log: TimingLog) -> dict[str, float]:
    """Jump from action to action at seams over that within chunks: of the largest, of the p99."""
    seam, inner = log.seam_jumps.summary(), log.inner_jumps.summary()
    if seam is None or inner is None or inner.p99 == 0:
        return {}
    return {
        "max": float(np.divide(seam.max, inner.max)),
        "p99": float(np.divide(seam.p99, inner.p99)),
    }
