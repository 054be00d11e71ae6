r"""Success against the delay of inference, for each way of putting late chunks together.

    cadence delays checkpoint=outputs/train/latest env=pillar
    cadence delays checkpoint=... env=gym_pusht delays='[0,2,4]' episodes=200 \
        'seams.rows=[{name: switch, seam: none, sampler: fitted, set: {n_steps: 2}}]'

`seams` (configs/seams) is a list of rows: a name, a seam (configs/seam), a sampler, settings of the
sampler that differ from its file, and executed actions per chunk. Each row is played with each of
`delays` by the loop that controls robots, on a virtual clock, on the same unseen starts (as by
`cadence evaluate control=async`). Of each: success and score with 95 % intervals, denoiser calls
per executed action, and the jump from one action to the next where a new chunk begins, as a
multiple of that within chunks (largest, and 99th percentile).

Writes delays.json after every row and delay, delays.txt and delays.png. `out=DIR` of an interrupted
run goes on with what is missing.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from policy.checkpoint import added_to, load
from policy.control.manner import number
from policy.controls import AsyncLoop
from policy.delays_figure import draw, table
from policy.durable import write_json, write_text
from policy.entry import CONFIGS, compose_part, entry, out_dir, plain, use_threads
from policy.evaluate import check_env, summarise
from policy.fingerprint import fingerprint
from policy.frontier_rows import check_finite
from policy.tasks import maker

RESULTS = "delays.json"
SEAMS = sorted(file.stem for file in (CONFIGS / "seam").glob("*.yaml"))
ROW = {"name": "", "seam": "none", "sampler": "", "set": {}, "action": None}


def read_rows(cfg: DictConfig) -> list[dict]:
    """The rows of `seams`.

    Raises:
        ValueError: there are none, or an entry of one is unknown, missing or of another kind.
    """
    rows = OmegaConf.to_container(cfg.seams.rows, resolve=True)
    if not isinstance(rows, list) or not rows:
        raise ValueError("there are no rows: give seams.rows=[{name: switch, sampler: ddim_8}]")
    for row in rows:
        is_known = isinstance(row, dict) and not set(row) - set(ROW)
        if not is_known or not (row.get("name") and row.get("sampler")):
            raise ValueError(
                f"a row is {row}: it needs a name and a sampler, and may have {sorted(ROW)}"
            )
        if type(row.get("action", 1)) is not int or not isinstance(row.get("set", {}), dict):
            raise ValueError(
                f"a row is {row}: action must be a whole number, set must be settings such as "
                f"{{n_steps: 2}}"
            )
        check_finite("a row", row)
        if str(row.get("seam", "none")) not in SEAMS:
            raise ValueError(f"a row's seam is {row['seam']!r}, there are {', '.join(SEAMS)}")
    names = [row["name"] for row in rows]
    if len(set(names)) < len(names):
        raise ValueError(f"rows are named {names}: give each a name of its own")
    return [{**ROW, **row} for row in rows]


def measure(cfg: DictConfig, row: dict, delay: float) -> dict:
    """What one row gives at one delay [ticks]."""
    settings = OmegaConf.merge(
        OmegaConf.masked_copy(cfg, ["checkpoint", "episodes", "seed", "faults", "governor"]),
        {"goal_weight": cfg.goal_weight, "device": cfg.device, "task": cfg.task, "urgent": None},
        {"delay": delay, "inference_delay": 0, "action_horizon": row["action"]},
        {"sampler": compose_part("sampler", row["sampler"], row["set"])},
        {"seam": compose_part("seam", row["seam"])},
    )
    assert isinstance(settings, DictConfig)
    loop, make_env = AsyncLoop(settings), maker(cfg, None)
    modes = check_env(loop.agent.contract, make_env, checkpoint=cfg.checkpoint)
    episodes = loop.measure(make_env)
    if len(episodes) < cfg.episodes:
        raise KeyboardInterrupt
    return {
        **row,
        "asked": row,
        "delay": delay,
        "action": loop.agent.horizons.action,
        "calls_per_action": loop.agent.nfe / loop.agent.horizons.action,
        **summarise(episodes, modes),
        **loop.facts(),
        "sampler_settings": plain(settings.sampler),
        "episodes": [asdict(episode) for episode in episodes],
    }


def earlier(out: Path, settings: dict) -> list[dict]:
    """What an interrupted run in the same folder has measured.

    Raises:
        ValueError: the folder holds results of other settings, or none that can be read.
    """
    file = out / RESULTS
    if not file.is_file():
        return []
    try:
        results = json.loads(file.read_text())
        found, measured = dict(results["settings"]), list(results["measured"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} holds no results of cadence delays ({error!r}): choose another folder (out=)"
        ) from error
    others = [key for key, value in settings.items() if found.get(key) != value]
    if others:
        raise ValueError(
            f"{file} holds results of other settings ({', '.join(others)}): choose another folder "
            f"(out=)"
        )
    return measured


def is_done(measured: Sequence[dict], row: dict, delay: float) -> bool:
    """Whether a row was measured at a delay, just as it is asked for."""
    return any(done["asked"] == row and done["delay"] == delay for done in measured)


def run(cfg: DictConfig) -> dict:
    """Measure all rows; returns what delays.json holds."""
    delays = plain(cfg)["delays"]
    is_list = isinstance(delays, list) and bool(delays)
    if not is_list or not all(0 <= number(delay) < math.inf for delay in delays):
        raise ValueError(f"delays is {delays}: give numbers of ticks such as [0,1,2,4]")
    if cfg.episodes < 1:
        raise ValueError(f"episodes is {cfg.episodes}, it must be at least 1")
    use_threads(cfg.threads)
    rows = read_rows(cfg)
    loaded = load(cfg.checkpoint)
    kept = ("env", "task", "governor", "episodes", "seed", "faults", "goal_weight")
    files = {**loaded.files, **added_to(loaded.path, loaded.files)}
    settings = {"checkpoint": str(loaded.path), "files": files}
    settings = json.loads(json.dumps(settings | {key: plain(cfg)[key] for key in kept}))
    measured = earlier(Path(str(cfg.out)), settings) if cfg.out is not None else []
    out = out_dir(cfg, "delays")
    results = {"settings": settings, "measured": measured, "fingerprint": fingerprint()}
    try:
        for row in rows:
            for delay in delays:
                if not is_done(measured, row, delay):
                    print(f"{row['name']}, {delay} ticks late")
                    measured.append(measure(cfg, row, delay))
                    write_json(out / RESULTS, results)
    finally:
        if measured:
            write_text(out / "delays.txt", table(measured) + "\n")
            draw(measured, out / "delays.png", title=f"{cfg.checkpoint}, {cfg.episodes} starts")
            print(table(measured))
            print(f"figure: {out / 'delays.png'}")
    return results


def main() -> None:
    """Entry point."""
    entry("delays", run)


if __name__ == "__main__":
    main()
