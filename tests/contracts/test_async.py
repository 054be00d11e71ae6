"""The asynchronous loop without delay equals a plain synchronous one, bit for bit (T2, T6).

Every network and every sampler, each with two of the others (test_product has all pairs). The
synchronous loop here is the shortest one that there is.
"""

import numpy as np
import pytest
from test_product import CONTRACT, HORIZONS, NETS, SAMPLERS, policy_of, sampler_of

from data.types import Observation
from policy.agent import Agent
from policy.control.clock import VirtualClock
from policy.control.delay import DelayEstimate
from policy.control.governed import Governed
from policy.control.governor_settings import governor
from policy.control.history import History
from policy.control.inference import Inference
from policy.control.latency import TimingLog
from policy.control.loop import control_loop
from policy.control.manner import Manner
from policy.planning import AgentPlanner
from policy.types import Request

N_TICKS = 9


class Plant:
    """Its state is a sum of what it was told."""

    is_real = False
    contract = CONTRACT
    limits = (np.full(2, -np.inf), np.full(2, np.inf))

    def __init__(self, clock):
        self.clock, self.state, self.commands = clock, np.zeros(3, np.float32), []

    def read(self):
        return Observation({"state": self.state}, capture_time=self.clock.now())

    def pose(self):
        return None

    def command(self, action, tick):
        self.commands.append(np.array(action))
        self.state = self.state + 0.1 * np.append(action, action[0]).astype(np.float32)

    def stop(self):
        pass


def planner_of(net, sampler):
    return AgentPlanner([Agent(policy_of(net, "edm"), sampler_of(sampler), rows=1)])


def synchronous(planner):
    plant, history = Plant(VirtualClock()), History(HORIZONS.obs)
    for tick in range(N_TICKS):
        history.add(tick, plant.read().fields)
        if tick % HORIZONS.action == 0:
            chunk = planner(Request(history.stacked(), tick, seed=5))
        plant.command(chunk.actions[tick - chunk.tick0], tick)
    return plant.commands


def asynchronous(planner):
    clock = VirtualClock()
    plant = Plant(clock)
    everything = governor(
        CONTRACT.action,
        CONTRACT.control_dt,
        limits={},
        pose_tolerance=np.inf,
        max_action_age=np.inf,
        max_observation_age=np.inf,
        watchdog=np.inf,
        max_clamped_ticks=None,
        start="approach",
    )
    governed = Governed(plant, everything)
    governed.arm()
    with Inference(planner, clock=clock) as inference:
        control_loop(
            governed,
            inference,
            clock=clock,
            horizons=HORIZONS,
            manner=Manner(),
            delay=DelayEstimate(),
            n_ticks=N_TICKS,
            log=TimingLog(CONTRACT.control_dt),
            seed=5,
        )
    return plant.commands


def pairs():
    """Two of the other kind for each network and each sampler: diagonals of the table of all."""
    n = max(len(NETS), len(SAMPLERS))
    found = {
        (NETS[(i + k) % len(NETS)], SAMPLERS[i % len(SAMPLERS)]) for i in range(n) for k in (0, 5)
    }
    return sorted(found)


@pytest.mark.parametrize(("net", "sampler"), pairs())
def test_t2_t6_without_delay_asynchronous_is_synchronous(net, sampler):
    expected = synchronous(planner_of(net, sampler))
    assert len(expected) == N_TICKS
    assert not np.array_equal(expected[0], expected[4])
    np.testing.assert_array_equal(asynchronous(planner_of(net, sampler)), expected)
