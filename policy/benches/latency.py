"""Latency at batch 1, from an observation on the host to actions on the host, and its floor.

All rows of a group take turns with the peers and with calls that measure the floor, on one network
with one set of weights. A chunk is the whole tick: encoder, all denoiser calls, un-normalisation,
and moving the sampler's carry on. Beside the chunks stands one call of the network alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np
import torch

from policy.benches import floor
from policy.benches.host import threads
from policy.benches.lineup import Group
from policy.benches.rounds import Call, fastest, percentiles, ratio, take_turns
from policy.benches.stage import Contestant, Stage

PRODUCT = "product "  # begins the names of matrix products, which end in what is multiplied
YARDSTICK = 16  # calls of the peer that rows are compared with per executed action


def measure_group(stage: Stage, group: Group, *, rounds: int, seconds: float) -> dict:
    """What a group's rows take, against the peers and the floor.

    Args:
        stage: of the group's network.
        group: the rows.
        rounds: most turns of each.
        seconds: after which no further round begins.
    """
    with threads(group.threads) as n_threads:
        contestants, failures = gather(stage, group)
        n_weights, multiply_adds = stage.work()
        sizes = {each.weights: floor.BYTES[each.weights] * n_weights for each in contestants}
        calls = {each.name: each.call for each in contestants} | _probes(stage, sizes)
        times = take_turns(calls, rounds=rounds, seconds=seconds)
    floors = _floors(sizes, multiply_adds, times)
    return {
        "net": group.net,
        "threads": n_threads,
        "device": str(stage.device),
        "batch": 1,
        "weights": sum(parameter.numel() for parameter in stage.policy.net.parameters()),
        "rounds": len(next(iter(times.values()))),
        "floors": {
            kind: {**asdict(found), "ms": 1e3 * found.seconds, "binds": found.binds}
            for kind, found in floors.items()
        },
        "rows": [_row(each, contestants, times, floors[each.weights]) for each in contestants],
        "failures": failures,
    }


def gather(stage: Stage, group: Group) -> tuple[list[Contestant], dict[str, str]]:
    """All that can take part, and why the others cannot."""
    contestants: list[Contestant] = []
    failures: dict[str, str] = {}

    def tried(name: str, make: Callable[[], list[Contestant]]) -> None:
        try:
            contestants.extend(make())
        except (ImportError, ValueError, RuntimeError, OSError) as error:
            failures[name] = str(error).splitlines()[0] if str(error) else type(error).__name__

    tried("peer", lambda: stage.peers(group.peers))
    for row in group.rows:
        tried(row.name, lambda row=row: [stage.chunk(row)])
    for how in dict.fromkeys(row.how for row in group.rows):
        tried(f"one call, {how}", lambda how=how: [c for c in [stage.call(how)] if c])
    return contestants, failures


def _probes(stage: Stage, sizes: Mapping[str, int]) -> dict[str, Call]:
    """Calls that show what the machine can do, by a name that tells what they are for.

    Args:
        stage: on whose device they run.
        sizes: kind of weights -> bytes that are read.
    """
    probes: dict[str, Call] = {PRODUCT + "fp32": floor.multiplier(stage.device, torch.float32)}
    if stage.device.type == "cuda":  # On CPUs weights are converted before they are multiplied.
        probes[PRODUCT + "bf16"] = floor.multiplier(stage.device, torch.bfloat16)
    for kind, n_bytes in sizes.items():
        for how, call in floor.readers(n_bytes, stage.device).items():
            probes[f"read {kind} {how}"] = call
    return probes


def _floors(
    sizes: Mapping[str, int], multiply_adds: int, times: Mapping[str, np.ndarray]
) -> dict[str, floor.Floor]:
    """The floor for each kind of weights."""
    products = {name: fastest(turns) for name, turns in times.items() if name.startswith(PRODUCT)}
    floors = {}
    for kind, n_bytes in sizes.items():
        # What is stored in fewer bits may be multiplied in more.
        least = products[PRODUCT + kind] if kind == "fp32" else min(products.values())
        reads = [fastest(v) for name, v in times.items() if name.startswith(f"read {kind} ")]
        floors[kind] = floor.Floor(
            weight_bytes=n_bytes,
            multiply_adds=multiply_adds,
            bandwidth=floor.bytes_read(n_bytes) / min(reads),
            matrix_rate=floor.MATRIX**3 / least,
        )
    return floors


def _row(
    this: Contestant,
    contestants: list[Contestant],
    times: Mapping[str, np.ndarray],
    least: floor.Floor,
) -> dict:
    """A line of the table; ratios are how many times as fast it is as the peer."""
    found = percentiles(times[this.name])
    per_call = found["p50_ms"] / this.calls
    line = {
        "name": this.name,
        "kind": this.kind,
        "is_peer": this.is_peer,
        "weights": this.weights,
        "calls": this.calls,
        "actions": this.actions,
        "error": this.error,
        **found,
        "per_call_ms": per_call,
        "per_action_ms": None if this.actions is None else found["p50_ms"] / this.actions,
        "floor_ms": 1e3 * least.seconds * this.calls,
        "over_floor": 1e-3 * per_call / least.seconds,
    }
    peers = [other for other in contestants if other.is_peer and other.kind == this.kind]
    for name, wanted in (("equal_calls", this.calls), ("per_action", YARDSTICK)):
        matching = [peer for peer in peers if peer.calls == wanted]
        line[name] = None
        if matching and not this.is_peer and not (name == "per_action" and this.kind == "call"):
            peer = matching[0]
            scale = 1.0
            if name == "per_action":
                assert this.actions is not None
                assert peer.actions is not None
                scale = this.actions / peer.actions
            line[name] = asdict(ratio(times[peer.name] * scale, times[this.name]))
    return line
