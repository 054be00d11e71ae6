"""Experts against a loop over tokens, their draws and penalties against closed forms, `at`."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf

from policy.nets.experts import Experts, Fused, mix_all, mix_sorted
from policy.nets.transformer import Transformer

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "net"
D, S, B = 8, 7, 3
SIZES: dict = {"action_size": 3, "cond_size": 5, "pred_horizon": 6}
K_OF_N = [(1, 4), (2, 4), (3, 4), (4, 4), (3, 5)]


def randomised(net, dtype=torch.float64) -> Any:
    """Weights of which none is zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return net.to(dtype)


def make(dtype=torch.float64, **settings) -> Any:
    return randomised(Experts(size=D, **settings), dtype).eval()


def tokens(seed=0, dtype=torch.float64):
    """Tokens and embeddings of levels, both [B, S, D]."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(B, S, D, generator=generator, dtype=torch.float64)
    return h.to(dtype), 2 * torch.randn(B, S, D, generator=generator, dtype=torch.float64).to(dtype)


def by_loops(layer, h, noise):
    """The paper's layer in evaluation, token by token and expert by expert."""
    out = torch.zeros_like(h)
    for b in range(h.shape[0]):
        for s in range(h.shape[1]):
            probabilities = layer.router(noise[b, s]).softmax(dim=0)
            chosen = probabilities.argsort(descending=True)[: layer.top_k].tolist()
            for e in chosen:
                value, gate = (layer.up[e] @ h[b, s]).chunk(2)
                y = layer.down[e].T @ (value * gate * torch.sigmoid(gate))
                out[b, s] += probabilities[e] / sum(probabilities[i] for i in chosen) * y
    return out


@pytest.mark.parametrize(("top_k", "n_experts"), K_OF_N)
def test_each_token_gets_the_renormalised_sum_of_its_experts(top_k, n_experts):
    layer = make(top_k=top_k, n_experts=n_experts)
    h, noise = tokens()
    torch.testing.assert_close(layer(h, noise), by_loops(layer, h, noise))


def test_shared_expert_is_added_for_every_token():
    layer = make(shared=True, expansion=2)
    h, noise = tokens()
    alone = make(expansion=2)
    alone.load_state_dict({k: v for k, v in layer.state_dict().items() if "shared" not in k})
    value, gate = F.linear(h, layer.shared.first.weight, layer.shared.first.bias).chunk(2, dim=-1)
    shared = F.linear(value * F.silu(gate), layer.shared.second.weight, layer.shared.second.bias)
    torch.testing.assert_close(layer(h, noise), alone(h, noise) + shared)
    torch.testing.assert_close(layer.at(noise[0])(h), layer(h, noise[:1].expand(B, -1, -1)))


def test_sorting_gives_what_all_experts_give_gradients_included():
    """Single precision, the only one that sorts; expert 2 is chosen by no token."""
    if not hasattr(F, "grouped_mm"):
        pytest.skip("this torch has no grouped product")
    generator = torch.Generator().manual_seed(0)
    h, up, down, weights = (
        torch.randn(*shape, generator=generator).requires_grad_()
        for shape in ((9, D), (4, 32, D), (4, 16, D), (9, 2))
    )
    experts = torch.tensor([[0, 1], [3, 0], [1, 3]]).repeat(3, 1)
    found = []
    for mix in (mix_all, mix_sorted):
        out = mix(h, up, down, experts=experts, weights=weights)
        found.append((out, *torch.autograd.grad(out.square().sum(), (h, up, down, weights))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert (found[1][2][2] == 0).all()
    assert (found[1][3][2] == 0).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_reaches_every_weight(training, dtype):
    layer = make(dtype, shared=True).train(training)
    h, noise = tokens(dtype=dtype)
    torch.manual_seed(0)
    layer(h, noise).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert (layer.up.grad.abs().amax(dim=(1, 2)) > 0).all()


def test_router_learns_what_finite_differences_say():
    layer = make()
    h, noise = tokens()
    weight = layer.router[2].bias
    (gradient,) = torch.autograd.grad(layer(h, noise).square().sum(), weight)
    for i in range(len(weight)):
        step = torch.zeros_like(weight)
        step[i] = 1e-6
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(sign * step)
                ends.append(layer(h, noise).square().sum())
                weight.sub_(sign * step)
        torch.testing.assert_close((ends[0] - ends[1]) / 2e-6, gradient[i], rtol=1e-4, atol=1e-4)


def test_draws_are_those_without_replacement():
    """P(e in 2 draws) = p_e + sum over i != e of p_i p_e / (1 - p_i); standard error 0.003."""
    layer = make()
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = p.log().expand(20_000, 4)
    torch.manual_seed(0)
    experts, weights = layer._choose(logits, is_drawn=True)
    assert (experts[:, 0] != experts[:, 1]).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(20_000))
    expected = [p[e] + sum(p[i] * p[e] / (1 - p[i]) for i in range(4) if i != e) for e in range(4)]
    shares = torch.bincount(experts.flatten(), minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.stack(expected), rtol=0, atol=0.015)
    # The weights are those of the drawn pair, whatever the others are.
    pair = p[experts]
    torch.testing.assert_close(weights, pair / pair.sum(dim=1, keepdim=True))


def test_training_draws_from_the_global_generator_and_evaluation_does_not():
    layer = make()
    h, noise = tokens()
    noise = noise[:1, :1].expand_as(noise)
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(layer.train()(h, noise))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    state = torch.get_rng_state()
    layer.eval()(h, noise)
    layer.at(noise[0])(h)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_is_of_training_only():
    layer = make(torch.float32, dropout=0.5, top_k=4)  # All chosen: nothing else is random.
    h, noise = tokens(dtype=torch.float32)
    torch.manual_seed(0)
    plain = layer(h, noise)
    mean = torch.stack([layer.train()(h, noise) for _ in range(400)]).mean(dim=0)
    assert torch.equal(layer.eval()(h, noise), plain)
    assert (mean - plain).norm() < 0.15 * plain.norm()
    assert not torch.equal(layer.train()(h, noise), plain)


def test_router_does_not_look_at_tokens():
    """What is bound before the tokens are there holds for all of them."""
    layer = make()
    h, noise = tokens()
    bound = layer.at(noise[0])
    for scale in (1.0, -5.0, 100.0):
        got = layer(scale * h, noise[:1].expand(B, -1, -1))
        torch.testing.assert_close(got, bound(scale * h))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("top_k", "n_experts"), K_OF_N)
@pytest.mark.parametrize("levels", ["one", "two", "all"])
def test_bound_levels_give_the_same(levels, top_k, n_experts, dtype):
    layer = make(dtype, top_k=top_k, n_experts=n_experts)
    h, noise = tokens(dtype=dtype)
    kinds = {"one": [0] * S, "two": [0, 0, 3, 3, 0, 3, 3], "all": list(range(S))}
    noise = noise[0, kinds[levels]]
    h = 0.3 * h
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    expected = layer(h, noise.expand(B, -1, -1))
    torch.testing.assert_close(layer.at(noise)(h), expected, rtol=tolerance, atol=tolerance)
    # In training too, `at` is the layer of evaluation.
    torch.testing.assert_close(layer.train().at(noise)(h), expected, rtol=tolerance, atol=tolerance)


def test_bound_levels_let_gradients_through():
    layer = make()
    h, noise = tokens()
    h.requires_grad_()
    (expected,) = torch.autograd.grad(
        layer(h, noise[:1].expand(B, -1, -1)).square().sum(), h, retain_graph=True
    )
    (got,) = torch.autograd.grad(layer.at(noise[0])(h).square().sum(), h)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "experts", [[0], [0, 1], [0, 3], [1, 3], [0, 1, 3], [0, 2, 3], [0, 1, 2, 3]]
)
def test_fused_experts_are_views_of_the_weights(experts):
    layer = make()
    weights = torch.rand(S, len(experts), dtype=torch.float64)
    fused = Fused(layer.up, layer.down, experts, weights)
    for up, down in fused.parts:
        assert up.untyped_storage().data_ptr() == layer.up.untyped_storage().data_ptr()
        assert down.untyped_storage().data_ptr() == layer.down.untyped_storage().data_ptr()
    h, _ = tokens()
    expected = sum(weights[:, i, None] * by_expert(layer, h, e) for i, e in enumerate(experts))
    torch.testing.assert_close(fused(h), expected)


def by_expert(layer, h, expert):
    value, gate = (h @ layer.up[expert].T).chunk(2, dim=-1)
    return (value * F.silu(gate)) @ layer.down[expert]


def test_bound_and_unbound_layers_are_one_graph():
    layer = make(torch.float32)
    h, noise = tokens(dtype=torch.float32)
    for mode in (True, False):
        assert torch._dynamo.explain(layer.train(mode))(h, noise).graph_break_count == 0
    assert torch._dynamo.explain(layer.train().penalty)(noise).graph_break_count == 0
    assert torch._dynamo.explain(layer.at(noise[0]))(h).graph_break_count == 0


def constant_router(layer, logits) -> Any:
    with torch.no_grad():
        for parameter in layer.router.parameters():
            parameter.zero_()
        layer.router[2].bias.copy_(torch.tensor(logits))
    return layer


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_balanced_load_costs_one_and_a_collapsed_one_its_number(top_k):
    _, noise = tokens()
    layer = constant_router(make(top_k=top_k, balance=1.0).train(), [0.0] * 4)
    assert layer.penalty(noise).item() == pytest.approx(1)
    layer = constant_router(make(top_k=top_k, balance=1.0).train(), [60.0] + [0.0] * 3)
    assert layer.penalty(noise).item() == pytest.approx(4 / top_k)


def test_load_penalty_takes_from_the_favourite():
    _, noise = tokens()
    layer = constant_router(make(balance=1.0).train(), [1.0, 0.0, 0.0, 0.0])
    torch.manual_seed(0)
    layer.penalty(noise).backward()
    gradient = layer.router[2].bias.grad
    assert gradient[0] > 0
    assert gradient[0] == gradient.max()


def test_z_loss_is_the_squared_log_of_the_sum():
    """Logits 1 to 4: ln(e + e^2 + e^3 + e^4) = 4.4401897."""
    _, noise = tokens()
    layer = constant_router(make(balance=0.0, z_loss=0.5).train(), [1.0, 2.0, 3.0, 4.0])
    assert layer.penalty(noise).item() == pytest.approx(0.5 * 4.4401897**2)


def test_there_is_no_penalty_in_evaluation():
    _, noise = tokens()
    assert make(balance=1.0, z_loss=1.0).penalty(noise).item() == 0
    assert make(balance=0.0, z_loss=0.0).train().penalty(noise).item() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"balance": -0.1}, r"balance is -0\.1"),
        ({"balance": float("nan")}, "balance is nan"),
        ({"z_loss": float("nan")}, "z_loss is nan"),
        ({"z_loss": -1}, "z_loss is -1"),
        ({"dropout": 1.5}, r"dropout is 1\.5"),
        ({"dropout": -0.5, "shared": True}, r"dropout is -0\.5"),
        ({"n_experts": 3.0}, r"n_experts is 3\.0"),
        ({"expansion": 0.01}, r"expansion is 0\.01, which leaves tokens of size 8 without"),
        ({"expansion": -1}, "expansion is -1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Experts(size=8, **settings)


@pytest.mark.parametrize("top_k", [0, -1, 5, True, 2.5, "two"])
def test_impossible_choice_is_refused_with_both_numbers(top_k):
    with pytest.raises(ValueError, match=rf"top_k is {top_k!r} and n_experts is 4: .* 1\.\.4"):
        Experts(size=D, n_experts=4, top_k=top_k)


@pytest.mark.parametrize("conditioning", ["attention", "memory", "adaln"])
@pytest.mark.parametrize("levels", ["flat", "rising"])
def test_network_at_a_grid_equals_the_network(conditioning, levels):
    experts = partial(Experts, expansion=2)
    net = Transformer(
        **SIZES,
        size=16,
        n_layers=3,
        conditioning=conditioning,
        cond_in="prefix" if conditioning == "attention" else "memory",
        feed_forward=experts,
    )
    net = randomised(net, torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, 3, generator=generator)
    cond = torch.randn(4, 5, generator=generator)
    for top in (40.0, 5.0, -20.0, -60.0):
        c_noise = torch.full((6,), top)
        if levels == "rising":
            c_noise = top * torch.linspace(0.1, 1, 6)
        expected = net(x, c_noise.expand(4, -1), cond)
        assert expected.std() > 0.1
        torch.testing.assert_close(net.at(c_noise)(x, cond), expected, rtol=1e-5, atol=1e-5)


def built(name):
    make_net = instantiate(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    with torch.device("meta"):
        return make_net(action_size=7, cond_size=512, pred_horizon=10)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_blocks_have_the_size_of_mode():
    """453 M weights: 8 blocks of 4 experts, router, attention with QK norm, two RMS norms.

    Beside them the embedding of the level has 8.4 M, where the paper's affine one has 1.05 M.
    """
    size = 1024
    experts = 4 * 3 * size * 4 * size
    router = size * 2 * size + 2 * size + 2 * size * 4 + 4
    attention = 4 * (size**2 + size) + size // 8
    net = built("moe")
    assert count(net.blocks) == 8 * (experts + router + attention + 2 * size)
    assert count(net.blocks) == pytest.approx(453e6, rel=0.001)
    assert count(net.noise_embed) == 8 * size**2 + 5 * size


@pytest.mark.parametrize("name", ["moe_small", "moe_switch_small"])
def test_small_ones_have_one_to_three_million_weights(name):
    assert 1e6 < count(built(name)) < 3e6
