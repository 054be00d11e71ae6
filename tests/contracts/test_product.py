"""Every network with every sampler, and every sampler with every parameterisation, as agents.

Networks are those of configs/net at tiny sizes, with weights of which none is zero; grids are
short. Two chunks each: finite, and the same whether a network's part in the noise levels is
computed beforehand.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from data.normalize import Normalizer
from data.types import Contract, Field, Horizons
from policy.agent import Agent
from policy.build import assemble
from policy.diffusion.schedule import karras
from policy.entry import compose_config, compose_part
from policy.model import DiffusionPolicy
from policy.types import ChunkSpace, Sampler

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NETS, SAMPLERS, PRECONDS = (
    sorted(path.stem for path in (CONFIGS / part).glob("*.yaml"))
    for part in ("net", "sampler", "precond")
)
TINY = {"size": 16, "n_layers": 1, "n_blocks": 1, "channels": [8, 16], "noise_embed_size": 8}
N = 2  # streams
FIELDS = {"state": Field(shape=(3,)), "action": Field(shape=(2,))}
HORIZONS = Horizons(obs=2, pred=8, action=4)
CONTRACT = Contract({"state": FIELDS["state"]}, FIELDS["action"], control_dt=0.1)
SPACE = ChunkSpace(
    HORIZONS,
    action_size=2,
    sigma_min=0.01,
    sigma_max=20.0,
    grids={4: karras(4, sigma_min=0.01, sigma_max=20.0)},
    anchors=torch.linspace(-0.5, 0.5, 3)[:, None, None].expand(3, 8, 2),
)


@cache
def policy_of(net: str, precond: str) -> DiffusionPolicy:
    """A tiny policy."""
    cfg = compose_config("train", [f"net={net}", f"precond={precond}"])
    node = cfg.net.get("net", cfg.net)  # A network around another one has the sizes of that.
    node.update({name: size for name, size in TINY.items() if name in node})
    torch.manual_seed(0)
    ends = {name: np.array([[-1.0], [1.0]]) * np.ones(f.size) for name, f in FIELDS.items()}
    policy = assemble(cfg, CONTRACT, HORIZONS, Normalizer.fit(CONTRACT, ends))
    with torch.no_grad():
        for weights in policy.net.parameters():
            weights.add_(0.02 * torch.randn_like(weights))
    return policy


@cache
def sampler_of(name: str) -> Sampler:
    """A sampler in few steps."""
    cfg = compose_part("sampler", name)
    for node in (cfg, cfg.get("first", {})):  # Some sample their first chunk by another one.
        if "grid" in node:
            node.grid.n_steps = 4
    return instantiate(cfg)(space=SPACE)


def chunks(agent: Agent) -> list[np.ndarray]:
    """Two chunks in a row, of which the first is executed in part."""
    streams, given = agent.start(range(N)), np.random.default_rng(0)
    made = []
    for _ in range(2):
        seen = given.uniform(-1, 1, (N, HORIZONS.obs, 3)).astype(np.float32)
        made.append(agent.chunk(streams, {"state": seen}))
        agent.shift(streams, HORIZONS.action)
    return made


def check(net: str, sampler: str, precond: str) -> None:
    agent = Agent(policy_of(net, precond), sampler_of(sampler), rows=N)
    made = chunks(agent)
    assert all(np.isfinite(one).all() for one in made)
    assert not np.array_equal(made[0], made[1])
    if hasattr(agent.sampler, "levels"):
        agent.tick.denoisers = []  # As if the levels were not known.
        for bound, unbound in zip(made, chunks(agent), strict=True):
            np.testing.assert_allclose(bound, unbound, rtol=1e-5, atol=1e-5)


def test_there_are_some_of_each():
    assert NETS
    assert SAMPLERS
    assert PRECONDS


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("net", NETS)
def test_network_with_sampler(net, sampler):
    check(net, sampler, "edm")


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("precond", [name for name in PRECONDS if name != "edm"])
def test_parameterisation_with_sampler(precond, sampler):
    check("transformer_small", sampler, precond)
