"""The answer to a displaced object, with an agent whose reaction is known."""

from types import SimpleNamespace
from typing import cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from data.types import Horizons
from policy.agent import Agent
from policy.reaction import Reaction, can_displace, measure_reaction

LENGTH = 40


class Place(gym.Env):
    """An object at a place that only `displace` changes."""

    def __init__(self):
        box = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.observation_space = spaces.Dict({"object": box})
        self.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.place, self.tick = 0.0, 0

    def seen(self):
        return {"object": np.array([self.place], np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.tick = float(seed or 0), 0
        return self.seen(), {}

    def step(self, action):
        self.tick += 1
        return self.seen(), 0.0, False, self.tick >= LENGTH, {}

    def displace(self):
        self.place += 3.0


class Pointer:
    """An agent whose chunks point at the object, or did so some chunks ago."""

    def __init__(self, action, *, share=1.0):
        self.horizons = Horizons(obs=1, pred=8, action=action)
        self.device = torch.device("cpu")
        self.policy = SimpleNamespace(chunk=lambda actions: actions)
        self._share = share

    def start(self, seeds):
        return SimpleNamespace(first={})

    def shift(self, streams, n_executed):
        pass

    def chunk(self, streams, observation):
        """All actions are the object's place, of which a part stays what it was at first."""
        now = observation["object"][:, -1]
        for slot, place in enumerate(now):
            streams.first.setdefault(slot, place)
        first = np.stack([streams.first[slot] for slot in range(len(now))])
        target = self._share * now + (1 - self._share) * first
        return np.repeat(target[:, None], 8, axis=1)


def curve(action, *, delay=0, share=1.0, n_ticks=8):
    agent = cast(Agent, Pointer(action, share=share))
    reference = cast(Agent, Pointer(1))
    return measure_reaction(
        agent,
        reference,
        Place,
        range(16),
        inference_delay=delay,
        first_tick=3,
        n_ticks=n_ticks,
        samples=2,
    )


def test_a_decision_per_tick_answers_at_once():
    assert curve(1).curve() == pytest.approx([1.0] * 8)
    assert curve(1).delay() == 0


def test_a_chunk_answers_when_the_next_one_begins():
    """The change comes at all four phases alike: a quarter of them waits 0, 1, 2, 3 ticks."""
    assert curve(4).curve() == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    assert curve(4).delay() == 1


def test_a_late_chunk_answers_later():
    shares = curve(4, delay=2).curve()
    assert shares == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1, 1])


def test_an_answer_may_be_a_part():
    measured = curve(1, share=0.3)
    assert measured.curve() == pytest.approx([0.3] * 8)
    assert measured.delay() is None
    assert measured.interval(0) == pytest.approx((0.3, 0.3))


def test_interval_holds_the_share():
    rng = np.random.default_rng(0)
    wanted = rng.uniform(0.5, 2, (40, 3))
    measured = Reaction(wanted * rng.uniform(0, 1, (40, 3)), wanted)
    low, high = measured.interval(1)
    assert low < measured.curve()[1] < high
    assert high - low < 0.4


def test_episodes_that_have_ended_do_not_count():
    agent = cast(Agent, Pointer(1))
    measured = measure_reaction(
        agent,
        cast(Agent, Pointer(1)),
        Place,
        range(4),
        inference_delay=0,
        first_tick=LENGTH - 2,
        n_ticks=5,
        samples=1,
    )
    assert (measured.wanted[:, :2] > 0).all()
    assert (measured.wanted[:, 2:] == 0).all()


def test_whether_something_can_be_displaced():
    assert can_displace(Place)
    assert can_displace(lambda: gym.make("envs.pillar:cadence/Pillar-v0"))
    assert not can_displace(lambda: gym.make("Pendulum-v1"))
