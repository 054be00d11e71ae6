"""Measure a checkpoint on unseen starts: score and success with 95 % intervals, videos.

    cadence evaluate checkpoint=outputs/train/latest env=pillar episodes=100 seed=100000

Episode i starts from seed `seed + i`. Its result depends on the checkpoint, the sampler and that
seed, not on `num_envs`. An episode's score is its best reward (the protocol of Diffusion Policy,
RSS 2023); the score's interval is a bootstrap over episodes, the success rate's is Wilson's.

Writes results.json (episodes, score, success, their intervals, calls_per_action, fingerprint) and
videos/*.mp4. Ctrl-C keeps the finished episodes, marked as incomplete.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from data.record import contract_of
from envs.rendering import RenderingError
from envs.vector import make_vec
from policy.agent import Agent
from policy.entry import entry, out_dir, pick_device, use_threads
from policy.fingerprint import fingerprint
from policy.play import Episode, play
from policy.statistics import bootstrap_interval, wilson_interval
from policy.video import film


def summarise(episodes: Sequence[Episode], modes: Sequence[str] = ()) -> dict:
    """Score, success, their intervals, and the share of each way among the successes.

    Args:
        episodes: at least one.
        modes: names of the ways; index 0 is none.
    """
    scores = [e.score for e in episodes]
    successes = [e.success for e in episodes]
    summary = {
        "n_episodes": len(episodes),
        "score": float(np.mean(scores)),
        "score_interval": bootstrap_interval(scores),
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
    """The last line that `cadence evaluate` prints."""
    ways = "".join(f" {name} {share:.2f}" for name, share in results.get("modes", {}).items())
    return (
        f"success {results['success']:.3f} [{results['success_interval'][0]:.3f}, "
        f"{results['success_interval'][1]:.3f}]{ways}  "
        f"score {results['score']:.3f} [{results['score_interval'][0]:.3f}, "
        f"{results['score_interval'][1]:.3f}]  episodes {results['n_episodes']}  "
        f"calls per action {results['calls_per_action']:g}"
    )


def run(cfg: DictConfig) -> dict:
    """Evaluate as configured; returns what results.json holds."""
    if cfg.episodes < 1:
        raise ValueError(f"episodes is {cfg.episodes}, it must be at least 1")
    use_threads(cfg.threads)
    device = pick_device(cfg.device)
    agent = Agent.load(cfg.checkpoint, instantiate(cfg.sampler), device=device, rows=cfg.rows)
    make_env = instantiate(cfg.env)
    env = make_env()
    agent.contract.check(
        contract_of(env), this=f"checkpoint {cfg.checkpoint}", that="the environment"
    )
    modes = env.metadata.get("modes", ())
    env.close()
    action_horizon = agent.horizons.action if cfg.action_horizon is None else cfg.action_horizon
    if not 1 <= action_horizon <= agent.horizons.pred:
        raise ValueError(
            f"action_horizon is {action_horizon}, the checkpoint predicts {agent.horizons.pred} "
            f"actions: give 1..{agent.horizons.pred}"
        )
    out = out_dir(cfg, "evaluate")
    print(
        f"checkpoint: {cfg.checkpoint}, weights: ema, device: {device}, "
        f"{agent.nfe} calls per {action_horizon} actions"
    )
    envs = make_vec(
        make_env,
        min(cfg.num_envs, cfg.episodes),
        horizons_obs=agent.horizons.obs,
        horizons_action=action_horizon,
    )
    finished: list[Episode] = []
    seeds = range(cfg.seed, cfg.seed + cfg.episodes)
    try:
        play(agent, envs, seeds, action_horizon=action_horizon, finished=finished)
    except KeyboardInterrupt:
        print("\ninterrupted: the finished episodes are kept; short ones are over-represented")
        if not finished:
            raise
    finally:
        envs.close()
    results = {
        **summarise(sorted(finished, key=lambda e: e.seed), modes),
        "complete": len(finished) == cfg.episodes,
        "calls_per_action": agent.nfe / action_horizon,
        "nfe": agent.nfe,
        "action_horizon": action_horizon,
        "checkpoint": str(cfg.checkpoint),
        "env": str(cfg.env.get("id", cfg.env._target_)),
        "seed": cfg.seed,
        "episodes": [asdict(e) for e in sorted(finished, key=lambda e: e.seed)],
        "fingerprint": fingerprint(),
    }
    (out / "results.json").write_text(json.dumps(results, indent=1))
    if results["complete"]:
        _film(cfg, agent, make_env, out, action_horizon)
    print(f"results: {out / 'results.json'}")
    print(summary_line(results))
    return results


def _film(cfg: DictConfig, agent: Agent, make_env, out: Path, action_horizon: int) -> None:
    """Videos of the first episodes, played again; where nothing renders, say so and go on."""
    try:
        for seed in range(cfg.seed, cfg.seed + min(cfg.videos, cfg.episodes)):
            path = out / "videos" / f"seed_{seed}.mp4"
            film(agent, make_env, seed=seed, action_horizon=action_horizon, path=path)
            print(f"video: {path}")
    except RenderingError as e:
        print(f"no video: {e}")


def main() -> None:
    """Entry point."""
    entry("evaluate", run)


if __name__ == "__main__":
    main()
