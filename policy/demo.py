"""The whole job on one command: demonstrations, policy, evaluation, controlled robot, report.

    cadence demo
    cadence demo fresh=false            # after an interruption: go on with the stage it hit
    cadence demo +train.minutes=1       # any setting of a stage's verb

Runs `cadence collect`, `train`, `evaluate` and `run` one after the other, each into a folder of its
own below `out`, and writes `report.html` there: one file, nothing to install to look at it.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from data.store import EpisodeStore
from policy import collect, evaluate, train
from policy import run as run_robot
from policy.agent import Agent
from policy.demo_report import Stage, headline, panels, read_results
from policy.durable import write_text
from policy.entry import compose_config, entry
from policy.report import html_page, table
from policy.scene import Sketch
from policy.sketch import can_sketch, sketch

VERBS: dict[str, Callable[[DictConfig], object]] = {
    "collect": collect.run,
    "train": train.run,
    "evaluate": evaluate.run,
    "run": run_robot.run,
}
# Says that a folder is a demo's, so that its stages may be removed, and which of them are finished.
RECORD = "demo.json"


def stage_overrides(cfg: DictConfig, verb: str, out: Path) -> list[str]:
    """What `cadence <verb>` is told: the demo's settings for it, and where things lie."""
    resume = [f"resume={out / 'train'}"] if any((out / "train").glob("checkpoints/*")) else []
    places = {
        "collect": [f"env={cfg.env}"],
        "train": [f"store.path={out / 'collect' / 'store.zarr'}", *resume],
        "evaluate": [f"env={cfg.env}", f"checkpoint={out / 'train'}"],
        "run": [f"env={cfg.env}", f"checkpoint={out / 'train'}"],
    }
    return [*_flat(cfg[verb]), f"device={cfg.device}", *places[verb], f"out={out / verb}"]


def _flat(settings: DictConfig, prefix: str = "") -> list[str]:
    """Settings as overrides, "a.b=value"."""
    flat = []
    for key, value in settings.items():
        if isinstance(value, DictConfig):
            flat += _flat(value, f"{prefix}{key}.")
        else:
            flat.append(f"{prefix}{key}={'null' if value is None else value}")
    return flat


def open_folder(out: Path, *, fresh: bool) -> dict[str, Stage]:
    """Make the demo's folder ready; returns the stages that are finished.

    Args:
        out: the folder.
        fresh: remove what an earlier demo wrote there.

    Raises:
        ValueError: the folder holds something that no demo wrote.
    """
    record = out / RECORD
    if not record.exists() and out.exists() and any(out.iterdir()):
        raise ValueError(f"out={out} is not empty and not a demo's folder: give another out=...")
    if record.exists() and not fresh:
        return {verb: Stage(**stage) for verb, stage in json.loads(record.read_text()).items()}
    for verb in VERBS:
        shutil.rmtree(out / verb, ignore_errors=True)
    (out / "report.html").unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_text(record, "{}")
    return {}


def play_stages(cfg: DictConfig, out: Path, finished: dict[str, Stage]) -> None:
    """Run the stages that are not finished, noting each one's end in the folder."""
    for number, (verb, work) in enumerate(VERBS.items(), start=1):
        if verb in finished:
            print(f"[{number}/{len(VERBS)}] {verb}: finished before")
            continue
        overrides = stage_overrides(cfg, verb, out)
        command = f"cadence {verb} {' '.join(overrides)}"
        print(f"[{number}/{len(VERBS)}] {command}")
        start = time.monotonic()
        outcome = work(compose_config(verb, overrides))
        if isinstance(outcome, dict) and not outcome.get("complete", True):
            raise KeyboardInterrupt
        finished[verb] = Stage(verb, command, time.monotonic() - start)
        record = {name: asdict(stage) for name, stage in finished.items()}
        write_text(out / RECORD, json.dumps(record, indent=1))
        print(f"[{number}/{len(VERBS)}] {verb} took {finished[verb].seconds:.1f} s\n")


def draw_sketches(cfg: DictConfig, out: Path) -> tuple[Agent, list[Sketch]]:
    """The trained agent, and episodes on unseen starts for the drawings."""
    settings = compose_config("run", stage_overrides(cfg, "run", out))
    agent = Agent.load(settings.checkpoint, instantiate(settings.sampler), device=cfg.device)
    if not can_sketch(agent.contract):
        return agent, []
    make_env = instantiate(settings.env)
    seeds = range(settings.seed, settings.seed + cfg.sketches)
    return agent, [sketch(agent, make_env, seed=s, samples=cfg.samples) for s in seeds]


def write_report(cfg: DictConfig, out: Path, finished: dict[str, Stage]) -> Sequence:
    """Write report.html; returns the headline table's rows."""
    agent, sketches = draw_sketches(cfg, out)
    results = read_results(
        out,
        finished,
        n_demonstrations=EpisodeStore.open(out / "collect" / "store.zarr").n_episodes,
        sketches=sketches,
        control_dt=agent.contract.control_dt,
    )
    rows = headline(results)
    page = html_page(
        title=f"Cadence demo: {cfg.env}",
        lead=f"Task: {agent.contract.task}. Demonstrations of a script were recorded, a diffusion "
        "policy was trained on them, evaluated on starts it never saw, and put in control of a "
        "simulated robot in wall-clock time.",
        rows=rows,
        panels=panels(results),
    )
    write_text(out / "report.html", page)
    return rows


def run(cfg: DictConfig) -> None:
    """All stages and the report."""
    out = Path(cfg.out)
    finished = open_folder(out, fresh=cfg.fresh)
    try:
        play_stages(cfg, out, finished)
        print("drawing the report ...")
        rows = write_report(cfg, out, finished)
    except KeyboardInterrupt:
        done = ", ".join(finished) or "no stage"
        print(f"\nfinished so far: {done}; all of it lies in {out}")
        print(
            "go on with: cadence demo fresh=false"
            + ("" if str(out) == "outputs/demo" else f" out={out}")
        )
        raise
    print(table(rows))
    print(f"report: {out / 'report.html'}")


def main() -> None:
    """Entry point."""
    entry("demo", run)


if __name__ == "__main__":
    main()
