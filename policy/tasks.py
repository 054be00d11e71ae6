"""The tasks of a verb: none, one, or several of one environment, each after the other."""

from collections.abc import Sequence

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

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
        ValueError: the environment holds one task only, and another is asked for.
    """
    if task is None:
        return instantiate(cfg.env)
    if "task" not in cfg.env:
        raise ValueError(f"env {cfg.env._target_} holds one task only: leave out task={task}")
    return instantiate(cfg.env, task=task)


def joint_name(tasks: Sequence[str | None]) -> str:
    """How a contract names several tasks; `data.mixture` and `policy.evaluate` read it."""
    return ", ".join(map(str, tasks))
