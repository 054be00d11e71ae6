"""Two networks, one for low and one for high levels."""

import pytest
import torch
from torch import nn

from policy.nets.by_level import ByLevel
from policy.nets.compiled import CompileError
from policy.nets.unet1d import UNet1d


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x, c_noise, cond):
        return self.factor * x


def filled_unet(seed):
    generator = torch.Generator().manual_seed(seed)
    net = UNet1d(action_size=2, cond_size=3, pred_horizon=8, channels=(8, 16), noise_embed_size=4)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return net.eval().requires_grad_(False)


def test_each_action_is_predicted_by_the_network_of_its_level():
    net = ByLevel.of(Times(2.0), Times(3.0), limit=1.0)
    x = torch.ones(1, 3, 1)
    levels = torch.tensor([0.5, 1.0, 1.5])
    assert net(x, levels[None], torch.zeros(1, 1)).flatten().tolist() == [2.0, 2.0, 3.0]
    assert net.at(levels)(x, torch.zeros(1, 1)).flatten().tolist() == [2.0, 2.0, 3.0]


def test_lowered_networks_serve_the_same_levels():
    low, high = filled_unet(0), filled_unet(1)
    try:
        lowered = ByLevel.of(low, high, limit=1.0).lowered("fp32")
    except CompileError as error:
        pytest.skip(f"no C++ compiler: {error}")
    x, cond = torch.randn(2, 8, 2), torch.randn(2, 3)
    for level, net in ((0.5, low), (1.5, high)):
        levels = torch.full((2, 8), level)
        expected = net(x, levels, cond)
        torch.testing.assert_close(lowered(x, levels, cond), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(lowered.at(levels[0])(x, cond), expected, atol=1e-4, rtol=1e-4)
    assert lowered.operators


def test_a_network_without_such_a_form_stays_or_is_refused():
    net = ByLevel.of(Times(2.0), Times(3.0), limit=1.0)
    assert net.lowered("fp32").low is net.low
    with pytest.raises(ValueError, match=r"weights=int8 needs .* Times has none: use weights=fp32"):
        net.lowered("int8")
