"""Every sampler's call as a function of tensors, and as a program: the same bit for bit.

Against the shortest way to draw a chunk: encode, call the sampler with the streams' generators,
un-normalise.
"""

import numpy as np
import pytest
import torch
from test_product import HORIZONS, NETS, SAMPLERS, N, policy_of, sampler_of

from policy.agent import Agent
from policy.control.program import program_of
from policy.parity import examples_of
from policy.replay import Replay, denoisers_at
from policy.tick import Tick

N_TICKS = 3


def observations(seed=0):
    given = np.random.default_rng(seed)
    for _ in range(N_TICKS):
        yield {"state": given.uniform(-1, 1, (N, HORIZONS.obs, 3)).astype(np.float32)}


@torch.no_grad()
def plain_chunks(policy, sampler):
    """Chunks of streams 0 to N - 1, one after the other."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(N)]
    levels, carry, made = getattr(sampler, "levels", []), None, []
    for observation in observations():
        seen = {name: torch.from_numpy(values) for name, values in observation.items()}
        cond = policy.encode(seen)
        denoiser = Replay(denoisers_at(policy, levels)) if levels else policy
        if carry is None:
            carry = sampler.start(denoiser, cond, generators)
        else:
            carry = sampler.shift(carry, HORIZONS.action)
        x0, carry = sampler(denoiser, cond, carry, generators)
        made.append(policy.actions(x0, seen)[:, HORIZONS.past :].numpy())
    return made


def chunks(agent):
    streams, made = agent.start(range(N)), []
    for i, observation in enumerate(observations()):
        if i > 0:
            agent.shift(streams, HORIZONS.action)
        made.append(agent.chunk(streams, observation))
    return made


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_agent_is_the_plain_way_with_noise_drawn_as_needed_or_before(sampler):
    policy, made = policy_of("unet1d_small", "edm"), sampler_of(sampler)
    agent = Agent(policy, made, rows=N)
    expected = plain_chunks(agent.policy, made)
    np.testing.assert_array_equal(chunks(agent), expected)
    agent.use(agent.tick)  # Its noise is drawn before.
    np.testing.assert_array_equal(chunks(agent), expected)


def check_program(net, sampler):
    tick = Tick(
        Agent(policy_of(net, "edm"), sampler_of(sampler), rows=N).policy, sampler_of(sampler)
    )
    examples = examples_of(tick, rows=N, n=N_TICKS)

    def call(state, x, sigma, *noise):
        return tick({"state": state}, x, sigma, list(noise))

    inputs = [[e.observation["state"], e.x, e.sigma, *e.noise] for e in examples]
    program = program_of(call, inputs[0])
    quick = program.quick()
    for given in inputs[1:]:
        expected = call(*given)
        for run in (program, quick):
            for ours, theirs in zip(run(*given), expected, strict=True):
                assert torch.equal(ours, theirs)
    # Another observation gives other actions: nothing of it was taken for a constant.
    assert not torch.equal(quick(*inputs[1])[0], quick(*inputs[2])[0])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_program_of_a_sampler_is_the_tick(sampler):
    check_program("mlp_film", sampler)


@pytest.mark.parametrize("net", NETS)
def test_program_of_a_network_is_the_tick(net):
    check_program(net, "ddim_3")
