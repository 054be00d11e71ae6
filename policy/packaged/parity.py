"""How far a package's chunks are from those of its checkpoint, and what each of them takes.

Both draw the same noise and see the same observations, made at random within the statistics.

Shape legend: `To Tp` observed and predicted steps.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from policy.model import DiffusionPolicy
from policy.packaged.calls import Call
from policy.packaged.graphs import Graph
from policy.packaged.manifest import OBSERVATION
from policy.parity import observation_of
from policy.planning import StreamAgent

QUANTILES = (50, 95, 99)


@dataclass(frozen=True)
class Parity:
    """How far results are apart.

    Args:
        max_error: largest difference, in units of the action's scale.
        n_compared: chunks (or calls) of each.
        described: what they were.
    """

    max_error: float
    n_compared: int
    described: str

    def check(self, tolerance: float) -> None:
        """Raise ValueError where the difference is over the tolerance, or no number."""
        if not self.max_error <= tolerance:
            more = (
                f", or give tolerance={_above(self.max_error)} if that is what you want"
                if math.isfinite(self.max_error)
                else ""
            )
            raise ValueError(
                f"the package differs from the checkpoint by {self.max_error:.2g} of the action's "
                f"scale ({self.described}), tolerance is {tolerance:g}: use another format{more}"
            )


def history_of(
    policy: DiffusionPolicy, generator: np.random.Generator, *, task: int = 0
) -> dict[str, np.ndarray]:
    """A random observation within the statistics, field name -> [1, To, ...].

    Args:
        policy: with its statistics.
        generator: of the numbers.
        task: that is told where tasks have scales of their own; past the last one, from the first.
    """
    return {name: seen.numpy() for name, seen in observation_of(policy, generator, [task]).items()}


def tick_parity(
    policy: DiffusionPolicy,
    pairs: Sequence[tuple[StreamAgent, StreamAgent]],
    *,
    n_streams: int = 3,
    n_ticks: int = 5,
    seed: int = 0,
) -> Parity:
    """How far chunks are apart, over several ticks of several streams, each of another task.

    Args:
        policy: of both.
        pairs: agent and package, one pair for each number of decided actions.
        n_streams: of each pair.
        n_ticks: of each stream.
        seed: of the streams and of what they see.

    Raises:
        NotFiniteError: the checkpoint's own chunks are no numbers.
    """
    worst, given = 0.0, np.random.default_rng(seed)
    for agent, package in pairs:
        for stream in range(seed, seed + n_streams):
            ours, theirs = agent.start([stream]), package.start([stream])
            for _ in range(n_ticks):
                seen = history_of(policy, given, task=stream)
                made = agent.chunk(ours, seen), package.chunk(theirs, seen)
                worst = _larger(worst, _apart(policy, made, seen))
                agent.shift(ours, agent.horizons.action)
                package.shift(theirs, agent.horizons.action)
    n = len(pairs) * n_streams * n_ticks
    return Parity(worst, n, f"{n} chunks: {n_ticks} ticks of {n_streams} streams")


def call_parity(
    policy: DiffusionPolicy, calls: Sequence[tuple[Call, Graph]], *, n: int = 10, seed: int = 0
) -> Parity:
    """How far the results of single calls are apart, in the network's scale.

    Args:
        policy: whose calls they are.
        calls: with the graphs that were made of them.
        n: of each.
        seed: of what they are called with.
    """
    worst, given = 0.0, np.random.default_rng(seed)
    for call, graph in calls:
        for i in range(n):
            inputs = _inputs(policy, call, given, task=i)
            with torch.no_grad():
                expected, made = call.module(*inputs), graph(inputs)
            for a, b in zip(expected, made, strict=True):
                if call.name == "decoder":
                    seen = {
                        spec.name.removeprefix(OBSERVATION): t
                        for spec, t in zip(call.inputs, inputs, strict=True)
                    }
                    a, b = (policy.chunk(actions, seen) for actions in (a, b))
                worst = _larger(worst, float((a - b).abs().max()))
    return Parity(worst, n * len(calls), f"{n} calls of {', '.join(c.name for c, _ in calls)}")


def latency(calls: Sequence[Callable[[], object]], *, n: int) -> list[dict[str, float]]:
    """What calls take, warm, in turns: for each of them p50, p95 and p99 [s].

    Args:
        calls: that end when their result is on the host.
        n: times of each.
    """
    for call in calls:
        for _ in range(3):
            call()
    taken = np.empty((n, len(calls)))
    for i in range(n):
        for j, call in enumerate(calls):
            begin = time.perf_counter()
            call()
            taken[i, j] = time.perf_counter() - begin
    return [
        {f"p{q}": float(np.percentile(times, q)) for q in QUANTILES} for times in taken.transpose()
    ]


def one_chunk(agent: StreamAgent, history: dict[str, np.ndarray]) -> Callable[[], object]:
    """What a tick of control asks for: the next chunk of a stream that goes on."""
    streams = agent.start([0])

    def call() -> None:
        agent.chunk(streams, history)
        agent.shift(streams, agent.horizons.action)

    return call


def _apart(policy: DiffusionPolicy, made: tuple[np.ndarray, np.ndarray], seen: dict) -> float:
    """Largest difference of two chunks [1, Tp - past, ...] in the network's scale."""
    device = next(policy.parameters()).device
    observed = {name: torch.from_numpy(values).to(device) for name, values in seen.items()}
    ours, theirs = (policy.chunk(torch.from_numpy(a).to(device), observed) for a in made)
    return float((ours - theirs).abs().max())


def _inputs(
    policy: DiffusionPolicy, call: Call, given: np.random.Generator, *, task: int
) -> list[torch.Tensor]:
    """Random inputs of a call."""
    seen = history_of(policy, given, task=task)
    inputs = []
    for spec, example in zip(call.inputs, call.example, strict=True):
        if spec.name.startswith(OBSERVATION):
            values = seen[spec.name.removeprefix(OBSERVATION)]
        elif spec.name == "sigma":
            values = np.exp(given.uniform(-3, 2, spec.shape)).astype(spec.dtype)
        else:
            values = given.standard_normal(spec.shape).astype(spec.dtype)
        inputs.append(torch.from_numpy(values).to(example.device))
    return inputs


def _larger(a: float, b: float) -> float:
    """The larger one; one that is no number is the largest of all."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def _above(error: float) -> str:
    """A tolerance that lets an error pass, in few digits."""
    step = 10.0 ** math.floor(math.log10(error))
    return f"{math.ceil(error / step * 1.0001) * step:g}"
