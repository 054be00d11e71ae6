"""Sketches: an episode is played as evaluated, and the most undecided moment is found."""

from types import SimpleNamespace
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest

from data.types import Contract, Field, Horizons
from policy.agent import Agent
from policy.sketch import STRIDE, can_sketch, sketch

UNDECIDED = 2 * STRIDE  # the step at which the fake agent's chunks differ


class Line(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """A point that goes where it is told; the episode ends after 11 steps."""

    metadata = {"modes": ("none", "left")}  # noqa: RUF012  (Gymnasium's form)

    def __init__(self):
        place = gym.spaces.Box(-99, 99, (2,))
        self.observation_space = cast(Any, gym.spaces.Dict({"place": place}))
        self.action_space = place

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        self.n_steps, self.place = 0, np.array([seed, 0.0], np.float32)
        return {"place": self.place.copy()}, {}

    def step(self, action: np.ndarray):
        self.n_steps += 1
        self.place = np.array(action, np.float32)
        over = self.n_steps == 11
        return {"place": self.place.copy()}, 0.0, over, False, {"is_success": over, "mode": 1}


class FakeAgent:
    """Walks along x; many streams at x = UNDECIDED go to either side."""

    horizons = Horizons(obs=2, pred=6, action=3)

    def __init__(self):
        self.shifts = []

    def start(self, seeds):
        return SimpleNamespace(n=len(seeds))

    def shift(self, streams, n_executed):
        self.shifts.append(n_executed)

    def chunk(self, streams, observation):
        assert observation["place"].shape == (streams.n, 2, 2)
        x = observation["place"][:, -1, 0]
        chunks = np.zeros((streams.n, 6, 2))
        chunks[..., 0] = x[:, None] + np.arange(1, 7)
        width = 1.0 if x[0] == UNDECIDED else 0.1
        if streams.n > 1:
            chunks[..., 1] = width * np.where(np.arange(streams.n) % 2, 1, -1)[:, None]
        return chunks


def test_episode_is_played_chunk_by_chunk_and_the_undecided_moment_is_found():
    agent = FakeAgent()
    made = sketch(cast(Agent, agent), Line, seed=0, samples=8)
    assert agent.shifts == [3, 3, 3]
    # Going one step along x at every step, over the chunks' borders at 3, 6 and 9.
    assert made.rollout.observation["place"][:, 0].tolist() == list(range(12))
    assert made.rollout.action.shape == (11, 2)
    assert (made.rollout.success, made.rollout.mode) == (True, "left")
    assert made.fan.tick == UNDECIDED
    assert made.fan.chunks.shape == (8, 6, 2)


@pytest.mark.parametrize(
    ("kind", "size", "expected"),
    [("absolute", 2, True), ("delta", 2, False), ("absolute", 1, False)],
)
def test_only_places_can_be_drawn(kind: Any, size, expected):
    action = Field(shape=(size,), kind=kind)
    assert can_sketch(Contract({"place": Field(shape=(2,))}, action, control_dt=0.1)) is expected
