"""Who plans for `cadence run`: a checkpoint or a package in this process, or a policy server."""

import contextlib
import os
from collections.abc import Iterator

from omegaconf import DictConfig

from data.types import Contract
from policy.checkpoint_planner import checkpoint_planner
from policy.entry import compose_config, plain
from policy.foresight import check_has_delays
from policy.packaged.manifest import is_package, read_manifest
from policy.packaged_planner import package_planner
from policy.planning import AgentPlanner
from policy.serve import read_token
from policy.serving.client import RemotePlanner
from policy.tasks import check_told
from policy.types import Planner

# Settings of whoever plans.
OF_THE_PLANNER = (
    "sampler",
    "engine",
    "urgent",
    "action_horizon",
    "goal_weight",
    "device",
    "threads",
)


@contextlib.contextmanager
def planner_of(cfg: DictConfig, robot: Contract) -> Iterator[Planner]:
    """Who plans: a checkpoint in this process, or a policy server.

    Raises:
        ValueError: neither or both are given.
        ContractError: what it was trained for is not what the robot has.
        PlannerError: the server cannot be reached, or refuses.
    """
    if (cfg.checkpoint is None) == (cfg.policy is None):
        raise ValueError(
            f"checkpoint is {cfg.checkpoint}, policy is {cfg.policy}: give one of checkpoint=DIR "
            f"and policy=ws://HOST:PORT"
        )
    if cfg.seam.foresight:
        check_has_delays(is_synchronous=cfg.seam.manner.is_synchronous)
    if cfg.policy is not None:
        _check_left_to_server(cfg)
        if cfg.seam.foresight:
            raise ValueError(
                "this seam needs foresight, and the policy runs in a server: give foresight=true "
                "to cadence serve, and seam=none here"
            )
        token = read_token(cfg.token_file, cfg.token_env) or ""
        with RemotePlanner(
            cfg.policy, robot, token=token, deadline=cfg.deadline, name=f"cadence run {os.getpid()}"
        ) as remote:
            yield remote
        return
    this = f"checkpoint {cfg.checkpoint}"

    def check(planner: AgentPlanner) -> None:
        check_told(planner.contract, robot, this=this, that="the robot")
        planner.contract.check(robot, this=this, that="the robot")

    if is_trained(cfg):
        local = checkpoint_planner(cfg, foresight=cfg.seam.foresight, check=check)
    else:
        local = package_planner(cfg, "run")
        check(local)
        device = read_manifest(str(cfg.checkpoint))[0].device
        print(f"device: {device}, {local.agent.calls}")
    local.warm_up()
    yield local


def _check_left_to_server(cfg: DictConfig) -> None:
    """Raise ValueError where something is set that a policy server has decided."""
    asked, usual = plain(cfg), plain(compose_config("run", ["env=pillar"]))
    for name in OF_THE_PLANNER:
        if asked[name] != usual[name]:
            raise ValueError(
                f"{name} is set here, and the policy runs in a server, which it does not reach: "
                f"give it to cadence serve, and leave {name} as it is here"
            )


def is_trained(cfg: DictConfig) -> bool:
    """Whether the planner is a checkpoint, whose network an engine computes."""
    return cfg.checkpoint is not None and not is_package(str(cfg.checkpoint))
