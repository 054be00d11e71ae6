"""Measure a checkpoint on unseen starts: score and success with 95 % intervals, videos.

    cadence evaluate checkpoint=outputs/train/latest env=pillar episodes=100 seed=100000
    cadence evaluate checkpoint=outputs/train/latest env=metaworld_10 episodes=20  # of each task
    cadence evaluate checkpoint=... env=gym_pusht control=async delay=2 seam=blend
    cadence evaluate checkpoint=... env=pillar engine=fused engine.weights=int8

Episode i starts from seed `seed + i`. Its result depends on the checkpoint, the sampler and that
seed, not on `num_envs`. An episode's score is its best reward (the protocol of Diffusion Policy,
RSS 2023), its return the sum of them, printed where no episode succeeds. Their intervals are a
bootstrap over episodes, the success rate's is Wilson's. Of several tasks each is played from the
same seeds, and shown in a table besides the mean.

With `control=async` the loop that controls robots plays the episodes, one after the other, on a
virtual clock: its threads, mailboxes and governor are the real ones, each chunk is late by `delay`
ticks (`faults` has jitter, drops and stalls), and `seam` says how the loop deals with it. See also
`cadence delays`.

The network is computed as it is written, unless `engine` says how (see `cadence serve --help`):
so the success of smaller weights is measured.

Writes results.json (episodes, score, success, the return as total, their intervals,
calls_per_action, fingerprint) and videos/*.mp4. Ctrl-C keeps the finished episodes, marked as
incomplete.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from data.record import contract_of
from data.types import Contract
from envs.rendering import RenderingError
from envs.vector import MakeEnv
from policy.agent import Agent
from policy.controls import AsyncLoop, Control, Lockstep
from policy.durable import write_json
from policy.engine import use_engine
from policy.entry import entry, out_dir, pick_device, plain, use_threads
from policy.fingerprint import fingerprint
from policy.play import Episode
from policy.statistics import bootstrap_interval, wilson_interval
from policy.tasks import check_told, maker, tasks_of
from policy.video import film

CONTROLS: Mapping[str, Callable[[DictConfig], Control]] = {"lockstep": Lockstep, "async": AsyncLoop}


def summarise(episodes: Sequence[Episode], modes: Sequence[str] = ()) -> dict:
    """Score, return (`total`), success, their intervals, and each way's share of the successes.

    Args:
        episodes: at least one.
        modes: names of the ways; index 0 is none.
    """
    scores, totals = [e.score for e in episodes], [e.total for e in episodes]
    successes = [e.success for e in episodes]
    summary = {
        "n_episodes": len(episodes),
        "score": float(np.mean(scores)),
        "score_interval": bootstrap_interval(scores),
        "total": float(np.mean(totals)),
        "total_interval": bootstrap_interval(totals),
        "success": float(np.mean(successes)),
        "success_interval": wilson_interval(sum(successes), len(successes)),
        "mean_length": float(np.mean([e.length for e in episodes])),
    }
    if modes:
        taken = Counter(e.mode for e in episodes if e.success)
        summary["modes"] = {
            name: taken[i] / max(1, sum(successes)) for i, name in enumerate(modes) if i > 0
        }
    return summary


def summary_line(results: dict) -> str:
    """The last line that `cadence evaluate` prints; with the return where nothing succeeded."""
    low, high = results["total_interval"]
    total = "" if results["success"] else f"return {results['total']:.3f} [{low:.3f}, {high:.3f}]  "
    ways = "".join(f" {name} {share:.2f}" for name, share in results.get("modes", {}).items())
    return (
        f"success {results['success']:.3f} [{results['success_interval'][0]:.3f}, "
        f"{results['success_interval'][1]:.3f}]{ways}  {total}"
        f"score {results['score']:.3f} [{results['score_interval'][0]:.3f}, "
        f"{results['score_interval'][1]:.3f}]  episodes {results['n_episodes']}  "
        f"calls per action {results['calls_per_action']:g}"
    )


def task_table(tasks: Mapping[str, Mapping]) -> str:
    """One line per task: its success with interval, and the mean number of steps."""
    width = max(map(len, tasks))
    return "\n".join(
        f"{task:<{width}}  success {each['success']:.3f} [{each['success_interval'][0]:.3f}, "
        f"{each['success_interval'][1]:.3f}]  steps {each['mean_length']:.0f}"
        for task, each in tasks.items()
    )


def run(cfg: DictConfig) -> dict:
    """Evaluate as configured; returns what results.json holds."""
    if cfg.episodes < 1:
        raise ValueError(f"episodes is {cfg.episodes}, it must be at least 1")
    use_threads(cfg.threads)
    device = pick_device(cfg.device)
    engine = instantiate(cfg.engine)  # First, since it takes no time to be refused.
    control = control_of(cfg)
    agent = control.agent
    makers = {task: maker(cfg, task) for task in tasks_of(cfg)}
    modes: Sequence[str] = ()
    for make_env in makers.values():
        modes = check_env(agent.contract, make_env, checkpoint=cfg.checkpoint)
    out = out_dir(cfg, "evaluate")
    print(
        f"checkpoint: {cfg.checkpoint}, weights: {agent.weights}, device: {device}, {agent.calls}"
    )
    print(use_engine(control.agents, engine))
    by_task = measure_tasks(control.measure, makers, cfg)
    episodes = [episode for part in by_task.values() for episode in part]
    results = {
        **summarise(episodes, modes),
        "complete": len(episodes) == cfg.episodes * len(makers),
        "calls_per_action": agent.nfe / agent.horizons.action,
        "calls_per_action_in_all": agent.calls_in_all([e.length for e in episodes]),
        "nfe": agent.nfe,
        "start_nfe": agent.sampler.start_nfe,
        "action_horizon": agent.horizons.action,
        "inference_delay": cfg.inference_delay,
        "goal_weight": cfg.goal_weight,
        "control": cfg.control,
        "engine": plain(cfg.engine),
        **control.facts(),
        "checkpoint": str(cfg.checkpoint),
        "env": plain(cfg.env),
        "sampler": plain(cfg.sampler),
        "seed": cfg.seed,
        "tasks": {str(task): summarise(part, modes) for task, part in by_task.items() if task},
        "episodes": [
            {"task": task, **asdict(episode)} if task else asdict(episode)
            for task, part in by_task.items()
            for episode in part
        ],
        "fingerprint": fingerprint(),
    }
    try:
        write_json(out / "results.json", results)
    except OSError:
        print(summary_line(results))  # A full disk must not cost the answer.
        raise
    if results["complete"]:
        film_first(agent, makers, cfg, out / "videos")
    if len(makers) > 1:
        print(task_table(results["tasks"]))
    print(summary_line(results))
    if not results["complete"]:
        raise KeyboardInterrupt
    return results


def check_env(contract: Contract, make_env: MakeEnv, *, checkpoint: str) -> Sequence[str]:
    """The names of an environment's ways, where it offers what the checkpoint needs.

    Raises:
        ContractError: it does not; the message names both sides.
    """
    env = make_env()
    try:
        this, that = f"checkpoint {checkpoint}", "the environment"
        offered = contract_of(env)
        check_told(contract, offered, this=this, that=that)
        contract.check(offered, this=this, that=that)
        learned = contract.task
        if learned and offered.task and offered.task not in (learned, *learned.split(", ")):
            print(f"note: {this} learned {learned!r}, {that} is {offered.task!r}")
        return env.metadata.get("modes", ())
    finally:
        env.close()


def measure_tasks(
    measure: Callable[[MakeEnv], list[Episode]],
    makers: Mapping[str | None, MakeEnv],
    cfg: DictConfig,
) -> dict[str | None, list[Episode]]:
    """The episodes of each task in turn; after Ctrl-C those that were finished.

    Raises:
        KeyboardInterrupt: none was finished.
    """
    finished: dict[str | None, list[Episode]] = {}
    for number, (task, make_env) in enumerate(makers.items(), start=1):
        if len(makers) > 1:
            print(f"[{number}/{len(makers)}] {task}")
        try:
            finished[task] = measure(make_env)
        except KeyboardInterrupt:
            if not finished:
                raise
            break
        if len(finished[task]) < cfg.episodes:
            break
    return finished


def control_of(cfg: DictConfig) -> Control:
    """Who plays the episodes, as `control` says.

    Raises:
        ValueError: there is no such control, or a setting that it does not look at was changed.
    """
    if cfg.control not in CONTROLS:
        raise ValueError(f"control is {cfg.control!r}, choose one of {', '.join(CONTROLS)}")
    return CONTROLS[cfg.control](cfg)


def film_first(
    agent: Agent, makers: Mapping[str | None, MakeEnv], cfg: DictConfig, folder: Path
) -> None:
    """Videos of each task's first episodes, played again; where nothing renders, say so and go on.

    Args:
        agent: whose chunks are executed.
        makers: task -> what makes its environment.
        cfg: with the number of `videos`, of `episodes`, and the first `seed`.
        folder: of the files.
    """
    try:
        for task, make_env in makers.items():
            for seed in range(cfg.seed, cfg.seed + min(cfg.videos, cfg.episodes)):
                name = f"{task}_seed_{seed}" if len(makers) > 1 else f"seed_{seed}"
                film(agent, make_env, seed=seed, path=folder / f"{name}.mp4")
                print(f"video: {folder / name}.mp4")
    except (RenderingError, RuntimeError, OSError) as error:  # MuJoCo, pygame, the encoder
        print(f"no video: {error}")


def main() -> None:
    """Entry point."""
    entry("evaluate", run)


if __name__ == "__main__":
    main()
