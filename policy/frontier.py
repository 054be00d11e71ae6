r"""What each sampler gives for what it costs, on one checkpoint: success, calls, time, reaction.

    cadence frontier checkpoint=outputs/train/latest env=pillar
    cadence frontier checkpoint=... env=gym_pusht suite=every_tick episodes=200
    cadence frontier checkpoint=... env=pillar \
        'suite.rows=[{sampler: rti, set: {n_steps: 2}, action: 4}, {sampler: ddim_8, action: 4}]'

A suite (configs/suite) is a list of rows: a sampler, settings of it that differ from its file,
executed actions per chunk, control steps from an observation to the first action of its chunk, and
the weight of the goal where the policy has one.
For each row:

* success and score over the same unseen starts, with 95 % intervals, and the ways taken;
* denoiser calls per executed action, at a steady pace and in all (starts included);
* time of one chunk at batch 1, warm and synchronised: median and 99th percentile;
* jump: root mean square distance of a new plan from the last, where it takes over, per element in
  the network's scale;
* reaction: the share of the wanted answer to a displaced object that is executed at once and after
  two ticks, and the ticks until half of it is (see `policy.reaction`).

Writes frontier.json after every row, frontier.txt and frontier.png. A row that fails is kept with
its error. `out=DIR` of an interrupted run goes on with the rows that are missing; it refuses a
checkpoint whose files, those of `cadence fit` too, or other settings have changed.
"""

import json
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from envs.vector import MakeEnv, make_vec
from policy.agent import Agent, NotFiniteError
from policy.benches.rounds import percentiles_ms
from policy.build import chunk_space, from_checkpoint
from policy.checkpoint import added_to, load
from policy.durable import write_json, write_text
from policy.entry import compose_part, entry, out_dir, pick_device, plain, use_threads
from policy.evaluate import check_env, summarise
from policy.fingerprint import fingerprint
from policy.frontier_figure import draw, table
from policy.frontier_rows import ROW, check_finite, name_of, read_rows
from policy.play import Episode, Executor, play
from policy.reaction import can_displace, measure_reaction
from policy.tasks import maker

RESULTS = "frontier.json"


class Rig:
    """One checkpoint in one environment, ready to measure rows."""

    def __init__(self, cfg: DictConfig):
        self._cfg = cfg
        self._device = pick_device(cfg.device)
        self._loaded = load(cfg.checkpoint)
        self._policy = from_checkpoint(self._loaded)
        self._make_env: MakeEnv = maker(cfg, None)
        reference = plain(cfg.reaction.reference)
        self._reference = self.agent({**ROW, **reference, "action": 1}, rows=64)
        self.modes = check_env(self._reference.contract, self._make_env, checkpoint=cfg.checkpoint)
        self._reacts = cfg.reaction.episodes > 0 and can_displace(self._make_env)

    @property
    def settings(self) -> dict:
        """What results must have in common to stand in one table."""
        cfg = self._cfg
        space = chunk_space(self._loaded)
        fitted = {str(n): grid.tolist() for n, grid in space.grids.items()}
        files = self._loaded.files
        return {
            "checkpoint": str(self._loaded.path),
            "files": {**files, **added_to(self._loaded.path, files)},
            "fitted": fitted,
            "env": plain(cfg.env),
            **{key: plain(cfg)[key] for key in ("episodes", "seed", "rows", "repeats", "threads")},
            "device": str(self._device),
            "reaction": plain(cfg.reaction),
        }

    def agent(self, row: dict, *, rows: int | None = None) -> Agent:
        """The agent of a row.

        Raises:
            ValueError: the sampler does not fit the checkpoint or the row.
        """
        space = chunk_space(
            self._loaded,
            action_horizon=row["action"],
            inference_delay=row["delay"],
            device=self._device,
        )
        sampler = instantiate(compose_part("sampler", row["sampler"], row["set"]))(space=space)
        n_rows = int(self._cfg.rows) if rows is None else rows
        given = {"rows": n_rows, "goal_weight": float(row["goal_weight"])}
        return Agent(self._policy, sampler, device=self._device, **given)

    def complete(self, row: dict) -> dict:
        """A row with its executed actions, its name and its sampler's whole configuration."""
        row = {**row, "action": self.agent(row).horizons.action}
        sampler = plain(compose_part("sampler", row["sampler"], row["set"]))
        return {**row, "name": name_of(row), "configuration": sampler}

    def measure(self, row: dict) -> dict:
        """Everything about a complete row; of one that fails, the error."""
        agent = self.agent(row)
        try:
            episodes, executor = self._play(agent)
            return {
                **row,
                "nfe": agent.nfe,
                "start_nfe": agent.sampler.start_nfe,
                "calls_per_action": agent.nfe / agent.horizons.action,
                "calls_per_action_in_all": agent.calls_in_all([e.length for e in episodes]),
                **summarise(episodes, self.modes),
                "jump": _jump(agent, executor),
                "latency": self._latency(row),
                "reaction": self._reaction(agent),
                "episodes": [[e.seed, e.score, e.success, e.length, e.mode] for e in episodes],
            }
        except NotFiniteError as error:
            return {**row, "error": str(error)}

    def _play(self, agent: Agent) -> tuple[list[Episode], Executor]:
        cfg = self._cfg
        finished: list[Episode] = []
        envs = make_vec(
            self._make_env,
            min(cfg.num_envs, cfg.episodes),
            horizons_obs=agent.horizons.obs,
            horizons_action=agent.horizons.action,
        )
        try:
            executor = play(
                agent, envs, range(cfg.seed, cfg.seed + cfg.episodes), finished=finished
            )
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
        for told in agent.policy.told(observation).values():
            told[..., 0] = 1  # Any task: it takes the same time.

        def tick() -> None:
            agent.chunk(streams, observation)
            agent.shift(streams, agent.horizons.action)

        tick()  # The first chunk of a stream costs its start besides.
        return percentiles_ms(tick, repeats=self._cfg.repeats)

    def _reaction(self, agent: Agent) -> dict | None:
        if not self._reacts:
            return None
        cfg = self._cfg.reaction
        measured = measure_reaction(
            agent,
            self._reference,
            self._make_env,
            range(cfg.seed, cfg.seed + cfg.episodes),
            first_tick=cfg.first_tick,
            n_ticks=cfg.ticks,
            samples=cfg.samples,
        )
        curve = measured.curve()
        return {
            "first": curve[0],
            "first_interval": measured.interval(0),
            "within_2": curve[2],
            "within_2_interval": measured.interval(2),
            "delay": measured.delay(),
            "curve": curve,
        }


def _jump(agent: Agent, executor: Executor) -> float | None:
    """Root mean square jump from plan to plan in the network's scale; None if plans never meet."""
    if not any(map(len, executor.jumps)):
        return None
    jumps = torch.from_numpy(np.concatenate(executor.jumps)).to(agent.device)
    told = {
        name: torch.from_numpy(np.concatenate([each[name] for each in executor.told]))
        for name in executor.told[0]
    }
    scaled = agent.policy.chunk(jumps, told) - agent.policy.chunk(torch.zeros_like(jumps), told)
    return scaled.square().mean().sqrt().item()


def check_settings(cfg: DictConfig) -> None:
    """Raise ValueError where a setting would fail after minutes."""
    least = {"episodes": 1, "repeats": 1, "reaction.first_tick": 1, "reaction.ticks": 3}
    for name, minimum in least.items():
        value = OmegaConf.select(cfg, name)
        if value < minimum:
            raise ValueError(f"{name} is {value}, it must be at least {minimum}")
    for name in ("env", "reaction"):
        check_finite(name, plain(cfg)[name])
    if cfg.reaction.samples < 2 or cfg.reaction.samples % 2:
        raise ValueError(f"reaction.samples is {cfg.reaction.samples}, it must be even: two halves")


def earlier(cfg: DictConfig, settings: dict) -> list[dict]:
    """Rows that an interrupted run in the same folder has measured.

    Each with the fingerprint of the programs that measured it.

    Raises:
        ValueError: the folder holds results of other settings, or none that can be read.
    """
    file = Path(str(cfg.out or "")) / RESULTS
    if cfg.out is None or not file.is_file():
        return []
    try:
        results = json.loads(file.read_text())
        measured = [row for row in results["rows"] if "error" not in row]
        rows = [{"fingerprint": results["fingerprint"], **row} for row in measured]
        found = dict(results["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} holds no results of a frontier ({error!r}): choose another folder (out=)"
        ) from error
    others = [key for key, value in settings.items() if found.get(key) != value]
    if others:
        raise ValueError(
            f"{file} holds results of other settings ({', '.join(others)}): "
            f"choose another folder (out=)"
        )
    return rows


def run(cfg: DictConfig) -> dict:
    """Measure all rows; returns what frontier.json holds."""
    check_settings(cfg)
    use_threads(cfg.threads)
    rig = Rig(cfg)
    wanted = [rig.complete(row) for row in read_rows(cfg)]  # Impossible ones are refused here.
    settings = json.loads(json.dumps(rig.settings))
    rows = earlier(cfg, settings)
    out = out_dir(cfg, "frontier")
    versions = fingerprint()
    results = {"settings": settings, "rows": rows, "fingerprint": versions}
    try:
        for row in wanted:
            if not any(row.items() <= done.items() for done in rows):
                print(row["name"])
                rows.append({**rig.measure(row), "fingerprint": versions})
                write_json(out / RESULTS, results)
    finally:
        if rows:
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
