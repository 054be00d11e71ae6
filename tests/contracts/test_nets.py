"""What every network of configs/net does; a new one is tested by its YAML alone.

Shapes, one noise level per action, samples that do not influence each other, and compilation's
precondition: no graph break. Networks too large for a test are only counted.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "net"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
LARGE = 6_000_000  # weights
B, TP, DA, C = 3, 16, 2, 6


def built(name, device="cpu"):
    make = instantiate(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    with torch.device(device):
        return make(action_size=DA, cond_size=C, pred_horizon=TP)


def size_of(net):
    return sum(parameter.numel() for parameter in net.parameters())


@cache
def net_of(name):
    """A small network with weights of which none is zero."""
    if size_of(built(name, "meta")) > LARGE:
        pytest.skip("too large for this test")
    net = built(name)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def inputs():
    generator = torch.Generator().manual_seed(1)
    x, c_noise = torch.randn(B, TP, DA, generator=generator), torch.rand(B, TP, generator=generator)
    return x, 60 * c_noise, torch.randn(B, C, generator=generator)


def test_there_are_networks():
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_is_built_with_sizes_alone(name):
    assert size_of(built(name, "meta")) > 0


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_output_is_a_chunk(name):
    out = net_of(name)(*inputs())
    assert out.shape == (B, TP, DA)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_all_inputs_matter_and_noise_per_action(name):
    x, c_noise, cond = inputs()
    base = net_of(name)(x, c_noise, cond)
    for i in range(TP):
        changed = c_noise.clone()
        changed[:, i] += 7
        assert not torch.equal(net_of(name)(x, changed, cond), base), f"level of action {i}"
    assert not torch.equal(net_of(name)(x, c_noise, cond + 1), base)
    assert not torch.equal(net_of(name)(x + 1, c_noise, cond), base)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_samples_do_not_influence_each_other(name):
    x, c_noise, cond = inputs()
    together = net_of(name)(x, c_noise, cond)
    changed = net_of(name)(torch.cat([x[:1], x[1:] * 3]), c_noise, cond)
    torch.testing.assert_close(together[0], changed[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite(name):
    net = net_of(name)
    net.zero_grad()
    net(*inputs()).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_it_is_one_graph(name):
    explained = torch._dynamo.explain(net_of(name))(*inputs())
    assert explained.graph_break_count == 0
