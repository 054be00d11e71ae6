"""The residual MLP: its sizes, what it predicts untrained, and layers that know the levels."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from policy.nets.attention import SwiGLUFeedForward
from policy.nets.expert_usage import usage
from policy.nets.experts import Experts
from policy.nets.mlp import ResidualMLP

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "net"
B, TP, DA, C, D, E = 3, 4, 3, 5, 16, 8
SMALL: dict[str, Any] = {"size": D, "n_blocks": 2, "noise_embed_size": E}
EXPERTS = partial(Experts, n_experts=4, top_k=2, expansion=1.5, balance=1.0)


class Scaled(nn.Module):
    """A layer that is told the levels, but has neither `at` nor a penalty."""

    def __init__(self, *, size):
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, h, noise):
        return self.linear(h) * noise


def make(**settings) -> Any:
    return ResidualMLP(action_size=DA, cond_size=C, pred_horizon=TP, **settings)


def randomised(**settings) -> Any:
    """In double precision, with weights of which none is zero."""
    net = make(**(SMALL | settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return net.double().eval()


def inputs():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, TP, DA, generator=generator, dtype=torch.float64)
    c_noise = 80 * torch.rand(B, TP, generator=generator, dtype=torch.float64) - 50
    return x, c_noise, torch.randn(B, C, generator=generator, dtype=torch.float64)


def test_weights_are_those_of_its_layers():
    net = make(size=16, n_blocks=2, expansion=3, noise_embed_size=8)
    first = (4 * (3 + 8) + 5) * 16 + 16
    block = 2 * 16 + (16 * 48 + 48) + (48 * 16 + 16)
    last = 2 * 16 + 16 * 12 + 12
    embed = (8 * 32 + 32) + (32 * 8 + 8)
    assert sum(p.numel() for p in net.parameters()) == first + 2 * block + last + embed


def test_names_of_the_weights_are_those_of_older_checkpoints():
    ends = {f"{part}.{kind}" for part in ("first", "norm", "out") for kind in ("weight", "bias")}
    mlp = {f"noise_embed.mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    blocks = {
        f"blocks.{i}.{part}.{kind}"
        for i in (0, 1)
        for part in ("norm", "up", "down")
        for kind in ("weight", "bias")
    }
    assert set(make(**SMALL).state_dict()) == ends | mlp | blocks


def test_untrained_it_predicts_nothing():
    assert not make()(torch.randn(2, 4, 3), torch.rand(2, 4), torch.randn(2, 5)).any()


@torch.no_grad()
def test_a_block_of_experts_is_their_renormalised_sum_at_the_chunks_level():
    """One block written out, sample by sample and expert by expert."""
    net = randomised(n_blocks=1, feed_forward=EXPERTS)
    x, c_noise, cond = inputs()
    embedded = net.noise_embed(c_noise)
    block = net.blocks[0]
    layer = block.feed_forward
    for b in range(B):
        level = net.chunk_level(embedded[b].flatten())
        h = net.first(torch.cat([x[b].flatten(), embedded[b].flatten(), cond[b]]))
        u = block.norm(h)
        p = layer.router(level).softmax(dim=0)
        chosen = p.argsort(descending=True)[:2].tolist()
        for e in chosen:
            value, gate = (layer.up[e] @ u).chunk(2)
            h = h + p[e] / p[chosen].sum() * (layer.down[e].T @ (value * F.silu(gate)))
        expected = net.out(net.norm(h)).view(TP, DA)
        torch.testing.assert_close(net(x, c_noise, cond)[b], expected)


LEVELS = [[30.0] * TP, [-46.0] * TP, [0.0] * TP, [-46.0, -20.0, 5.0, 30.0], [30.0, 0.0, 0.0, -9.0]]
LAYERS = {
    "own": {},
    "experts": {"feed_forward": EXPERTS},
    "shared": {"feed_forward": partial(EXPERTS, top_k=1, shared=True)},
    "dense": {"feed_forward": partial(SwiGLUFeedForward, expansion=3)},
    "told": {"feed_forward": Scaled},
    "seeing": {"feed_forward": EXPERTS, "layers_see_cond": True},
}


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("levels", LEVELS)
@torch.no_grad()
def test_fixed_levels_give_the_same_chunk(levels, layers):
    """In single precision, as it runs; 1e-5 is what a cache may cost."""
    net = randomised(**LAYERS[layers]).float()
    x, _, cond = (t.float() for t in inputs())
    c_noise = torch.tensor(levels)
    expected = net(x, c_noise.expand(B, -1), cond)
    assert expected.std() > 0.1
    torch.testing.assert_close(net.at(c_noise)(x, cond), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_experts_are_chosen_for_the_chunk_by_the_levels_of_all_actions():
    """A layer is told the same whatever the action and the condition are."""
    net = randomised(feed_forward=EXPERTS)
    told = []
    net.blocks[1].feed_forward.register_forward_pre_hook(lambda _, given: told.append(given[1]))
    x, c_noise, cond = inputs()
    net(x, c_noise, cond)
    net(-2 * x, c_noise, cond + 3)
    assert told[0].shape == (B, 1, D)
    assert torch.equal(told[0], told[1])
    for i in range(TP):
        other = c_noise.clone()
        other[:, i] += 5
        net(x, other, cond)
        assert (told[-1] != told[0]).any()


def penalty_of(net, c_noise, cond):
    torch.manual_seed(0)
    return net.penalty(c_noise, cond)


@torch.no_grad()
def test_penalty_is_one_a_block_where_balanced_and_nothing_in_evaluation():
    """Routers that see no difference; a collapsed one costs N / k = 2."""
    net = randomised(feed_forward=EXPERTS, n_blocks=3)
    _, c_noise, cond = inputs()
    assert net.penalty(c_noise, cond) == 0
    net.train()
    assert net.penalty(c_noise, cond) > 0
    for block in net.blocks:
        for parameter in block.feed_forward.router.parameters():
            parameter.zero_()
    assert net.penalty(c_noise, cond).item() == pytest.approx(3)
    for block in net.blocks:
        block.feed_forward.router[2].bias.copy_(torch.tensor([60.0, 50.0, 0.0, 0.0]))
    assert net.penalty(c_noise, cond).item() == pytest.approx(3 * 2, abs=0.01)


def test_without_experts_there_is_no_penalty():
    _, c_noise, cond = inputs()
    for name in ("own", "dense", "told"):
        assert randomised(**LAYERS[name]).train().penalty(c_noise, cond) == 0


def test_gradient_reaches_every_weight_that_is_used():
    for layers in ("own", "experts", "told", "seeing"):
        net = randomised(**LAYERS[layers]).train()
        torch.manual_seed(0)
        x, c_noise, cond = inputs()
        (net(x, c_noise, cond).square().sum() + net.penalty(c_noise, cond)).backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("layers", LAYERS)
@torch.no_grad()
def test_samples_do_not_influence_each_other(layers):
    net = randomised(**LAYERS[layers])
    x, c_noise, cond = inputs()
    together = net(x, c_noise, cond)
    torch.testing.assert_close(together[1:2], net(x[1:2], c_noise[1:2], cond[1:2]))


@pytest.mark.parametrize("layers", ["experts", "seeing"])
def test_it_is_one_graph(layers):
    """The contract's networks leave out moe_mlp as too large for a test."""
    net = randomised(**LAYERS[layers]).float()
    x, c_noise, cond = (t.float() for t in inputs())
    for mode in (True, False):
        assert torch._dynamo.explain(net.train(mode))(x, c_noise, cond).graph_break_count == 0
    assert torch._dynamo.explain(net.at(c_noise[0]))(x, cond).graph_break_count == 0


@torch.no_grad()
def test_usage_is_what_the_routers_say_of_a_chunk_at_one_level():
    net = randomised(feed_forward=EXPERTS)
    c_noise = torch.linspace(-46, 30, 7, dtype=torch.float64)
    probabilities = usage(net, c_noise)
    assert probabilities.shape == (2, 7, 4)
    level = net.chunk_level(net.noise_embed(c_noise[3].expand(1, TP)).flatten(1))
    for block, found in zip(net.blocks, probabilities, strict=True):
        expected = block.feed_forward.router(level)[0].softmax(dim=-1)
        torch.testing.assert_close(found[3], expected, check_dtype=False)


@torch.no_grad()
def test_layers_may_see_the_condition():
    """Other experts for another goal, at the same levels; without the option the same ones."""
    c_noise = torch.full((8,), -10.0, dtype=torch.float64)
    conds = 3 * torch.randn(8, C, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    seeing = usage(randomised(feed_forward=EXPERTS, layers_see_cond=True), c_noise, conds)
    chosen = seeing.topk(2).indices.sort().values  # [L, n, k]
    assert (chosen[:, 1:] != chosen[:, :1]).any()
    blind = randomised(feed_forward=EXPERTS)
    torch.testing.assert_close(usage(blind, c_noise, conds), usage(blind, c_noise))


@torch.no_grad()
def test_what_layers_see_of_the_condition_is_added_to_the_level():
    net = randomised(feed_forward=EXPERTS, layers_see_cond=True)
    _, c_noise, cond = inputs()
    blind = net.chunk_level(net.noise_embed(c_noise).flatten(1))
    expected = blind + cond @ net.chunk_cond.weight.T + net.chunk_cond.bias
    torch.testing.assert_close(net.embed_levels(c_noise, cond)[:, 0], expected)


def test_penalty_is_of_the_routing_that_is_done():
    """Where the condition decides, one for all is a load on few, and a varied one less so."""
    net = randomised(feed_forward=EXPERTS, layers_see_cond=True, n_blocks=1).train()
    c_noise = torch.zeros(400, TP, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    conds = 20 * torch.randn(400, C, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        one = penalty_of(net, c_noise, conds[:1].expand(400, -1))
        many = penalty_of(net, c_noise, conds)
    assert many < one - 0.2


def test_a_condition_that_is_needed_is_asked_for():
    net = randomised(feed_forward=EXPERTS, layers_see_cond=True)
    with pytest.raises(ValueError, match=r"cond is None, but the layers see the condition"):
        usage(net, torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"layers_see_cond is true.*net=moe_mlp"):
        make(layers_see_cond=True)


@pytest.mark.parametrize("name", ["size", "n_blocks", "expansion"])
def test_a_size_that_is_no_whole_number_from_1_on_is_refused(name):
    for value in (0, 1.5):
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            make(**{name: value})


def built(name) -> Any:
    make_net = instantiate(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    with torch.device("meta"):
        return make_net(action_size=4, cond_size=256, pred_horizon=8)


def count(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_a_chunk_uses_as_many_weights_with_experts_as_without():
    """5.4 M, of which 2.5 M; the dense net has biases in its layers, which experts have not."""
    experts, dense = built("moe_mlp"), built("mlp_gated")
    layers = [block.feed_forward for block in experts.blocks]
    assert count(experts) == pytest.approx(5.4e6, rel=0.01)
    one = 3 * 256 * 384  # Values, gates and the way back, of an expert.
    used = count(experts) - sum(count(layer.router) + 2 * one for layer in layers)
    assert used == pytest.approx(2.5e6, rel=0.01)
    biases = 2 * 768 + 256
    assert count(dense) == used + 4 * biases - count(experts.chunk_level)


@torch.no_grad()
def test_films_start_as_the_identity():
    filmed, plain = make(**SMALL, film=True).double(), randomised()
    filmed.load_state_dict(plain.state_dict(), strict=False)
    x, c_noise, cond = inputs()
    torch.testing.assert_close(filmed(x, c_noise, cond), plain(x, c_noise, cond))


@torch.no_grad()
def test_a_film_scales_by_one_more_and_shifts():
    block = randomised(film=True).blocks[0]
    h, film = torch.randn(B, D).double(), torch.randn(B, 2 * D).double()
    seen = (1 + film[:, :D]) * block.norm(h) + film[:, D:]
    expected = h + block.down(F.silu(block.up(seen)))
    torch.testing.assert_close(block(h, h, film=film), expected)


@torch.no_grad()
def test_films_of_known_levels_are_computed_once_and_the_same():
    net = randomised(film=True)
    x, c_noise, cond = inputs()
    c_noise = c_noise[:1].expand(B, -1)
    torch.testing.assert_close(net.at(c_noise[0])(x, cond), net(x, c_noise, cond))


def test_films_of_layers_that_nothing_scales_are_refused():
    with pytest.raises(ValueError, match="film is true, but the blocks have a feed_forward"):
        make(**SMALL, film=True, feed_forward=EXPERTS)
