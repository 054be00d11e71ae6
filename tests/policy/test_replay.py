"""Denoisers whose levels are known before the sampler is called."""

import pytest
import torch
from torch import nn

from data.normalize import Normalizer
from data.types import Contract, Field, Horizons
from policy.diffusion.precond import EDM
from policy.model import DiffusionPolicy
from policy.replay import Replay, denoisers_at

CONTRACT = Contract({"s": Field(shape=(1,))}, Field(shape=(2,)), control_dt=0.1)
HORIZONS = Horizons(obs=1, pred=4, action=2)


class Scaled(nn.Module):
    """A network that knows its levels beforehand."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.3))
        self.n_resolved = 0

    def forward(self, x, c_noise, cond):
        return self.factor * x * c_noise[..., None] + cond[:, None, :1]

    def at(self, c_noise):
        self.n_resolved += 1
        factor = self.factor * c_noise[:, None]
        return lambda x, cond: factor * x + cond[:, None, :1]


class Plain(nn.Module):
    """A network that does not."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.3))

    def forward(self, x, c_noise, cond):
        return self.factor * x * c_noise[..., None] + cond[:, None, :1]


@pytest.mark.parametrize("net", [Scaled(), Plain()])
def test_denoisers_at_levels_equal_the_policy(net):
    policy = DiffusionPolicy(nn.Identity(), net, EDM(0.5), Normalizer(CONTRACT), CONTRACT, HORIZONS)
    levels, generator = [20.0, 1.0, 1.0, 0.1], torch.Generator().manual_seed(0)
    replay = Replay(denoisers_at(policy, levels))
    for level in levels:
        x, cond = torch.randn(3, 4, 2, generator=generator), torch.ones(3, 1)
        sigma = torch.full((3, 4), level)
        torch.testing.assert_close(replay(x, sigma, cond), policy(x, sigma, cond))


def test_equal_levels_are_resolved_once():
    net = Scaled()
    policy = DiffusionPolicy(nn.Identity(), net, EDM(0.5), Normalizer(CONTRACT), CONTRACT, HORIZONS)
    denoisers_at(policy, [20.0, 1.0, 1.0])
    assert net.n_resolved == 2


def test_a_clean_level_passes_through():
    policy = DiffusionPolicy(
        nn.Identity(), Scaled(), EDM(0.5), Normalizer(CONTRACT), CONTRACT, HORIZONS
    )
    x = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.0, 0.0, 1.0, 2.0])
    out = policy.at(sigma)(x, sigma.expand(2, -1), torch.zeros(2, 1))
    assert torch.equal(out[:, :2], x[:, :2])
    torch.testing.assert_close(out, policy(x, sigma.expand(2, -1), torch.zeros(2, 1)))
