"""Training speed: windows per second of the whole loop, against a plain loop, and where time goes.

A step of ours is what `cadence train` does between two lines of its metrics: gathering the windows,
noise, forward, backward, optimiser and the average of the weights. The peer's is forward, backward
and optimiser alone, on windows that are there already. All take turns.

The demonstrations are made up: smooth paths, as a robot's are. Zeros would not do, for gradients
that vanish become denormal numbers, which a CPU is many times slower with.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.dataset import WindowDataset
from data.store import EpisodeStore
from data.types import Batch, Contract
from policy.benches.peer import PublishedUNet, make_scheduler, training_step
from policy.benches.rounds import Call, percentiles, ratio, take_turns
from policy.nets.compiled import CompileError
from policy.nets.unet1d import UNet1d
from policy.stopwatch import Stopwatch
from policy.train_log import WORK
from policy.trainer import GOALS, Trainer, WindowOrder, seeded

EPISODES, LENGTH = 40, 250  # of the made-up demonstrations
PEER_RATE = 1e-4  # learning rate; it changes no duration
STEPS_ON_CUDA = 20  # in one timed call, at whose end the device is waited for
PROFILED = 30  # steps


def made_up_store(path: Path, contract: Contract, *, seed: int) -> EpisodeStore:
    """A store of smooth paths within about -1 to 1.

    Args:
        path: of the store.
        contract: of its fields, all of numbers.
        seed: of the paths.
    """
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 2 * np.pi, LENGTH)[:, None]
    with EpisodeStore.create(path, contract) as store:
        for _ in range(EPISODES):
            episode = {}
            for name, field in contract.fields.items():
                pace, phase = rng.uniform(0.5, 3, field.size), rng.uniform(0, 6, field.size)
                noise = rng.normal(size=(LENGTH, field.size), scale=0.02)
                values = np.sin(pace * t + phase) + noise
                episode[name] = values.reshape(LENGTH, *field.shape).astype(field.dtype)
            store.append(episode)
    return EpisodeStore.open(path)


def measure_training(
    trainer: Trainer,
    dataset: WindowDataset,
    *,
    batch_size: int,
    forms: Sequence[tuple[str, str]],
    rounds: int,
    seconds: float,
) -> dict:
    """Windows per second of each form of a step, and of the peer's.

    Args:
        trainer: at step 0; left as it is.
        dataset: that is learned.
        batch_size: windows of a step.
        forms: (precision, form), as in `policy.forms`.
        rounds: most turns of each.
        seconds: after which no further round begins.
    """
    device = trainer.device
    n_steps = STEPS_ON_CUDA if device.type == "cuda" else 1
    failures: dict[str, str] = {}
    order = WindowOrder(len(dataset), batch_size, seed=trainer.seed)
    with dataset.batches(_asked(order, trainer)) as batches:
        trainers = _trainers(trainer, next(batches), forms, failures)
        peers = _peers(trainer, next(batches), failures)
        calls: dict[str, Call] = {
            **{name: _repeated(step, n_steps, device) for name, step in peers.items()},
            **{
                name: _repeated(lambda one=one: one.step(next(batches), 1.0), n_steps, device)
                for name, one in trainers.items()
            },
        }
        times = take_turns(calls, rounds=rounds, seconds=seconds)
        profiles = {name: profile(one, batches) for name, one in trainers.items()}
    rows = []
    best_peer = min(peers, key=lambda name: float(np.median(times[name])), default=None)
    for name, turns in times.items():
        p50 = percentiles(turns / n_steps)["p50_ms"]
        line = {
            "name": name,
            "is_peer": name in peers,
            "step_p50_ms": p50,
            "windows_per_second": 1e3 * batch_size / p50,
            "over_peer": None,
            "profile": profiles.get(name),
        }
        if best_peer and name not in peers:
            line["over_peer"] = asdict(ratio(times[best_peer], turns))
        rows.append(line)
    return {
        "threads": torch.get_num_threads(),
        "device": str(device),
        "batch_size": batch_size,
        "weights": sum(parameter.numel() for parameter in trainer.policy.parameters()),
        "rounds": len(next(iter(times.values()))),
        "rows": rows,
        "failures": failures,
    }


def _asked(order: WindowOrder, trainer: Trainer) -> Iterator[tuple[Tensor, torch.Generator]]:
    for count in itertools.count():
        times = seeded(trainer.seed, purpose=GOALS, count=count, device=trainer.device)
        yield order.indices(count), times


def _trainers(
    trainer: Trainer, batch: Batch, forms: Sequence[tuple[str, str]], failures: dict[str, str]
) -> dict[str, Trainer]:
    """A trainer for each form that there is here, after its first step."""
    made = {}
    for precision, form in forms:
        name = f"{form} {precision}"
        one = copy.deepcopy(trainer)
        try:
            one.use(form, autocast=precision == "bf16")
            one.step(batch, 1.0)
        except (ValueError, CompileError, RuntimeError) as error:
            failures[name] = str(error).splitlines()[0]
        else:
            made[name] = one
    return made


def _peers(trainer: Trainer, batch: Batch, failures: dict[str, str]) -> dict[str, Call]:
    """A plain step in each precision."""
    policy = copy.deepcopy(trainer.policy)
    if not isinstance(policy.net, UNet1d):
        failures["peer"] = f"the peer is a U-Net, the network is {type(policy.net).__name__}"
        return {}
    with torch.no_grad():
        x0 = policy.chunk(batch.action, batch.observation)
        cond = policy.encoder(policy.features(batch.observation))
    steps: dict[str, Call] = {}
    try:
        for precision in ("fp32", "bf16"):
            net = PublishedUNet(copy.deepcopy(policy.net)).train()
            optimizer = torch.optim.AdamW(net.parameters(), lr=PEER_RATE)
            step = training_step(net, optimizer, make_scheduler(), bf16=precision == "bf16")
            steps[f"peer {precision}"] = lambda step=step: step(x0, cond)
    except ImportError as error:
        failures["peer"] = str(error)
    return steps


def _repeated(step: Call, n: int, device: torch.device) -> Call:
    """A call of so many steps that returns when they are done."""

    def call() -> None:
        for _ in range(n):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return call


def profile(trainer: Trainer, batches: Iterator[Batch], *, n_steps: int = PROFILED) -> dict:
    """Where a step's time goes: milliseconds of each part, and the share that is overhead.

    Args:
        trainer: that makes the steps.
        batches: what they are made on.
        n_steps: how many.
    """
    before, watch = trainer.watch, Stopwatch(trainer.device)
    trainer.watch = watch
    try:
        watch.restart()
        for _ in range(n_steps):
            with watch.part("windows"):
                batch = next(batches)
            trainer.step(batch, 1.0)
        spent = watch.seconds()
    finally:
        trainer.watch = before
    work = sum(spent.get(part, 0.0) for part in WORK)  # the rest is overhead
    return {
        "parts_ms": {part: 1e3 * seconds / n_steps for part, seconds in spent.items()},
        "overhead": 1 - work / sum(spent.values()),
    }
