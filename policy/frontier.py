r"""What each sampler gives for what it costs, on one checkpoint: success, calls, time, reaction.

    cadence frontier checkpoint=outputs/train/latest env=pillar
    cadence frontier checkpoint=... env=gym_pusht suite=every_tick episodes=200
    cadence frontier checkpoint=... env=pillar \
        'suite.rows=[{sampler: rti, set: [n_steps=2], action: 4}, {sampler: ddim_8, action: 4}]'

A suite (configs/suite) is a list of rows: a sampler, settings of it that differ from its file,
executed actions per chunk, and control steps from an observation to the first action of its chunk.
For each row:

* success and score over the same unseen starts, with 95 % intervals, and the ways taken;
* denoiser calls per executed action, at a steady pace and in all (starts included);
* time of one chunk at batch 1, warm and synchronised: median and 99th percentile;
* jump: root mean square distance of a new plan from the last, where it takes over, per element in
  the network's scale;
* reaction: the share of the wanted answer to a displaced object that the first action executed
  after it shows, and the ticks until half of it is executed (see `policy.reaction`).

Writes frontier.json after every row, frontier.txt and frontier.png. `out=DIR` of an interrupted run
goes on with the rows that are missing.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from envs.vector import MakeEnv, make_vec
from policy.agent import Agent
from policy.bench import percentiles_ms
from policy.build import chunk_space, from_checkpoint
from policy.checkpoint import LoadedCheckpoint, load
from policy.durable import write_json, write_text
from policy.entry import compose_sampler, entry, out_dir, pick_device, plain, use_threads
from policy.evaluate import check_env, summarise
from policy.fingerprint import fingerprint
from policy.frontier_figure import draw, table
from policy.model import DiffusionPolicy
from policy.play import Episode, Executor, check_delay, play
from policy.reaction import can_displace, measure_reaction
from policy.types import Sampler

RESULTS = "frontier.json"
ROW = {"sampler": None, "set": [], "action": None, "delay": 0}


def read_rows(cfg: DictConfig) -> list[dict]:
    """The rows of a suite, complete.

    Raises:
        ValueError: there are none, one has an unknown entry, or one lacks its sampler.
    """
    rows = OmegaConf.to_container(cfg.suite.rows, resolve=True)
    assert isinstance(rows, list)
    if not rows:
        raise ValueError("the suite has no rows: give suite.rows=[{sampler: ddim_8, action: 8}]")
    for row in rows:
        unknown = sorted(set(row) - set(ROW))
        if unknown or "sampler" not in row:
            raise ValueError(f"a row is {row}: it needs a sampler, and may have {sorted(ROW)}")
    return [{**ROW, **row} for row in rows]


def name_of(row: dict) -> str:
    """A row in one line."""
    delay = f" late by {row['delay']}" if row["delay"] else ""
    settings = " ".join(["", *row["set"]])
    return f"{row['sampler']}{settings}, {row['action']} executed{delay}"


class Bench:
    """One checkpoint in one environment, ready to measure rows."""

    def __init__(self, cfg: DictConfig):
        self._cfg = cfg
        self._device = pick_device(cfg.device)
        self._loaded: LoadedCheckpoint = load(cfg.checkpoint)
        self._policy: DiffusionPolicy = from_checkpoint(self._loaded)
        self._make_env: MakeEnv = instantiate(cfg.env)
        self.modes = check_env(
            self.agent(ROW | {"sampler": "ddim_8"}), self._make_env, checkpoint=cfg.checkpoint
        )
        self._can_displace = can_displace(self._make_env)

    def agent(self, row: dict, *, rows: int | None = None) -> Agent:
        """The agent of a row.

        Raises:
            ValueError: the sampler does not fit the checkpoint or the row.
        """
        space = chunk_space(self._loaded, action_horizon=row["action"], device=self._device)
        make_sampler: Callable[..., Sampler] = instantiate(
            compose_sampler(row["sampler"], row["set"])
        )
        return Agent(
            self._policy,
            make_sampler(space=space),
            horizons=space.horizons,
            device=self._device,
            rows=self._cfg.rows if rows is None else rows,
        )

    def measure(self, row: dict) -> dict:
        """Everything about a row."""
        agent = self.agent(row)
        row = {**row, "action": agent.horizons.action}
        episodes, executor = self._play(agent, row["delay"])
        return {
            **row,
            "name": name_of(row),
            "nfe": agent.nfe,
            "start_nfe": agent.sampler.start_nfe,
            "calls_per_action": agent.nfe / agent.horizons.action,
            "calls_per_action_in_all": agent.calls_in_all([e.length for e in episodes]),
            **summarise(episodes, self.modes),
            "jump": _jump(agent, executor),
            "latency": self._latency(row),
            "reaction": self._reaction(agent, row["delay"]),
            "episodes": [[e.seed, e.score, e.success, e.length, e.mode] for e in episodes],
        }

    def _play(self, agent: Agent, delay: int) -> tuple[list[Episode], Executor]:
        cfg, finished = self._cfg, []
        envs = make_vec(
            self._make_env,
            min(cfg.num_envs, cfg.episodes),
            horizons_obs=agent.horizons.obs,
            horizons_action=agent.horizons.action,
        )
        seeds = range(cfg.seed, cfg.seed + cfg.episodes)
        try:
            executor = play(agent, envs, seeds, inference_delay=delay, finished=finished)
        finally:
            envs.close()
        return sorted(finished, key=lambda episode: episode.seed), executor

    def _latency(self, row: dict) -> dict:
        agent = self.agent(row, rows=1)
        streams = agent.start([0])
        observation = {
            name: np.zeros((1, agent.horizons.obs, *field.shape), dtype=field.dtype)
            for name, field in agent.contract.observation.items()
        }

        def tick() -> None:
            agent.chunk(streams, observation)
            agent.shift(streams, agent.horizons.action)

        return percentiles_ms(tick, repeats=self._cfg.repeats)

    def _reaction(self, agent: Agent, delay: int) -> dict | None:
        cfg = self._cfg.reaction
        if not self._can_displace or cfg.episodes < 1:
            return None
        measured = measure_reaction(
            agent,
            self.agent(ROW | {"sampler": "ddim_16"}, rows=64),
            self._make_env,
            range(cfg.seed, cfg.seed + cfg.episodes),
            inference_delay=delay,
            first_tick=cfg.first_tick,
            n_ticks=cfg.ticks,
            samples=cfg.samples,
        )
        return {
            "first": measured.curve()[0],
            "first_interval": measured.interval(0),
            "within_2": measured.curve()[2],
            "within_2_interval": measured.interval(2),
            "delay": measured.delay(),
            "curve": measured.curve(),
        }


def _jump(agent: Agent, executor: Executor) -> float | None:
    """Root mean square jump from plan to plan in the network's scale; None if plans never meet."""
    if not executor.jumps:
        return None
    jumps = torch.from_numpy(np.concatenate(executor.jumps)).to(agent.device)
    scaled = agent.policy.chunk(jumps) - agent.policy.chunk(torch.zeros_like(jumps))
    return scaled.square().mean().sqrt().item()


def earlier(cfg: DictConfig, settings: dict) -> list[dict]:
    """Rows that an interrupted run in the same folder has measured.

    Raises:
        ValueError: the folder holds results of other settings.
    """
    file = Path(str(cfg.out or "")) / RESULTS
    if cfg.out is None or not file.is_file():
        return []
    results = json.loads(file.read_text())
    if results["settings"] != settings:
        raise ValueError(f"{file} holds results of other settings: choose another folder (out=)")
    return results["rows"]


def run(cfg: DictConfig) -> dict:
    """Measure all rows; returns what frontier.json holds."""
    if cfg.episodes < 1:
        raise ValueError(f"episodes is {cfg.episodes}, it must be at least 1")
    use_threads(cfg.threads)
    bench, wanted = Bench(cfg), read_rows(cfg)
    for row in wanted:  # An impossible row is refused before the first is measured.
        check_delay(row["delay"], bench.agent(row).horizons)
    settings = {
        "checkpoint": str(cfg.checkpoint),
        "env": plain(cfg.env),
        "episodes": cfg.episodes,
        "seed": cfg.seed,
        "reaction": plain(cfg.reaction),
    }
    rows = earlier(cfg, settings)
    out = out_dir(cfg, "frontier")
    results = {"settings": settings, "rows": rows, "fingerprint": fingerprint()}
    for row in wanted:
        if any(
            all(done[key] == row[key] for key in ("sampler", "set", "delay"))
            and row["action"] in (None, done["action"])
            for done in rows
        ):
            continue
        print(name_of(row))
        rows.append(bench.measure(row))
        write_json(out / RESULTS, results)
    write_text(out / "frontier.txt", table(rows) + "\n")
    draw(rows, out / "frontier.png", title=f"{cfg.checkpoint}, {cfg.episodes} starts")
    print(table(rows))
    print(f"figure: {out / 'frontier.png'}")
    return results


def main() -> None:
    """Entry point."""
    entry("frontier", run)


if __name__ == "__main__":
    main()
