"""What an evaluation measures does not depend on how many episodes run side by side."""

import copy
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from data.normalize import Normalizer
from data.record import contract_of
from data.types import Horizons
from envs.vector import make_vec
from policy.agent import Agent, NotFiniteError
from policy.build import assemble
from policy.diffusion.schedule import karras
from policy.diffusion.step import dpmpp_2m
from policy.entry import compose_config, compose_part
from policy.evaluate import summarise, summary_line
from policy.play import Episode, Executor, play
from policy.sampling.carry import nothing_known
from policy.sampling.descent import Descent
from policy.sampling.sequential import Sequential
from policy.types import ChunkSpace

MAKE = partial(gymnasium.make, "envs.pillar:cadence/Pillar-v0", max_episode_steps=20)
HORIZONS = Horizons(obs=2, pred=8, action=4)


@pytest.fixture(scope="module")
def agent() -> Agent:
    """A policy with random weights: chaotic enough that a difference would show."""
    env = MAKE()
    contract = contract_of(env)
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.uniform(-0.3, 0.3, (50, *field.shape)) for name, field in contract.fields.items()
    }
    env.close()
    torch.manual_seed(0)
    cfg = compose_config("train", ["store.path=none", "net.channels=[16,32]"])
    policy = assemble(cfg, contract, HORIZONS, Normalizer.fit(contract, arrays))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    sampler = Sequential(
        space=ChunkSpace(HORIZONS, action_size=4),
        grid=karras(n_steps=3, sigma_min=0.01, sigma_max=20.0, rho=7.0),
        descent=Descent(dpmpp_2m),
    )
    return Agent(policy, sampler, rows=4)


def episodes(agent: Agent, num_envs: int) -> list[Episode]:
    envs = make_vec(MAKE, num_envs, horizons_obs=2, horizons_action=4)
    finished: list[Episode] = []
    play(agent, envs, range(10), finished=finished)
    envs.close()
    return sorted(finished, key=lambda e: e.seed)


def test_results_do_not_depend_on_the_number_of_parallel_envs(agent):
    assert episodes(agent, 1) == episodes(agent, 7) == episodes(agent, 10)


def test_each_seed_is_played_once_to_its_end(agent):
    played = episodes(agent, 3)
    assert [e.seed for e in played] == list(range(10))
    assert all(1 <= e.length <= 20 for e in played)


def test_chunks_of_a_stream_do_not_depend_on_its_neighbours(agent):
    """Bit for bit, which holds because the network always runs on the same number of rows."""
    rng = np.random.default_rng(1)
    observation = {
        name: rng.uniform(-0.2, 0.2, (6, 2, *field.shape)).astype(np.float32)
        for name, field in agent.contract.observation.items()
    }
    together = agent.chunk(agent.start(range(6)), observation)
    for stream in range(6):
        alone = {name: values[[stream]] for name, values in observation.items()}
        assert np.array_equal(agent.chunk(agent.start([stream]), alone)[0], together[stream])


def test_a_restarted_slot_repeats_its_stream(agent):
    observation = {
        name: np.zeros((2, 2, *field.shape), np.float32)
        for name, field in agent.contract.observation.items()
    }
    streams = agent.start([5, 6])
    first = agent.chunk(streams, observation)
    second = agent.chunk(streams, observation)
    assert not np.array_equal(first, second), "each chunk has its own noise"
    agent.restart(streams, 1, 5)
    assert np.array_equal(agent.chunk(streams, observation)[1], first[0])


@pytest.mark.parametrize("name", ["rti", "rtc", "streaming", "picard_4"])
def test_streams_of_samplers_with_memory_are_their_own(agent, name):
    """Bit for bit: with neighbours or alone, and a restarted stream like a new one."""
    make = instantiate(compose_part("sampler", name))
    policy = agent.policy
    remembering = Agent(policy, make(space=ChunkSpace(HORIZONS, action_size=4)), rows=4)
    rng = np.random.default_rng(1)

    def look(n):
        return {
            field: rng.uniform(-0.2, 0.2, (n, 2, *meaning.shape)).astype(np.float32)
            for field, meaning in agent.contract.observation.items()
        }

    seen = [look(3) for _ in range(3)]
    seeds = [4, 5, 8]  # Of 4 rows; 4 and 8 share one, so that a chunk takes two calls.

    def chunks(slots, streams):
        result = []
        for observation in seen:
            part = {field: values[slots] for field, values in observation.items()}
            result.append(remembering.chunk(streams, part))
            remembering.shift(streams, 4)
        return np.stack(result)

    together = chunks([0, 1, 2], remembering.start(seeds))
    for slot in range(3):
        alone = chunks([slot], remembering.start([seeds[slot]]))
        assert np.array_equal(alone[:, 0], together[:, slot])
    used = remembering.start(seeds)
    chunks([0, 1, 2], used)
    for slot, seed in enumerate(seeds):
        remembering.restart(used, slot, seed)
    assert np.array_equal(chunks([0, 1, 2], used), together)


def test_a_prediction_that_is_not_finite_is_told(agent):
    observation = {
        name: np.zeros((2, 2, *field.shape), np.float32)
        for name, field in agent.contract.observation.items()
    }
    streams = agent.start([7, 8])
    agent.chunk(streams, observation)
    agent.shift(streams, 4)
    broken = {name: values.copy() for name, values in observation.items()}
    next(iter(broken.values()))[1] = np.nan
    with pytest.raises(NotFiniteError, match="stream of seed 8 at tick 4, first at sigma 20"):
        agent.chunk(streams, broken)


def test_a_prediction_that_is_not_finite_is_told_even_if_the_sampler_hides_it(agent):
    class Hiding:
        nfe, start_nfe = 1, 0
        space = ChunkSpace(HORIZONS, action_size=4)

        def start(self, denoiser, cond, generator):
            return nothing_known(cond, self.space)

        def shift(self, carry, n_executed):
            return carry

        def __call__(self, denoiser, cond, carry, generator):
            x0_hat = denoiser(carry.x * np.nan, torch.full((len(cond), 8), 3.0), cond)
            return x0_hat.nan_to_num(), carry

    hiding = Agent(agent.policy, Hiding(), rows=2)
    observation = {
        name: np.zeros((1, 2, *field.shape), np.float32)
        for name, field in agent.contract.observation.items()
    }
    with pytest.raises(NotFiniteError, match="stream of seed 7 at tick 0, first at sigma 3"):
        hiding.chunk(hiding.start([7]), observation)


@pytest.mark.parametrize("has_planned", [False, True])
@pytest.mark.parametrize("n_executed", [-1, 9])
def test_more_executed_actions_than_a_chunk_has_are_refused(agent, n_executed, has_planned):
    observation = {
        name: np.zeros((1, 2, *field.shape), np.float32)
        for name, field in agent.contract.observation.items()
    }
    streams = agent.start([0])
    if has_planned:
        agent.chunk(streams, observation)
    message = rf"{n_executed} actions were executed, a chunk has 8: give 0 to 8, and renew\(\)"
    with pytest.raises(ValueError, match=message):
        agent.shift(streams, n_executed)
    assert streams.ticks == [0]
    agent.shift(streams, 8)
    assert streams.ticks == [8]


def test_ticks_stay_where_the_sampler_refuses_a_shift(agent):
    class Refusing(Sequential):
        def shift(self, carry, n_executed):
            raise ValueError("no")

    sampler = agent.sampler
    refusing = Agent(
        agent.policy,
        Refusing(space=sampler.space, grid=torch.tensor(sampler.sigmas), descent=sampler.descent),
        rows=1,
    )
    observation = {
        name: np.zeros((1, 2, *field.shape), np.float32)
        for name, field in agent.contract.observation.items()
    }
    streams = refusing.start([0])
    refusing.chunk(streams, observation)
    with pytest.raises(ValueError, match="no"):
        refusing.shift(streams, 4)
    assert streams.ticks == [0]


def test_late_chunks_are_executed_from_where_they_begin():
    """Ta = 4 of 8, delay 2: the first chunk is in time, later ones miss their first two actions."""
    executor = Executor(HORIZONS, 2)
    chunks = [100.0 * i + np.arange(8.0).reshape(1, 8, 1) for i in range(3)]
    executor.restart(0)
    executed = [executor.actions(chunk)[0, :, 0].tolist() for chunk in chunks]
    assert executed == [[0, 1, 2, 3], [4, 5, 102, 103], [104, 105, 202, 203]]
    # Plans differ by 100 - 4 at each take-over.
    assert [jump.item() for jump in executor.jumps] == [96, 96]


def test_several_chunks_may_be_on_their_way():
    """Ta = 1, delay 2: each chunk is executed at its third action, the first one until then."""
    executor = Executor(Horizons(obs=1, pred=8, action=1), 2)
    executor.restart(0)
    chunks = [100.0 * i + np.arange(8.0).reshape(1, 8, 1) for i in range(5)]
    executed = [executor.actions(chunk)[0, 0, 0] for chunk in chunks]
    assert executed == [0, 1, 2, 102, 202]
    executor.restart(0)
    assert executor.actions(chunks[3])[0, 0, 0] == 300
    assert executor.actions(chunks[4])[0, 0, 0] == 301


def test_idle_slots_have_no_jumps():
    executor = Executor(HORIZONS, 0)
    executor.actions(np.zeros((2, 8, 1)), [0, 1])
    executor.actions(np.ones((2, 8, 1)), [1])
    assert [jump.shape for jump in executor.jumps] == [(1, 1)]


@pytest.mark.parametrize("delay", [-1, 5])
def test_impossible_delay_is_refused(delay):
    with pytest.raises(ValueError, match=f"inference_delay is {delay}"):
        ChunkSpace(HORIZONS, action_size=4, inference_delay=delay)


def test_executed_actions_begin_at_now(agent):
    """Of a chunk that begins 3 steps ago, actions 3, 4, ... are handed out."""

    class Counting:
        nfe, start_nfe = 0, 0
        space = ChunkSpace(Horizons(obs=2, pred=8, action=4, past=3), action_size=4)

        def start(self, denoiser, cond, generator):
            return nothing_known(cond, self.space)

        def shift(self, carry, n_executed):
            return carry

        def __call__(self, denoiser, cond, carry, generator):
            steps = torch.arange(8.0)[:, None].expand(len(cond), 8, 4)
            return steps, carry

    policy = copy.copy(agent.policy)
    policy.horizons = Counting.space.horizons
    counting = Agent(policy, Counting(), rows=2)
    observation = {
        name: np.zeros((1, 2, *field.shape), np.float32)
        for name, field in agent.contract.observation.items()
    }
    chunk = counting.chunk(counting.start([0]), observation)
    expected = policy.actions(torch.arange(3.0, 8.0)[:, None].expand(1, 5, 4))
    assert np.array_equal(chunk, expected.numpy())


def test_another_policys_sampler_is_refused(agent):
    other = ChunkSpace(Horizons(obs=2, pred=8, action=4, past=1), action_size=4)
    grid = karras(n_steps=3, sigma_min=0.01, sigma_max=20.0)
    sampler = Sequential(space=other, grid=grid, descent=Descent(dpmpp_2m))
    with pytest.raises(ValueError, match="1 in the past"):
        Agent(agent.policy, sampler)


def test_slots_that_need_no_chunk_are_left_alone(agent):
    observation = {
        name: np.zeros((2, 2, *field.shape), np.float32)
        for name, field in agent.contract.observation.items()
    }
    streams, reference = agent.start([5, 6]), agent.start([5, 6])
    expected = agent.chunk(reference, observation)
    assert np.array_equal(agent.chunk(streams, observation, [0])[1], np.zeros_like(expected[1]))
    assert np.array_equal(agent.chunk(streams, observation, [1])[1], expected[1])


def test_summary_counts_success_and_ways():
    played = [
        Episode(0, score=1.0, success=True, length=10, mode=1),
        Episode(1, score=1.0, success=True, length=20, mode=2),
        Episode(2, score=1.0, success=True, length=30, mode=2),
        Episode(3, score=0.2, success=False, length=40, mode=2),
    ]
    summary = summarise(played, ("none", "left", "right"))
    assert summary["success"] == 0.75
    assert summary["score"] == pytest.approx(0.8)
    assert summary["mean_length"] == 25
    assert summary["modes"] == {"left": pytest.approx(1 / 3), "right": pytest.approx(2 / 3)}
    low, high = summary["success_interval"]
    assert low < 0.75 < high
    line = summary_line({**summary, "calls_per_action": 1.0})
    assert "success 0.750" in line
    assert "calls per action 1" in line
