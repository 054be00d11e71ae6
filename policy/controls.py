"""Two ways to play the episodes of an evaluation: side by side, or in a robot's control loop."""

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Protocol

from hydra.utils import instantiate
from omegaconf import DictConfig

from data.types import Contract
from envs.robots.sim import SimRobot
from envs.vector import MakeEnv, make_vec
from policy.agent import Agent
from policy.async_play import play_async, relative_jumps
from policy.control import refusals
from policy.control.governor import Governor
from policy.control.injected import Faults
from policy.control.latency import TimingLog
from policy.control.manner import number
from policy.engine import agents_of
from policy.entry import compose_part, pick_device, plain, urgent_of
from policy.foresight import check_has_delays
from policy.interruption import Interruption
from policy.planning import AgentPlanner
from policy.play import Episode, play


class Control(Protocol):
    """Plays episodes as configured.

    Attributes:
        agent: whose chunks are executed.
        agents: all that are used; one for each number of decided actions.
    """

    agent: Agent
    agents: list[Agent]

    def measure(self, make_env: MakeEnv) -> list[Episode]:
        """The episodes by seed; after Ctrl-C those that were finished.

        Raises:
            KeyboardInterrupt: none was finished.
        """
        ...

    def facts(self) -> dict:
        """What is told of it beside the episodes, as JSON."""
        ...


class Lockstep:
    """Many environments side by side; each chunk is late by `inference_delay` steps.

    Args:
        cfg: of `cadence evaluate`.

    Raises:
        ValueError: a delay is given that only the other control looks at.
    """

    def __init__(self, cfg: DictConfig):
        if cfg.delay or any(cfg.faults.values()):
            raise ValueError(
                f"delay is {cfg.delay} and faults {plain(cfg.faults)}, but control=lockstep has "
                f"no clock: give control=async, or inference_delay={cfg.delay}"
            )
        for part, default in (("seam", "none"), ("governor", "open")):
            if plain(cfg[part]) != plain(compose_part(part, default)):
                raise ValueError(
                    f"{part} is changed, but control=lockstep looks at no {part}: give "
                    f"control=async, or leave {part}={default}"
                )
        self._cfg = cfg
        self.agent = Agent.load(
            cfg.checkpoint,
            instantiate(cfg.sampler),
            action_horizon=cfg.action_horizon,
            inference_delay=cfg.inference_delay,
            device=pick_device(cfg.device),
            rows=cfg.rows,
            goal_weight=cfg.goal_weight,
        )
        self.agents = [self.agent]

    def measure(self, make_env: MakeEnv) -> list[Episode]:
        """The episodes by seed; after Ctrl-C those that were finished."""
        cfg, finished = self._cfg, []
        envs = make_vec(
            make_env,
            min(cfg.num_envs, cfg.episodes),
            horizons_obs=self.agent.horizons.obs,
            horizons_action=self.agent.horizons.action,
        )
        try:
            play(self.agent, envs, _seeds(cfg), finished=finished)
        except KeyboardInterrupt:
            _interrupted(finished)
        finally:
            envs.close()
        return sorted(finished, key=lambda episode: episode.seed)

    def facts(self) -> dict:
        """Nothing more."""
        return {}


class AsyncLoop:
    """The control loop on a virtual clock, one episode after the other.

    Args:
        cfg: of `cadence evaluate`, or with its settings.

    Raises:
        ValueError: a delay is given that only the other control looks at.
    """

    def __init__(self, cfg: DictConfig):
        if cfg.inference_delay:
            raise ValueError(
                f"inference_delay is {cfg.inference_delay}, but control=async finds out by itself "
                f"how late chunks are: give delay={cfg.inference_delay}"
            )
        self._cfg = cfg
        for name, value in (("delay", cfg.delay), ("faults.jitter", cfg.faults.jitter)):
            if not 0 <= number(value) < math.inf:
                raise ValueError(f"{name} is {value} ticks, it must be a number of at least 0")
        self._manner = instantiate(cfg.seam.manner)
        if cfg.seam.foresight:
            check_has_delays(is_synchronous=self._manner.is_synchronous)
        instantiate(cfg.seam.delay)  # Wrong settings are told before a checkpoint is loaded.
        self._faults = Faults(
            least=cfg.delay,
            most=cfg.delay + cfg.faults.jitter,
            drop=cfg.faults.drop,
            stall=cfg.faults.stall,
            stall_ticks=cfg.faults.stall_ticks,
            seed=cfg.seed,
        )
        self._planner = AgentPlanner.load(
            cfg.checkpoint,
            instantiate(cfg.sampler),
            make_urgent=urgent_of(cfg),
            action_horizon=cfg.action_horizon,
            device=pick_device(cfg.device),
            goal_weight=cfg.goal_weight,
            foresight=cfg.seam.foresight,
        )
        self.agents = agents_of(self._planner)
        self.agent = self.agents[0]
        self.log = TimingLog(self.agent.contract.control_dt)
        self._refusals: dict[str, int] = {}

    def measure(self, make_env: MakeEnv) -> list[Episode]:
        """The episodes by seed; after Ctrl-C those that were finished."""
        cfg, finished = self._cfg, []

        def make_governor(robot: SimRobot[Contract]) -> Governor:
            return instantiate(cfg.governor)(
                action=robot.contract.action, control_dt=robot.contract.control_dt
            )

        try:
            with _quiet_refusals(), Interruption() as interruption:
                self._refusals = play_async(
                    self._planner,
                    make_env,
                    _seeds(cfg),
                    manner=self._manner,
                    make_delay=lambda: instantiate(cfg.seam.delay),
                    make_governor=make_governor,
                    faults=self._faults,
                    log=self.log,
                    finished=finished,
                    is_interrupted=lambda: interruption.requested,
                )
        except KeyboardInterrupt:
            _interrupted(finished)
        return sorted(finished, key=lambda episode: episode.seed)

    def facts(self) -> dict:
        """Delay, seam, governor, and the timing in simulated seconds."""
        return {
            "delay": self._cfg.delay,
            "faults": plain(self._cfg.faults),
            "seam_settings": plain(self._cfg.seam),
            "governor_settings": plain(self._cfg.governor),
            "max_delay": self._planner.max_delay,
            "timing": self.log.report().to_json(),
            "refusals": self._refusals,
            "relative_jumps": relative_jumps(self.log),
        }


@contextlib.contextmanager
def _quiet_refusals() -> Iterator[None]:
    """No line for each refusal: hours pass in a minute, and `facts` has the counts."""
    logger = logging.getLogger(refusals.__name__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _seeds(cfg: DictConfig) -> range:
    return range(cfg.seed, cfg.seed + cfg.episodes)


def _interrupted(finished: list[Episode]) -> None:
    """Say what an interruption leaves; raise KeyboardInterrupt where that is nothing."""
    print("\ninterrupted: the finished episodes are kept; short ones are over-represented")
    if not finished:
        raise KeyboardInterrupt
