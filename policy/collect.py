"""Record demonstrations of an environment's scripted experts into a store.

    cadence collect env=pillar starts=100
    cadence collect env=metaworld 'task=[reach-v3,push-v3]' starts=20
    cadence collect env=metaworld_10 episodes=50     # all of its tasks, into one store
    cadence collect env=pillar noise=0.1 keep=all    # poor demonstrations, to be improved by reward

Start i is seed `seed + i`. Each expert of the environment records each start, so a task with two
ways gives two demonstrations of every start. Episodes that fail are counted and left out
(`keep=all` keeps them); `episodes=50` ends a task once so many are kept. An episode is in the store
once it is whole: after Ctrl-C or a crash, the same command with `out=` the same folder goes on
where it stopped.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from data.codec import Codec
from data.record import Expert, RecordReport, contract_of, record
from data.store import EpisodeStore
from data.types import Contract, ContractError
from policy.entry import entry, out_dir, pick_device
from policy.progress import progress_bar
from policy.tasks import joint_name, maker, tasks_of


def record_task(
    cfg: DictConfig, path: Path, task: str | None, tasks: Sequence[str | None]
) -> RecordReport:
    """Record all starts of one task into the store at `path`, which is for all of `tasks`."""
    env = maker(cfg, task)()
    try:
        experts = _experts(env, cfg)
        store = _open(path, contract_of(env), tasks, codec=instantiate(cfg.codec))
        seeds = range(cfg.seed, cfg.seed + cfg.starts)
        n_episodes = len(seeds) * len(experts)
        with progress_bar(total=n_episodes, unit="episode", description=task) as bar:
            return record(
                env,
                experts,
                store,
                seeds=seeds,
                keep=cfg.keep,
                enough=cfg.episodes,
                progress=lambda _: bar.update(),
            )
    finally:
        env.close()


def _check_env(cfg: DictConfig, task: str | None) -> None:
    """Refuse an environment that cannot be recorded before a folder is made for it.

    Raises:
        ContractError: it does not say what its numbers mean.
        ValueError: it does not exist, or has no expert.
    """
    env = maker(cfg, task)()
    try:
        _experts(env, cfg)
        contract_of(env)
    finally:
        env.close()


def _experts(env: gym.Env, cfg: DictConfig) -> dict:
    try:
        experts = env.get_wrapper_attr("experts")
    except AttributeError:
        raise ValueError(
            f"the environment {cfg.env._target_} has no scripted expert: record it by other means, "
            f"or give its class a method experts()"
        ) from None
    return {name: _noisy(make, cfg.noise, env.action_space) for name, make in experts().items()}


def _noisy(
    make: Callable[[np.random.Generator], Expert], noise: float, space: gym.Space
) -> Callable[[np.random.Generator], Expert]:
    """What makes an expert whose hand is unsteady, by `noise` of half the range of its actions."""
    if noise == 0:
        return make
    assert isinstance(space, gym.spaces.Box)
    std = noise * (space.high - space.low) / 2

    def make_noisy(rng: np.random.Generator) -> Expert:
        expert = make(rng)
        return lambda fields: expert(fields) + std * rng.standard_normal(std.shape)

    return make_noisy


def _open(
    path: Path, contract: Contract, tasks: Sequence[str | None], *, codec: Codec
) -> EpisodeStore:
    if not path.exists():
        if len(tasks) > 1:
            contract = replace(contract, task=joint_name(tasks))
        return EpisodeStore.create(path, contract, codec=codec)
    store = EpisodeStore.open(path, mode="a")
    contract.check(store.contract, this="the environment", that=f"the store {path}")
    if contract.task not in (store.contract.task, *store.contract.task.split(", "), *tasks):
        raise ContractError(
            f"the store {path} holds {store.contract.task!r}, this environment is "
            f"{contract.task!r}: choose another out=DIR"
        )
    print(f"going on after {store.n_episodes} episodes")
    return store


def describe(outcome: RecordReport, cfg: DictConfig) -> str:
    """What became of the episodes, in words."""
    kept = ", ".join(f"{n} by {expert}" for expert, n in outcome.kept.items()) or "none"
    text = f"recorded: {kept}; without success: {outcome.n_failed}"
    if cfg.keep == "success" and outcome.n_failed and not outcome.n_kept + outcome.n_skipped:
        text += "; keep=all keeps them"
    if outcome.n_skipped:
        text += f"; there before: {outcome.n_skipped}"
    if cfg.episodes and outcome.fewest < cfg.episodes and not outcome.is_interrupted:
        text += f"; fewer than episodes={cfg.episodes}, which needs more than starts={cfg.starts}"
    if outcome.n_clipped:
        text += f"; {outcome.n_clipped} actions moved to the border of the action space"
    return text


def run(cfg: DictConfig) -> Path:
    """Collect as configured; returns the path of the store."""
    if cfg.starts < 1:
        raise ValueError(f"starts is {cfg.starts}, it must be at least 1")
    if cfg.episodes is not None and not (type(cfg.episodes) is int and cfg.episodes >= 1):
        raise ValueError(f"episodes is {cfg.episodes!r}, it must be a number from 1 on, or null")
    if cfg.keep not in ("success", "all"):
        raise ValueError(f"keep is {cfg.keep!r}, choose 'success' or 'all'")
    if not 0 <= cfg.noise <= 1:
        raise ValueError(f"noise is {cfg.noise}, it must be in 0..1")
    pick_device(cfg.device)
    tasks = tasks_of(cfg)
    _check_env(cfg, tasks[0])
    out = out_dir(cfg, "collect")
    path = out / "store.zarr"
    try:
        for task in tasks:
            outcome = record_task(cfg, path, task, tasks)
            print((f"{task}: " if len(tasks) > 1 else "") + describe(outcome, cfg))
            if outcome.is_interrupted:
                print(f"go on with the same command and out={out}")
                raise KeyboardInterrupt
    finally:
        if path.exists():
            store = EpisodeStore.open(path)
            print(f"store: {path} ({store.n_episodes} episodes, {store.n_steps} steps)")
    return path


def main() -> None:
    """Entry point."""
    entry("collect", run)


if __name__ == "__main__":
    main()
