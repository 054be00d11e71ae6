"""Tiny policies that the tests of packages share, and their packages without an export."""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from hydra.utils import instantiate
from torch import Tensor

from data.normalize import Normalizer
from data.types import Contract, Field, Horizons
from policy.agent import Agent
from policy.build import assemble
from policy.diffusion.schedule import karras
from policy.entry import compose_config, compose_part
from policy.model import DiffusionPolicy
from policy.packaged.agent import PackagedAgent
from policy.packaged.calls import tick_calls
from policy.packaged.formats import Format
from policy.packaged.graphs import Graph
from policy.packaged.making import Source, tick_draft
from policy.packaged.manifest import GraphFile, Manifest
from policy.packaged.onnx import ONNX
from policy.types import ChunkSpace, Sampler

HORIZONS = Horizons(obs=2, pred=8, action=3, past=1)
CONTRACTS: dict[str, Contract] = {}
PLAIN, RICH, GOAL = "plain", "rich", "goal"
CONTRACTS[PLAIN] = Contract(
    {"state": Field((3,)), "speed": Field((2,), dtype="float64")}, Field((2,)), control_dt=0.1
)
# Pictures, angles, and a scale of each task's own.
CONTRACTS[RICH] = Contract(
    {
        "arm": Field((3,), angles=(1,)),
        "camera": Field((16, 16, 3), dtype="uint8"),
        "task": Field((2,), normalization="identity"),
    },
    Field((2,), scaled_per="task"),
    control_dt=0.1,
)
CONTRACTS[GOAL] = Contract({"state": Field((3,)), "goal": Field((2,))}, Field((2,)), control_dt=0.1)
SOURCE = Source({"path": "runs/a", "weights": "ema"}, {"_target_": "a.sampler"}, {"cadence": "0"})


@cache
def policy_of(name: str) -> DiffusionPolicy:
    """The policy of a contract by name; none of its weights is zero."""
    contract = CONTRACTS[name]
    encoder = {PLAIN: "state", RICH: "small_cnn", GOAL: "goal"}[name]
    cfg = compose_config("train", ["net=mlp", f"encoder={encoder}"])
    cfg.net.size, cfg.net.n_blocks = 16, 1
    if encoder == "small_cnn":
        cfg.encoder.trunk.channels, cfg.encoder.trunk.n_keypoints = [4, 4, 4, 4], 4
        cfg.encoder.hidden = 8
    torch.manual_seed(0)
    policy = assemble(cfg, contract, HORIZONS, normalizer_of(contract))
    with torch.no_grad():
        for weights in policy.parameters():
            weights.add_(0.05 * torch.randn_like(weights))
    return policy


def normalizer_of(contract: Contract) -> Normalizer:
    """Statistics, of the second task's actions ten times as wide."""
    rng = np.random.default_rng(0)
    n = 40
    task = np.eye(2, dtype=np.float32)[np.arange(n) % 2]
    made = {
        name: rng.uniform(-2, 3, (n, *field.shape)).astype(field.dtype)
        for name, field in contract.fields.items()
        if not field.is_image
    }
    if "task" in made:
        made["task"] = task
        made["action"] *= 1 + 9 * task[:, 1:]
    return Normalizer.fit(contract, made)


def sampler_of(name: str, *, delay: int = 0) -> Sampler:
    """A sampler of configs/sampler, in few steps."""
    cfg = compose_part("sampler", name)
    for node in (cfg, cfg.get("first", {})):
        if "grid" in node:
            node.grid.n_steps = 2
    for setting in ("n_steps", "n_sweeps"):
        if setting in cfg:
            cfg[setting] = 2
    if "n_committed" in cfg:
        cfg.n_committed = min(cfg.n_committed, 1)
    space = ChunkSpace(
        HORIZONS,
        action_size=2,
        inference_delay=delay,
        discrete=(1,),
        sigma_min=0.01,
        sigma_max=20.0,
        grids={2: karras(2, sigma_min=0.01, sigma_max=20.0)},
        anchors=torch.linspace(-0.5, 0.5, 3)[:, None, None].expand(3, 8, 2).clone(),
    )
    return instantiate(cfg)(space=space)


def agents_of(
    sampler: str, *, contract: str = PLAIN, max_delay: int = 0, goal_weight: float = 1.0
) -> list[Agent]:
    """Agents with one row for 0 to `max_delay` decided actions."""
    return [
        Agent(policy_of(contract), sampler_of(sampler, delay=d), rows=1, goal_weight=goal_weight)
        for d in range(max_delay + 1)
    ]


def without_export(
    agents: Sequence[Agent], format: Format | None = None
) -> tuple[Manifest, Mapping[str, Graph]]:
    """The package of agents whose graphs are the calls that would be exported."""
    calls = tick_calls(agents)
    files = {c.name: GraphFile(f"{c.name}.x", 0, "", c.inputs, c.outputs) for c in calls}
    draft = tick_draft(agents, format or ONNX(), SOURCE).to_json() | {
        "graphs": {name: vars(graph) for name, graph in files.items()}
    }
    for graph in draft["graphs"].values():
        for side in ("inputs", "outputs"):
            graph[side] = [vars(spec) for spec in graph[side]]
    graphs = {call.name: _graph_of(call.module) for call in calls}
    return Manifest.from_json(draft), graphs


def packaged(agents: Sequence[Agent]) -> list[PackagedAgent]:
    """The packaged agents of agents."""
    manifest, graphs = without_export(agents)
    return [PackagedAgent(manifest, graphs, inference_delay=d) for d in range(len(agents))]


def seen(contract: str, rng: np.random.Generator, *, task: int = 0) -> dict[str, np.ndarray]:
    """What one stream sees of a contract by name, [1, To, ...]."""
    observation = {}
    for name, field in CONTRACTS[contract].observation.items():
        shape = (1, HORIZONS.obs, *field.shape)
        if field.is_image:
            observation[name] = rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            observation[name] = rng.uniform(-2, 3, shape).astype(field.dtype)
    if "task" in observation:
        observation["task"][:] = np.eye(2, dtype=np.float32)[task]
    return observation


def _graph_of(module: torch.nn.Module) -> Graph:
    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        return list(module(*tensors))

    return run
