"""The answer to a displaced object, with an agent whose reaction is known."""

from types import SimpleNamespace
from typing import cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from data.types import Field, Horizons
from policy import reaction
from policy.agent import Agent
from policy.reaction import Reaction, can_displace, measure_reaction

LENGTH = 40


class Place(gym.Env):
    """An object at a place that only `displace` changes, and a hand that goes where it is told."""

    def __init__(self):
        box = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.observation_space = spaces.Dict({"object": box, "hand": box})
        self.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.place, self.hand, self.tick = 0.0, 0.0, 0

    def seen(self):
        return {
            "object": np.array([self.place], np.float32),
            "hand": np.array([self.hand], np.float32),
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.hand, self.tick = float(seed or 0), 0.0, 0
        return self.seen(), {}

    def step(self, action):
        self.tick += 1
        self.hand = float(action[0])
        return self.seen(), 0.0, False, self.tick >= LENGTH, {}

    def displace(self):
        self.place += 3.0


class Pointer:
    """An agent that points at a share of the object's way since its start.

    Args:
        action: Ta.
        share: of the way.
        pull: share of the way from the hand to there that an action goes; 1 is all of it.
        spread: of a random factor of the way, the same for a stream's life.
        delay: of its chunks.
        aside: added to every action.
    """

    inference_delay = 0

    def __init__(self, action, *, share=1.0, pull=1.0, spread=0.0, delay=0, aside=0.0):
        self.horizons = Horizons(obs=1, pred=8, action=action)
        self.inference_delay = delay
        self.device = torch.device("cpu")
        self.contract = SimpleNamespace(action=Field(shape=(1,)))
        self.policy = SimpleNamespace(chunk=lambda actions, told: actions, told=lambda seen: {})
        self._share, self._pull, self._spread, self._aside = share, pull, spread, aside

    def start(self, seeds):
        factors = [1 + self._spread * (-1) ** seed for seed in seeds]
        return SimpleNamespace(first=None, factors=np.array(factors)[:, None])

    def shift(self, streams, n_executed):
        pass

    def chunk(self, streams, observation):
        now, hand = observation["object"][:, -1], observation["hand"][:, -1]
        if streams.first is None:
            streams.first = now
        way = self._share * streams.factors * (now - streams.first)
        target = streams.first + way + self._aside
        return np.repeat((hand + self._pull * (target - hand))[:, None], 8, axis=1)


def measure(agent, reference=None, *, samples=2, n_ticks=8, first_tick=3, n=16):
    return measure_reaction(
        cast(Agent, agent),
        cast(Agent, reference or Pointer(1)),
        Place,
        range(n),
        first_tick=first_tick,
        n_ticks=n_ticks,
        samples=samples,
    )


def curve(action, **settings):
    return measure(Pointer(action, **settings))


def test_a_decision_per_tick_answers_at_once():
    assert curve(1).curve() == pytest.approx([1.0] * 8)
    assert curve(1).delay() == 0


def test_a_chunk_answers_when_the_next_one_begins():
    """The change comes at all four phases alike: a quarter of them waits 0, 1, 2, 3 ticks."""
    assert curve(4).curve() == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    assert curve(4).delay() == 1


def test_episodes_fewer_than_phases_are_spread_over_the_plan():
    """Two of four: the changes are seen at ticks 4 and 6, and wait 0 and 2 ticks."""
    assert measure(Pointer(4), n=2).curve() == pytest.approx([0.5, 0.5, 1, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("n_phases", [1, 3, 4, 8, 16])
@pytest.mark.parametrize("n", [1, 2, 7, 24, 48])
def test_phases_are_alike_as_far_as_can_be(n, n_phases):
    phases = reaction._phases(n, n_phases)
    assert len(phases) == n
    counts = np.bincount(phases, minlength=n_phases)
    assert len(counts) == n_phases
    assert counts.max() - counts.min() <= 1
    assert abs(phases.mean() - (n_phases - 1) / 2) <= 0.5


def test_a_late_chunk_answers_later():
    shares = curve(4, delay=2).curve()
    assert shares == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1, 1])


def test_an_answer_may_be_a_part():
    measured = curve(1, share=0.3)
    assert measured.curve() == pytest.approx([0.3] * 8)
    assert measured.delay() is None
    assert measured.interval(0) == pytest.approx((0.3, 0.3))


def test_what_an_agent_does_anyway_is_no_answer():
    """The agent aims beside the object always, the reference never; both follow all of the way."""
    assert measure(Pointer(1, aside=1.0)).curve() == pytest.approx([1.0] * 8)


def test_following_ones_own_answer_is_no_further_answer():
    """Agent and reference go a fifth of the way at each step, the agent with 30 % of the change."""
    slow = Pointer(1, share=0.3, pull=0.2)
    measured = measure(slow, Pointer(1, pull=0.2))
    assert measured.curve() == pytest.approx([0.3] * 8)
    assert measured.delay() is None


@pytest.mark.parametrize("samples", [2, 8])
def test_a_random_reference_does_not_lessen_the_answer(samples):
    """Its factor is 0 or 2, half and half within each half of the samples of an episode."""
    random = Pointer(1, spread=1.0)
    if samples == 2:  # One sample a half: 0 and 2, whose product is 0 in every episode.
        assert measure(Pointer(1), random, samples=2).curve() == [None] * 8
    else:
        assert measure(Pointer(1), random, samples=8).curve() == pytest.approx([1.0] * 8)


def test_discrete_elements_are_left_out():
    agent = Pointer(1)
    agent.contract = SimpleNamespace(action=Field(shape=(1,), discrete=(0,)))
    assert measure(agent).curve() == [None] * 8


def test_interval_holds_the_share():
    rng = np.random.default_rng(0)
    wanted = rng.uniform(0.5, 2, (40, 3))
    measured = Reaction(wanted * rng.uniform(0, 1, (40, 3)), wanted)
    interval, share = measured.interval(1), measured.curve()[1]
    assert interval is not None
    assert share is not None
    low, high = interval
    assert low < share < high
    assert high - low < 0.4


def test_episodes_that_have_ended_do_not_count():
    measured = measure(Pointer(1), first_tick=LENGTH - 2, n_ticks=5, n=4)
    assert (measured.wanted[:, :2] > 0).all()
    assert (measured.wanted[:, 2:] == 0).all()
    assert measured.curve()[2:] == [None] * 3
    assert measured.interval(3) is None


def test_whether_something_can_be_displaced():
    assert can_displace(Place)
    assert can_displace(lambda: gym.make("envs.pillar:cadence/Pillar-v0"))
    assert not can_displace(lambda: gym.make("Pendulum-v1"))
