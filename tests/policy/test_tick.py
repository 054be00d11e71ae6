"""The tick as a function of tensors: what it draws, what it refuses."""

import pytest
import torch
from torch import nn

from data.normalize import Normalizer
from data.types import Contract, Field, Horizons
from policy.diffusion.noise import randn
from policy.diffusion.precond import EDM
from policy.diffusion.schedule import karras
from policy.diffusion.step import dpmpp_2m, dpmpp_2m_sde
from policy.model import DiffusionPolicy
from policy.sampling.descent import Descent
from policy.sampling.sequential import Sequential
from policy.tick import Tick, lowered, noise_of, with_net
from policy.types import ChunkSpace

HORIZONS = Horizons(obs=1, pred=4, action=2)
CONTRACT = Contract(
    {"s": Field(shape=(2,), normalization="identity")},
    Field(shape=(2,), normalization="identity"),
    control_dt=0.1,
)
SPACE = ChunkSpace(HORIZONS, action_size=2)
GRID = karras(3, sigma_min=0.1, sigma_max=10.0)


class Net(nn.Module):
    """A network of one number; lowered, of another one."""

    def __init__(self, factor=0.3):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x, c_noise, cond):
        return self.factor * x + cond[:, None] + 0 * c_noise[..., None]


class Lowerable(Net):
    def lowered(self, weights):
        return Net({"fp32": 0.3, "bf16": 0.5}[weights])


class Encoder(nn.Module):
    def forward(self, features):
        return features["s"][:, 0]


def policy_of(net):
    normalizer = Normalizer.fit(CONTRACT, {n: torch.zeros(2, 2).numpy() for n in ("s", "action")})
    policy = DiffusionPolicy(Encoder(), net, EDM(0.5), normalizer, CONTRACT, HORIZONS)
    return policy.requires_grad_(False)


def sequential(solver=dpmpp_2m):
    return Sequential(space=SPACE, grid=GRID, descent=Descent(solver))


def test_draws_are_the_start_and_one_of_each_noisy_step():
    chunk = (2, 4, 2)
    assert Tick(policy_of(Net()), sequential()).draws(2).noise == (chunk,)
    draws = Tick(policy_of(Net()), sequential(dpmpp_2m_sde)).draws(2)
    assert draws.noise == (chunk,) * 4
    assert draws.n_calls == 3


def test_noise_that_is_not_what_the_sampler_draws_is_refused():
    tick = Tick(policy_of(Net()), sequential())
    inputs = ({"s": torch.ones(2, 1, 2)}, torch.zeros(2, 4, 2), torch.zeros(2, 4))
    noise = noise_of(tick.draws(2).noise, torch.Generator())
    with pytest.raises(ValueError, match="drawn 1 times, 2 were drawn beforehand"):
        tick(*inputs, noise * 2)
    with pytest.raises(ValueError, match=r"drawn a 1\. time, 0 were"):
        tick(*inputs, [])


class Restless(Sequential):
    """Draws once more, or calls once more, where a stream is new."""

    def __init__(self, *, draws=0, calls=0):
        super().__init__(space=SPACE, grid=GRID, descent=Descent(dpmpp_2m))
        self.extra = draws, calls

    @property
    def levels(self):
        return []  # They are not always the same.

    def __call__(self, denoiser, cond, carry, generator):
        draws, calls = self.extra
        if carry.sigma.isinf().any():
            for _ in range(draws):
                randn(carry.x.shape, generator)
            for _ in range(calls):
                denoiser(carry.x, torch.ones_like(carry.sigma), cond)
        return super().__call__(denoiser, cond, carry, generator)


@pytest.mark.parametrize(
    ("extra", "said"), [({"draws": 1}, "1 times for"), ({"calls": 1}, "3 den")]
)
def test_a_sampler_whose_calls_vary_is_refused(extra, said):
    tick = Tick(policy_of(Net()), Restless(**extra))
    with pytest.raises(ValueError, match=said) as error:
        tick.draws(1)
    assert "engine=eager" in str(error.value)


def test_a_sampler_that_miscounts_its_calls_is_refused():
    class Miscounting(Sequential):
        @property
        def nfe(self):
            return 5

    made = Miscounting(space=SPACE, grid=GRID, descent=Descent(dpmpp_2m))
    with pytest.raises(
        ValueError, match=r"makes 3 denoiser calls and says that they are 5 \(nfe\)"
    ):
        Tick(policy_of(Net()), made).draws(1)


def test_a_lowered_network_takes_the_place_of_the_network_alone():
    policy = policy_of(Lowerable())
    low = lowered(policy, "bf16")
    assert low.net.factor == 0.5
    assert low.encoder is policy.encoder
    tick = with_net(Tick(policy, sequential()), "fp32")
    inputs = ({"s": torch.ones(1, 1, 2)}, torch.zeros(1, 4, 2), torch.zeros(1, 4))
    noise = noise_of([(1, 4, 2)], torch.Generator())
    for ours, theirs in zip(
        tick(*inputs, noise), Tick(policy, sequential())(*inputs, noise), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_network_without_a_lowered_form_says_so():
    with pytest.raises(ValueError, match=r"weights=int8 .* Net has none"):
        lowered(policy_of(Net()), "int8")
