"""The tasks of a verb: none, one, or several of one environment, each after the other."""

from collections.abc import Sequence
from functools import partial

import gymnasium
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from data.joint_contract import TASK
from data.types import Contract, ContractError
from envs.vector import MakeEnv


def tasks_of(cfg: DictConfig) -> list[str | None]:
    """The names that `task` gives, or else the environment's own `tasks`; [None] for neither.

    Raises:
        ValueError: an empty list.
    """
    listed = cfg.env.get("tasks") if cfg.task is None else cfg.task
    if not isinstance(listed, ListConfig):
        return [cfg.task]
    if not listed:
        raise ValueError("task=[] names no task: give at least one")
    return list(listed)


def maker(cfg: DictConfig, task: str | None) -> MakeEnv:
    """What makes the environment of one of `tasks_of`.

    Raises:
        ValueError: the environment holds one task only, and another is asked for; or, when one is
            made, it does not take its settings.
    """
    if task is None:
        make = instantiate(cfg.env)
    elif "task" not in cfg.env:
        raise ValueError(f"env {cfg.env._target_} holds one task only: leave out task={task}")
    else:
        make = instantiate(cfg.env, task=task)
    settings = [str(key) for key in cfg.env if not str(key).startswith("_")]
    return partial(_made, make, name=str(cfg.env.get("id", cfg.env._target_)), settings=settings)


def _made(make: MakeEnv, *, name: str, settings: Sequence[str], **options: object) -> gymnasium.Env:
    """An environment; ValueError where it does not take its settings."""
    try:
        return make(**options)
    except TypeError as error:
        raise ValueError(
            f"the environment {name} does not take its settings, which are {', '.join(settings)}: "
            f"leave out or rename the one named here: {error}"
        ) from error


def check_told(needed: Contract, offered: Contract, *, this: str, that: str) -> None:
    """Raise ContractError where a policy must be told its task and the environment does not.

    Args:
        needed: contract of the policy.
        offered: contract of the environment.
        this: name of the policy for the message.
        that: name of the environment.
    """
    field = needed.observation.get(TASK)
    if field is None or TASK in offered.observation:
        return
    tasks = field.frame.replace(", ", ",")
    raise ContractError(
        f"{this} needs the field {TASK!r}, which {that} lacks: it is told which of {field.frame} "
        f"this is; give 'env.tasks=[{tasks}]' where the environment holds these tasks "
        f"(env=metaworld), or env=told env@env.env=ENV task=NAME 'env.tasks=[{tasks}]'"
    )


def joint_name(tasks: Sequence[str | None]) -> str:
    """How a contract names several tasks; `data.mixture` and `policy.evaluate` read it."""
    return ", ".join(map(str, tasks))
