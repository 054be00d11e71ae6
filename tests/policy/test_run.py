"""`cadence run`: an agent's stream on the control loop, and what is told afterwards."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from data.types import Contract, Field, Horizons
from policy.agent import Agent
from policy.control.latency import TimingLog
from policy.entry import compose_config
from policy.run import StreamPolicy, run, timing_table

CONTRACT = Contract({"place": Field(shape=(2,))}, Field(shape=(2,)), control_dt=0.1)


class FakeAgent:
    horizons = Horizons(obs=3, pred=8, action=4)
    contract = CONTRACT

    def __init__(self):
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
        return np.arange(16.0).reshape(1, 8, 2)


def test_stream_moves_on_by_the_ticks_that_passed():
    agent = FakeAgent()
    policy = StreamPolicy(cast(Agent, agent), seed=7)
    history = {"place": np.zeros((3, 2))}
    chunks = [policy(history, tick) for tick in (0, 4, 9, 29)]
    assert agent.seeds == [7]
    assert agent.shifts == [4, 5]
    assert agent.renewed == [0]  # 20 ticks are more than a chunk holds.
    assert agent.streams.ticks == [29]
    assert [chunk.tick0 for chunk in chunks] == [0, 4, 9, 29]
    assert chunks[0].actions.shape == (8, 2)
    assert chunks[0].contract is CONTRACT


def test_table_shows_milliseconds_and_counts():
    log = TimingLog(0.1)
    log.add_latency(0.0125)
    log.add_command(time=1.0125, due=1.0)
    log.add_command(time=1.1, due=1.1)
    log.n_missed = 2
    period, latency, delay, counts = timing_table(log).splitlines()[1:]
    assert period.split() == ["period", "(want", "100)", *["87.50"] * 5]
    assert latency.split() == ["policy", "latency", *["12.50"] * 5]
    assert delay.split()[:3] == ["command", "delay", "6.25"]
    assert "commands 2  missed deadlines 2  held 0" in counts


def test_table_of_an_interrupted_run_says_that_there_is_nothing():
    assert "no samples" in timing_table(TimingLog(0.1))


@pytest.mark.parametrize("setting", ["episodes", "seconds"])
def test_nothing_to_run_is_refused(setting):
    cfg = compose_config("run", ["env=pillar", "checkpoint=there", f"{setting}=0"])
    with pytest.raises(ValueError, match=f"{setting} is 0"):
        run(cfg)
