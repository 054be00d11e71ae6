"""Measure how fast the parts run on this machine.

    cadence bench                 # everything
    cadence bench what=data       # windows from memory, a decoded cache and a store, one core
    cadence bench what=latency    # one chunk of actions, batch 1: p50, p95, p99
    cadence bench what=train      # optimiser steps

Latencies are warm and synchronised, of the whole call: encoder, all denoiser calls,
un-normalisation. Prints a table and writes bench.json.
"""

import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from data.augment import FeatureNoise
from data.bench import measure_gather
from data.normalize import Normalizer
from data.types import Batch, Contract, Field, Horizons
from policy.agent import Agent
from policy.build import assemble
from policy.durable import write_json
from policy.entry import entry, out_dir, pick_device, use_threads
from policy.fingerprint import fingerprint
from policy.model import DiffusionPolicy
from policy.trainer import Trainer
from policy.types import ChunkSpace

# Sizes of the Push-T state task, the usual yardstick of small policies.
CONTRACT = Contract(
    observation={"state": Field(shape=(5,), angles=(4,))}, action=Field(shape=(2,)), control_dt=0.1
)


def make_policy(cfg: DictConfig, device: torch.device) -> DiffusionPolicy:
    """The configured network with random weights."""
    horizons = Horizons(**cfg.horizons)
    rng = np.random.default_rng(cfg.seed)
    arrays = {k: rng.normal(size=(100, *f.shape)) for k, f in CONTRACT.fields.items()}
    torch.manual_seed(cfg.seed)
    return assemble(cfg, CONTRACT, horizons, Normalizer.fit(CONTRACT, arrays)).to(device)


def percentiles_ms(call: Callable[[], object], *, repeats: int, warm_up: int = 5) -> dict:
    """Milliseconds of a call that returns when its result is on the host."""
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "repeats": repeats}


def bench_data(cfg: DictConfig) -> dict:
    """Windows from each place on one core [windows/s]."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = measure_gather(seconds=cfg.seconds)
    finally:
        torch.set_num_threads(n_threads)
    return asdict(rates)


def bench_latency(cfg: DictConfig) -> dict:
    """One chunk at batch 1 with the configured sampler."""
    device = pick_device(cfg.device)
    sampler = instantiate(cfg.sampler)(
        space=ChunkSpace(Horizons(**cfg.horizons), CONTRACT.action.size)
    )
    agent = Agent(make_policy(cfg, device), sampler, device=device, rows=1)
    streams = agent.start([cfg.seed])
    shape = (1, cfg.horizons.obs, *CONTRACT.observation["state"].shape)
    observation = {"state": np.zeros(shape, dtype=np.float32)}
    figures = percentiles_ms(lambda: agent.chunk(streams, observation), repeats=cfg.repeats)
    return {**figures, "calls": agent.nfe, "dtype": "float32", "device": str(device), "batch": 1}


def bench_train(cfg: DictConfig) -> dict:
    """Optimiser steps, the batch being there."""
    device = pick_device(cfg.device)
    policy = make_policy(cfg, device)
    optimizer = torch.optim.AdamW(policy.parameters(), fused=True)
    ema, loss = instantiate(cfg.ema)(policy), instantiate(cfg.loss)
    batch = Batch(
        observation={"state": torch.zeros(cfg.batch_size, cfg.horizons.obs, 5, device=device)},
        action=torch.zeros(cfg.batch_size, cfg.horizons.pred, 2, device=device),
        is_pad=torch.zeros(cfg.batch_size, cfg.horizons.pred, dtype=torch.bool, device=device),
    )
    figures = {}
    for name, autocast in (("fp32", False), ("bf16", True)):
        trainer = Trainer(
            policy,
            optimizer,
            ema=ema,
            loss=loss,
            augment=FeatureNoise(0.0),
            seed=cfg.seed,
            autocast=autocast,
        )

        def step(trainer: Trainer = trainer) -> None:
            trainer.step(batch, 1.0)
            float(trainer.loss_sum)

        p50 = percentiles_ms(step, repeats=max(10, cfg.repeats // 10))["p50_ms"]
        figures[name] = {"step_p50_ms": p50, "windows_per_second": 1e3 * cfg.batch_size / p50}
    return {**figures, "device": str(device), "batch_size": cfg.batch_size}


BENCHES = {"data": bench_data, "latency": bench_latency, "train": bench_train}


def run(cfg: DictConfig) -> dict:
    """Measure as configured; returns what bench.json holds."""
    if cfg.what not in ("all", *BENCHES):
        raise ValueError(f"what is {cfg.what!r}, choose one of all, {', '.join(BENCHES)}")
    use_threads(cfg.threads)
    out = out_dir(cfg, "bench")
    names = list(BENCHES) if cfg.what == "all" else [cfg.what]
    results: dict = {}
    for name in names:
        results[name] = BENCHES[name](cfg)
        print(name)
        for key, value in results[name].items():
            print(f"  {key:<16} {_readable(value)}")
    results["net"] = str(cfg.net._target_)
    results["fingerprint"] = fingerprint()
    write_json(out / "bench.json", results)
    return results


def _readable(value: object) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key} {_readable(entry)}" for key, entry in value.items())
    if isinstance(value, float):
        return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    """Entry point."""
    entry("bench", run)


if __name__ == "__main__":
    main()
