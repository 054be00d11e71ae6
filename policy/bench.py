"""Measure how fast everything is here, beside what others do and beside what is possible.

    cadence bench                        # everything, some minutes
    cadence bench latency                # chunks and calls against the peer and the floor
    cadence bench train                  # windows/s of the whole loop, and where a step's time goes
    cadence bench env                    # control steps/s, with and without pictures
    cadence bench data                   # windows/s from memory, a decoded cache and a store
    cadence bench latency lineup=engines
    cadence bench against=committed      # exits with status 1 where a ratio fell since
    cadence bench save=mine.json         # keep this run's ratios, for against=mine.json

The peer is the same U-Net in plain PyTorch with the loop of the package diffusers, as in Diffusion
Policy and LeRobot; without that package it is left out. What is compared takes turns in one run, so
that disturbances hit all alike; latencies are warm and synchronised, at batch 1, from an
observation on the host to actions on the host. The floor of a call is the time to read its weights
or to do its multiply-adds, at the rates measured beside it. Ratios of turns have 95 % intervals,
which a handful of rounds makes too narrow.

`against=` compares ratios and never times; rows that were kept must be measured, too. Writes
bench.json, bench.txt and bench.png.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from data.augment import FeatureNoise
from data.dataset import WindowDataset
from data.normalize import Normalizer
from data.types import Contract, Field, Horizons
from envs.vector import MakeEnv
from policy.benches import baseline
from policy.benches.environments import measure_environments
from policy.benches.figure import draw
from policy.benches.host import busy_line, describe, load_average
from policy.benches.latency import measure_group
from policy.benches.lineup import Group, Row, read_groups
from policy.benches.reading import measure_data
from policy.benches.stage import Stage
from policy.benches.table import comparison, tables
from policy.benches.training import made_up_store, measure_training
from policy.build import assemble
from policy.diffusion.schedule import explicit, karras
from policy.durable import write_json, write_text
from policy.entry import (
    CONFIGS,
    compose_config,
    compose_part,
    entry,
    out_dir,
    pick_device,
    plain,
    use_threads,
)
from policy.forms import FORMS
from policy.model import DiffusionPolicy
from policy.trainer import Trainer
from policy.types import ChunkSpace, Sampler

# Sizes of the Push-T state task, the usual yardstick of small policies.
CONTRACT = Contract(
    observation={"state": Field(shape=(5,), angles=(4,))}, action=Field(shape=(2,)), control_dt=0.1
)
COMMITTED = CONFIGS / "bench_baseline.json"  # "against=committed"
Bench = Callable[[], dict]
SIGMA_MIN, SIGMA_MAX = 0.01, 20.0  # of made-up grids
MOST_STEPS = 16  # of one


def make_policy(cfg: DictConfig, net: str) -> DiffusionPolicy:
    """A policy with a network of `configs/net` and random weights."""
    rng = np.random.default_rng(cfg.seed)
    arrays = {k: rng.normal(size=(100, *f.shape)) for k, f in CONTRACT.fields.items()}
    torch.manual_seed(cfg.seed)
    parts = OmegaConf.create(
        {"net": part("net", net), "encoder": cfg.encoder, "precond": cfg.precond}
    )
    return assemble(parts, CONTRACT, Horizons(**cfg.horizons), Normalizer.fit(CONTRACT, arrays))


def part(group: str, choice: str, settings: Mapping[str, object] | None = None) -> DictConfig:
    """`compose_part`; ValueError with the choices where there is no such file."""
    choices = sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))
    if choice not in choices:
        raise ValueError(f"{group} is {choice!r}, choose one of {', '.join(choices)}")
    return compose_part(group, choice, settings)


def make_sampler(cfg: DictConfig, row: Row, action: int) -> Sampler:
    """A row's sampler; grids and anchors "fitted" to the random weights are made up."""
    horizons = Horizons(**{**cfg.horizons, "action": action})
    shape = (MOST_STEPS, horizons.pred, CONTRACT.action.size)
    space = ChunkSpace(
        horizons,
        CONTRACT.action.size,
        grids={n: _grid(n) for n in range(1, MOST_STEPS + 1)},
        anchors=torch.randn(shape, generator=torch.Generator().manual_seed(cfg.seed)),
    )
    return instantiate(part("sampler", row.sampler, row.set))(space=space)


def _grid(n_steps: int) -> torch.Tensor:
    if n_steps == 1:
        return explicit([SIGMA_MAX, 0])
    return karras(n_steps, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)


def plan_latency(cfg: DictConfig) -> Bench:
    """Every group of the line-up."""
    groups = read_groups(plain(cfg.lineup)["groups"])
    device = pick_device(cfg.device)
    for group in groups:
        part("net", group.net)
        for row in group.rows:
            make_sampler(cfg, row, cfg.horizons.action if row.action is None else row.action)
    return lambda: {"groups": [_group(cfg, group, device) for group in groups]}


def _group(cfg: DictConfig, group: Group, device: torch.device) -> dict:
    stage = Stage(
        make_policy(cfg, group.net),
        lambda row, action: make_sampler(cfg, row, action),
        device=device,
        seed=cfg.seed,
    )
    measured = measure_group(stage, group, rounds=cfg.rounds, seconds=cfg.seconds)
    return {"name": _group_name(group, cfg), **measured}


def _group_name(group: Group, cfg: DictConfig) -> str:
    """The same on machines with other numbers of cores."""
    threads = group.threads or cfg.threads
    return f"{group.net}, {f'{threads} thread(s)' if threads else 'all threads'}"


def plan_train(cfg: DictConfig) -> Bench:
    """A step of `cadence train` in each form, on made-up demonstrations."""
    forms = [_form(form) for form in cfg.train.forms]
    if cfg.train.batch_size < 1 or not forms:
        raise ValueError(
            f"train.batch_size is {cfg.train.batch_size} and train.forms {list(cfg.train.forms)}: "
            f"give at least one window, and one form"
        )
    policy = make_policy(cfg, cfg.train.net).to(pick_device(cfg.device))
    return lambda: _train(cfg, policy, forms)


def _train(cfg: DictConfig, policy: DiffusionPolicy, forms: list[tuple[str, str]]) -> dict:
    training = compose_config("train")
    trainer = Trainer(
        policy,
        instantiate(training.optimizer)(policy.parameters()),
        ema=instantiate(training.ema)(policy),
        loss=instantiate(training.loss),
        augment=FeatureNoise(0.0),
        seed=cfg.seed,
        autocast=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        store = made_up_store(Path(folder) / "store.zarr", CONTRACT, seed=cfg.seed)
        return measure_training(
            trainer,
            WindowDataset(store, policy.horizons, device=trainer.device),
            batch_size=cfg.train.batch_size,
            forms=forms,
            rounds=cfg.rounds,
            seconds=cfg.seconds,
        )


def _form(text: object) -> tuple[str, str]:
    """Precision and form of "form precision"."""
    form, _, precision = str(text).partition(" ")
    if form not in FORMS or precision not in ("fp32", "bf16"):
        raise ValueError(
            f"train.forms holds {text!r}: give one of {', '.join(FORMS)} and a precision, fp32 or "
            f"bf16, such as plain bf16"
        )
    return precision, form


def plan_env(cfg: DictConfig) -> Bench:
    """Control steps of each environment."""
    makers = {str(name): _env_maker(str(name)) for name in cfg.env.names}
    if not makers:
        raise ValueError("env.names is empty: give env.names=[pillar]")
    return lambda: measure_environments(
        makers,
        num_envs=cfg.env.num_envs,
        rounds=cfg.rounds,
        seconds=cfg.seconds,
        seed=cfg.seed,
    )


def _env_maker(name: str) -> Callable[[], MakeEnv]:
    node = part("env", name)
    return lambda: instantiate(node)


def plan_data(cfg: DictConfig) -> Bench:
    """Windows from each place on one core."""
    store = None if cfg.data.store is None else Path(str(cfg.data.store))
    if store is not None and not store.exists():
        raise ValueError(f"data.store={store} does not exist: give the folder of a zarr store")
    return lambda: measure_data(
        seconds=cfg.data.seconds, n_images=cfg.data.n_images, store=store, field=cfg.data.field
    )


# Each looks at its settings at once, and returns what measures.
BENCHES = {"latency": plan_latency, "train": plan_train, "env": plan_env, "data": plan_data}


def plan(cfg: DictConfig) -> dict[str, Bench]:
    """What is to be measured, by name.

    Raises:
        ValueError: a setting is impossible.
    """
    if cfg.what not in ("all", *BENCHES):
        raise ValueError(f"what is {cfg.what!r}, choose one of all, {', '.join(BENCHES)}")
    if cfg.rounds < 1:
        raise ValueError(f"rounds is {cfg.rounds}, it must be at least 1")
    use_threads(cfg.threads)
    names = list(BENCHES) if cfg.what == "all" else [cfg.what]
    return {name: BENCHES[name](cfg) for name in names}


def measure(
    cfg: DictConfig,
    benches: Mapping[str, Bench],
    keep: Callable[[dict], None] = lambda results: None,
) -> dict:
    """Measure; returns what bench.json holds.

    Args:
        cfg: of the verb.
        benches: of `plan`.
        keep: is given the results so far whenever there are more.
    """
    load = load_average()
    results: dict = {"machine": describe(pick_device(cfg.device)), "load_before": load}
    busy = None if load is None else busy_line(load, os.cpu_count() or 1)
    print(f"torch uses {torch.get_num_threads()} thread(s); load before: {load}")
    if busy:
        print(busy)
    for name, bench in benches.items():
        results[name] = bench()
        print(f"\n{tables({name: results[name]})}", flush=True)
        keep(results)
    results["load_after"] = load_average()
    return results


def run(cfg: DictConfig) -> int:
    """Measure, draw, compare; returns the exit status."""
    # A file that cannot be compared with is an error before minutes of measuring.
    kept = None if cfg.against is None else baseline.load(_kept_in(str(cfg.against)))
    if not 0 <= cfg.margin < 1:
        raise ValueError(f"margin is {cfg.margin}, it must be in 0..1, 1 excluded")
    if cfg.save is not None and Path(str(cfg.save)).is_dir():
        raise ValueError(f"save={cfg.save} is a folder: give the file to keep ratios in")
    benches = plan(cfg)
    out = out_dir(cfg, "bench")
    # Written whenever a part is done, for one may be interrupted.
    results = measure(
        cfg, benches, lambda so_far: write_text(out / "bench.json", json.dumps(so_far))
    )
    write_json(out / "bench.json", results)
    write_text(out / "bench.txt", tables(results) + "\n")
    draw(results, out / "bench.png")
    print(f"\nfigure: {out / 'bench.png'}")
    if cfg.save is not None:
        baseline.save(Path(str(cfg.save)), results)
        print(f"ratios kept in {cfg.save}")
    if kept is None:
        return 0
    compared = baseline.compare(kept, results, margin=cfg.margin)
    other = baseline.other_machine(kept, results)
    print("\n".join([*filter(None, [other]), comparison(compared, margin=cfg.margin)]))
    return int(any(each.is_bad for each in compared))


def _kept_in(against: str) -> Path:
    """The file that `against` names."""
    return COMMITTED if against == "committed" else Path(against)


def main() -> None:
    """Entry point."""
    entry("bench", run, positional="what")


if __name__ == "__main__":
    main()
