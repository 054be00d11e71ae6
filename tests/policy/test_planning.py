"""An agent as a planner: its stream moves on by the ticks that passed."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from data.types import Contract, Field, Horizons
from policy.agent import Agent
from policy.planning import AgentPlanner
from policy.types import Request

CONTRACT = Contract({"place": Field(shape=(2,))}, Field(shape=(2,)), control_dt=0.1)
HISTORY = {"place": np.zeros((3, 2), np.float32)}


class FakeAgent:
    horizons = Horizons(obs=3, pred=8, action=4)
    contract = CONTRACT

    def __init__(self, name=0.0):
        self.name = name
        self.seeds, self.shifts, self.renewed = [], [], []

    def start(self, seeds):
        self.seeds += list(seeds)
        self.streams = SimpleNamespace(ticks=[0] * len(seeds))
        return self.streams

    def shift(self, streams, n_executed):
        assert n_executed <= self.horizons.pred
        streams.ticks = [tick + n_executed for tick in streams.ticks]
        self.shifts.append(n_executed)

    def renew(self, streams, slot):
        self.renewed.append(slot)

    def chunk(self, streams, observation):
        assert observation["place"].shape == (1, 3, 2)
        return np.full((1, 8, 2), self.name)


def planner_of(*agents, **urgent):
    return AgentPlanner([cast(Agent, agent) for agent in agents], **urgent)


def test_stream_moves_on_by_the_ticks_that_passed():
    agent = FakeAgent()
    planner = planner_of(agent)
    chunks = [planner(Request(HISTORY, tick, seed=7)) for tick in (0, 4, 9, 29)]
    assert agent.seeds == [7]
    assert agent.shifts == [4, 5]
    assert agent.renewed == [0]  # 20 ticks are more than a chunk holds.
    assert agent.streams.ticks == [29]
    assert [chunk.tick0 for chunk in chunks] == [0, 4, 9, 29]
    assert chunks[0].actions.shape == (8, 2)


def test_the_contract_tells_the_horizons():
    planner = planner_of(FakeAgent())
    assert planner.contract.horizons == planner.horizons == FakeAgent.horizons


def test_the_agent_is_that_of_the_decided_actions_and_of_the_urgency():
    urgent = [cast(Agent, FakeAgent(10.0)), cast(Agent, FakeAgent(11.0))]
    planner = planner_of(FakeAgent(0.0), FakeAgent(1.0), FakeAgent(2.0), urgent=urgent)
    assert planner.max_delay == 1

    def name(tick, **how):
        return planner(Request(HISTORY, tick, **how)).actions[0, 0]

    assert [name(0), name(1, delay=1), name(2, delay=5)] == [0, 1, 1]
    assert [name(3, is_urgent=True), name(4, is_urgent=True, delay=1)] == [10, 11]


def test_a_planner_without_agents_is_refused():
    with pytest.raises(ValueError, match="agents is empty"):
        AgentPlanner([])
