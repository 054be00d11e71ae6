"""Engines of policies that see pictures, goals, and tasks with scales of their own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.normalize import Normalizer
from data.types import Contract, Field, Horizons
from policy.agent import Agent
from policy.build import assemble
from policy.diffusion.schedule import karras
from policy.diffusion.step import dpmpp_2m
from policy.engine import EngineSettings, use_engine
from policy.entry import CONFIGS, compose_config
from policy.sampling.descent import Descent
from policy.sampling.sequential import Sequential
from policy.types import ChunkSpace

HORIZONS = Horizons(obs=2, pred=4, action=2)
STATES = {"state": Field(shape=(3,), angles=(2,)), "goal": Field(shape=(2,))}
PICTURE = {"camera": Field(shape=(32, 32, 3), dtype="uint8")}
ACTION = Field(shape=(2,))
NET = ("net=mlp_film", "net.size=16", "net.n_blocks=1", "precond=edm")
ENCODERS = sorted(path.stem for path in (CONFIGS / "encoder").glob("*.yaml"))


def agent_of(fields, *overrides, action=ACTION, rows=2, **settings):
    contract = Contract(fields, action, control_dt=0.1)
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.uniform(-2, 3, (50, *field.shape))
        for name, field in contract.fields.items()
        if not field.is_image
    }
    if "task" in fields:
        arrays["task"] = np.eye(2)[np.arange(50) % 2]
    torch.manual_seed(0)
    cfg = compose_config("train", [*NET, *overrides])
    policy = assemble(cfg, contract, HORIZONS, Normalizer.fit(contract, arrays))
    with torch.no_grad():
        for weights in policy.net.parameters():
            weights.add_(0.1 * torch.randn_like(weights))
    grid = karras(3, sigma_min=0.1, sigma_max=10.0)
    sampler = Sequential(
        space=ChunkSpace(HORIZONS, action_size=2), grid=grid, descent=Descent(dpmpp_2m)
    )
    return Agent(policy, sampler, rows=rows, **settings)


def observations(agent, rng):
    seen = {}
    for name, field in agent.contract.observation.items():
        shape = (2, HORIZONS.obs, *field.shape)
        if name == "task":
            seen[name] = np.eye(2, dtype=np.float32)[[[0, 0], [1, 1]]]
        elif field.is_image:
            seen[name] = rng.integers(256, size=shape, dtype=np.uint8)
        else:
            seen[name] = rng.uniform(-2, 3, shape).astype(np.float32)
    return seen


def check(agent: Agent, cache: Path) -> None:
    def chunks():
        rng, streams = np.random.default_rng(3), agent.start([0, 1])
        return [agent.chunk(streams, observations(agent, rng)) for _ in range(2)]

    expected = chunks()
    line = use_engine([agent], EngineSettings("fused", cache=cache))
    assert "largest error 0 %" in line
    np.testing.assert_array_equal(chunks(), expected)
    assert not np.array_equal(expected[0], expected[1])
    assert not np.array_equal(expected[0][0], expected[0][1])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder(encoder, tmp_path):
    try:
        agent = agent_of({**STATES, **PICTURE}, f"encoder={encoder}")
    except ValueError:  # Not all of them take pictures.
        agent = agent_of(STATES, f"encoder={encoder}")
    check(agent, tmp_path)


@pytest.mark.parametrize("goal_weight", [0.0, 1.5])
def test_goals_that_are_weighed(goal_weight, tmp_path):
    check(agent_of(STATES, "encoder=goal", goal_weight=goal_weight), tmp_path)


def test_tasks_that_have_scales_of_their_own(tmp_path):
    told = Field(shape=(2,), normalization="identity")
    state = replace(STATES["state"], scaled_per="task", angles=())
    action = replace(ACTION, scaled_per="task")
    check(agent_of({"task": told, "state": state}, action=action), tmp_path)
