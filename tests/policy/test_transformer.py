"""The transformer against PyTorch's own and the formulas, what its parts see, and its limits."""

import math
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from policy.nets.attention import (
    AdaLN,
    Attention,
    GELUFeedForward,
    SwiGLUFeedForward,
)
from policy.nets.noise_embed import sinusoids
from policy.nets.transformer import Transformer

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "net"
B, TP, DA, C, D = 2, 8, 3, 6, 16
SIZES: dict[str, Any] = {"action_size": DA, "cond_size": C, "pred_horizon": TP}
SMALL: dict[str, Any] = {"size": D, "n_layers": 2, "n_heads": 4, "cond_tokens": 2}

VARIANTS: list[dict[str, Any]] = [
    {"conditioning": conditioning, "cond_in": place, "qk_norm": conditioning != "memory"}
    for conditioning, place in product(("memory", "adaln", "attention"), ("memory", "prefix"))
]
every_variant = pytest.mark.parametrize(
    "variant", VARIANTS, ids=lambda v: f"{v['conditioning']}-{v['cond_in']}"
)


class Recorder(nn.Module):
    """A feed-forward layer that keeps what it was given, and has a penalty of its own."""

    def __init__(self, *, size):
        super().__init__()
        self.linear = nn.Linear(size, size)
        self.given = []

    def forward(self, h, noise):
        self.given.append((h, noise))
        return self.linear(h) * noise

    def penalty(self, noise):
        return noise.square().sum()


class RecorderAt(Recorder):
    """The same, with the part of the noise done beforehand."""

    def at(self, noise):
        assert noise.ndim == 2
        return lambda h: self.linear(h) * noise


def randomised(net) -> Any:
    """Weights as after training: nothing is zero, so that every part counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.double().eval()


def net_of(**options: Any) -> Any:
    return randomised(Transformer(**SIZES, **(SMALL | options)))


def inputs(batch=B, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, TP, DA, generator=generator, dtype=torch.float64)
    c_noise = 80 * torch.rand(batch, TP, generator=generator, dtype=torch.float64)
    return x, c_noise, torch.randn(batch, C, generator=generator, dtype=torch.float64)


def paper_net(net):
    """PyTorch's decoder with the weights of a network of ours."""
    layer = nn.TransformerDecoderLayer(
        D, 4, 4 * D, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    decoder: Any = nn.TransformerDecoder(layer, num_layers=2).double().eval()
    with torch.no_grad():
        for theirs, ours in zip(decoder.layers, net.blocks, strict=True):
            for attention, own in (
                (theirs.self_attn, ours.self_attention),
                (theirs.multihead_attn, ours.memory_attention),
            ):
                for kind in ("weight", "bias"):
                    both = [getattr(own.query, kind), getattr(own.key_value, kind)]
                    getattr(attention, f"in_proj_{kind}").copy_(torch.cat(both))
                attention.out_proj.load_state_dict(own.out.state_dict())
            theirs.linear1.load_state_dict(ours.feed_forward.first.state_dict())
            theirs.linear2.load_state_dict(ours.feed_forward.second.state_dict())
            for i, norm in enumerate((theirs.norm1, theirs.norm2, theirs.norm3)):
                norm.load_state_dict(ours.norms[i].state_dict())
    return decoder


def test_one_level_for_all_actions_gives_the_network_of_the_paper():
    """Memory: the level's token and those of the condition with positions, through an MLP."""
    net = net_of(is_causal=True)
    x, c_noise, cond = inputs()
    level = c_noise[:, :1]
    tokens = torch.cat([sinusoids(level, D), net.cond_embed(cond.view(B, 2, C // 2))], dim=1)
    memory = net.memory_mlp(tokens + net.memory_positions)
    causal = nn.Transformer.generate_square_subsequent_mask(TP, dtype=torch.float64)
    h = paper_net(net)(net.action_embed(x) + net.positions, memory, tgt_mask=causal)
    got = net(x, level.expand(-1, TP), cond)
    assert got.std() > 0.1
    torch.testing.assert_close(got, net.out(net.norm(h)))


def test_size_is_that_of_diffusion_policy():
    """8,965,122 weights: Push-T from state, 2 steps of 20 values, 16 actions of 2, D = 256.

    No deviation: what this network does otherwise (a level for each action, SiLU) has no weights.
    """
    d = 256
    attention = 4 * d * d + 4 * d  # Queries, keys, values and output, each with a bias.
    feed_forward = 2 * d * 4 * d + 4 * d + d
    block = 2 * attention + feed_forward + 3 * 2 * d  # Three layer norms.
    inputs = (2 * d + d) + (20 * d + d)  # Actions and observed steps.
    positions = 16 * d + 3 * d  # Actions; level and two observed steps.
    memory_mlp = feed_forward
    head = 2 * d + (2 * d + 2)  # The last norm and layer.
    expected = 8 * block + inputs + positions + memory_mlp + head
    assert expected == 8_965_122
    assert size_of_config("transformer", cond_size=40) == expected


def test_small_config_is_small():
    assert 1e6 < size_of_config("transformer_small", cond_size=40) < 1.5e6


def size_of_config(name, cond_size):
    make = instantiate(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    with torch.device("meta"):
        net = make(action_size=2, cond_size=cond_size, pred_horizon=16)
    return sum(parameter.numel() for parameter in net.parameters())


@every_variant
@pytest.mark.parametrize("changed", ["x", "c_noise"])
@torch.no_grad()
def test_causal_network_changes_nothing_before_a_changed_action(variant, changed):
    net = net_of(is_causal=True, **variant)
    x, c_noise, cond = inputs()
    base = net(x, c_noise, cond)
    for i in range(TP):
        other = {"x": x.clone(), "c_noise": c_noise.clone()}
        other[changed][:, i] += 5
        difference = (net(**other, cond=cond) - base).abs().amax(dim=(0, 2))
        assert (difference[:i] == 0).all(), f"action {i} changes an earlier one"
        assert difference[i] > 1e-6
        assert (difference[i:] > 0).all(), f"action {i} leaves a later one"


@every_variant
@torch.no_grad()
def test_full_attention_carries_a_level_to_earlier_actions(variant):
    net = net_of(is_causal=False, **variant)
    x, c_noise, cond = inputs()
    other = c_noise.clone()
    other[:, -1] += 5
    assert ((net(x, other, cond) - net(x, c_noise, cond)).abs().amax(dim=(0, 2)) > 0).all()


@pytest.mark.parametrize("cond_in", ["memory", "prefix"])
@torch.no_grad()
def test_level_in_the_memory_is_seen_by_its_action_alone(cond_in):
    """One block: self-attention comes before the memory, so that nothing carries a level on."""
    net = net_of(n_layers=1, is_causal=False, conditioning="memory", cond_in=cond_in)
    x, c_noise, cond = inputs()
    other = c_noise.clone()
    other[:, 3] += 5
    difference = (net(x, other, cond) - net(x, c_noise, cond)).abs().amax(dim=(0, 2))
    assert difference[3] > 1e-6
    assert (difference[[0, 1, 2, 4, 5, 6, 7]] == 0).all()


@every_variant
@torch.no_grad()
def test_samples_do_not_influence_each_other(variant):
    net = net_of(is_causal=False, **variant)
    x, c_noise, cond = inputs(batch=3)
    alone = net(x[1:2], c_noise[1:2], cond[1:2])
    torch.testing.assert_close(net(x, c_noise, cond)[1:2], alone, rtol=1e-12, atol=1e-12)


@every_variant
def test_gradient_reaches_every_weight(variant):
    net = net_of(**variant)
    net(*inputs()).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        # A bias of the keys shifts all logits of a query alike unless the keys are normalised.
        own = parameter.grad[D:] if name.endswith("key_value.bias") else parameter.grad
        assert own.abs().max() > 0, name


@every_variant
@pytest.mark.parametrize("feed_forward", [GELUFeedForward, Recorder, RecorderAt])
@torch.no_grad()
def test_fixed_levels_give_the_same_chunk(variant, feed_forward):
    """1e-6 is a few roundings of float32."""
    net = net_of(feed_forward=feed_forward, **variant).float()
    x, c_noise, cond = (t.float() for t in inputs(batch=3))
    level = c_noise[0]
    expected = net(x, level.expand(3, -1), cond)
    assert expected.std() > 0.1
    got = net.at(level)(x, cond)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@every_variant
@torch.no_grad()
def test_feed_forward_sees_the_level_of_each_action_and_none_of_the_condition(variant):
    net = net_of(feed_forward=Recorder, **variant)
    x, c_noise, cond = inputs()
    level = c_noise[:, :1]
    net(x, level.expand(-1, TP), cond)
    net(x, level.expand(-1, TP) + 9, cond)
    (h, first), (_, second) = net.blocks[0].feed_forward.given
    n_prefix = 2 if variant["cond_in"] == "prefix" else 0
    assert h.shape == first.shape == (B, n_prefix + TP, D)
    assert torch.equal(first[:, :n_prefix], second[:, :n_prefix])
    assert torch.equal(first[0, :n_prefix], first[1, :n_prefix])
    actions = first[:, n_prefix:]
    torch.testing.assert_close(actions, actions[:, :1].expand_as(actions))
    assert ((first - second)[:, n_prefix:].abs().amax(dim=-1) > 0).all()


@torch.no_grad()
def test_penalty_is_the_sum_over_blocks_and_zero_without():
    _, c_noise, cond = inputs()
    assert net_of(conditioning="adaln").penalty(c_noise, cond) == 0
    net = net_of(conditioning="adaln", feed_forward=Recorder, n_layers=3)
    expected = 3 * net.noise_embed(c_noise).square().sum()
    torch.testing.assert_close(net.penalty(c_noise, cond), expected)


@every_variant
def test_untrained_network_predicts_nothing(variant):
    net = Transformer(**SIZES, **SMALL, **variant)
    assert (net(*(t.float() for t in inputs())) == 0).all()


@pytest.mark.parametrize("cond_in", ["memory", "prefix"])
@torch.no_grad()
def test_adaln_starts_as_the_identity(cond_in):
    net = Transformer(**SIZES, **SMALL, conditioning="adaln", cond_in=cond_in)
    nn.init.ones_(net.out.weight)
    x, c_noise, cond = (t.float() for t in inputs())
    tokens = net.action_embed(x) + net.positions[-TP:]
    got = net(x, c_noise, cond)
    assert got.std() > 0
    assert torch.equal(got, net.out(net.norm(tokens)))


@torch.no_grad()
def test_adaln_is_a_linear_layer_of_level_and_condition():
    layer = randomised(AdaLN(D, 3, 2))
    noise, cond = torch.randn(B, TP, D).double(), torch.randn(B, 4, D).double()
    features = F.silu(noise) + F.silu(cond.mean(dim=1))[:, None]
    expected = F.linear(features, layer.linear.weight, layer.linear.bias)
    for modulations in (layer(noise, cond), layer.at(noise)(cond)):
        assert [len(block) for block in modulations] == [2, 2, 2]
        parts = [part for block in modulations for triple in block for part in triple]
        torch.testing.assert_close(torch.cat(parts, dim=-1), expected)


@torch.no_grad()
def test_noise_is_added_to_what_attention_looks_at():
    """One block written out; the feed-forward layer is given nothing but its tokens."""
    net = net_of(n_layers=1, conditioning="attention", cond_in="prefix", is_causal=False)
    x, c_noise, cond = inputs()
    block = net.blocks[0]
    tokens = torch.cat([net.cond_embed(cond.view(B, 2, C // 2)), net.action_embed(x)], dim=1)
    h = tokens + net.positions
    noise = torch.cat([net.no_level.expand(B, -1, -1), net.noise_embed(c_noise)], dim=1)
    u = block.norms[0](h) + noise
    h = h + by_hand(block.self_attention, u, u)
    h = h + block.feed_forward(block.norms[1](h), noise)
    torch.testing.assert_close(net(x, c_noise, cond), net.out(net.norm(h[:, 2:])))


def by_hand(attention, h, memory, mask=None):
    """softmax(q k^T / sqrt(d)) v, one head after the other, RMS norm of q and k as published."""
    d = D // attention.n_heads
    weight = attention.qk_weight
    query, (key, value) = attention.query(h), attention.key_value(memory).split(D, dim=-1)
    heads = []
    for part in (slice(i, i + d) for i in range(0, D, d)):
        q, k = query[..., part], key[..., part]
        if weight is not None:
            q, k = F.rms_norm(q, (d,), weight, eps=0), F.rms_norm(k, (d,), eps=0)
        logits = q @ k.transpose(1, 2) / math.sqrt(d)
        if mask is not None:
            logits = logits.masked_fill(~mask, -math.inf)
        heads.append(logits.softmax(dim=-1) @ value[..., part])
    return attention.out(torch.cat(heads, dim=-1))


@pytest.mark.parametrize("qk_norm", [False, True])
@torch.no_grad()
def test_attention_is_softmax_of_scaled_products(qk_norm):
    attention = randomised(Attention(D, n_heads=4, qk_norm=qk_norm))
    h, memory = torch.randn(B, 5, D).double(), torch.randn(B, 7, D).double()
    torch.testing.assert_close(attention(h, memory), by_hand(attention, h, memory))
    mask = torch.rand(5, 7) > 0.5
    mask[:, 0] = True
    masked = attention(h, memory, mask=mask)
    torch.testing.assert_close(masked, by_hand(attention, h, memory, mask))
    causal = attention(h, h, is_causal=True)
    lower = torch.ones(5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(causal, by_hand(attention, h, h, lower))


@torch.no_grad()
def test_qk_norm_makes_logits_independent_of_the_scale_of_queries_and_keys():
    h = torch.randn(B, 5, D).double()
    for qk_norm in (True, False):
        attention = randomised(Attention(D, n_heads=4, qk_norm=qk_norm))
        base = attention(h, h)
        attention.query.weight *= 50
        attention.query.bias *= 50
        attention.key_value.weight[:D] *= 30
        attention.key_value.bias[:D] *= 30
        change = (attention(h, h) - base).abs().max()
        assert change < 1e-10 if qk_norm else change > 1e-2


@torch.no_grad()
def test_feed_forward_layers_are_their_formulas():
    h = torch.randn(B, 5, D).double()
    gelu = randomised(GELUFeedForward(size=D))
    assert gelu.first.out_features == 4 * D
    u = gelu.first(h)
    torch.testing.assert_close(gelu(h, h), gelu.second(u / 2 * (1 + torch.erf(u / math.sqrt(2)))))
    swiglu = randomised(SwiGLUFeedForward(size=D, expansion=2))
    value, gate = swiglu.first(h).split(2 * D, dim=-1)
    torch.testing.assert_close(swiglu(h, h), swiglu.second(value * gate * torch.sigmoid(gate)))


@torch.no_grad()
def test_condition_is_split_into_consecutive_parts():
    net = net_of(cond_tokens=3)
    _, _, cond = inputs()
    seen = []
    net.cond_embed.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net(*inputs())
    expected = torch.stack([cond[:, 0:2], cond[:, 2:4], cond[:, 4:6]], dim=1)
    assert torch.equal(seen[0], expected)


@torch.no_grad()
def test_dropout_acts_in_training_alone():
    drop = {
        "attention_dropout": 0.5,
        "feed_forward": partial(GELUFeedForward, dropout=0.5),
    }
    net = net_of(**drop)
    given = inputs()
    expected = net_of()(*given)
    assert torch.equal(net(*given), expected)
    for part in (net.blocks[0].self_attention, net.blocks[0].feed_forward):
        part.train()
        assert not torch.equal(net(*given), expected)
        part.eval()


@torch.no_grad()
def test_rms_norm_is_an_option_for_all_norms_of_the_tokens():
    net = Transformer(**SIZES, **SMALL, norm="rms")
    kinds = {type(part) for part in net.modules()}
    assert nn.RMSNorm in kinds
    assert nn.LayerNorm not in kinds


@every_variant
def test_half_precision_trains(variant):
    """A bfloat16 has 8 bits, of which some get lost in each layer."""
    net = net_of(**variant).float()
    given = [t.float() for t in inputs()]
    expected = net(*given)
    with torch.autocast("cpu", torch.bfloat16):
        got = net(*given)
    assert (got - expected).std() < 0.1 * expected.std()
    got.float().square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_network_of_the_paper_is_one_graph():
    assert torch._dynamo.explain(net_of())(*inputs()).graph_break_count == 0


def test_linear_layers_start_small():
    net: Any = Transformer(**SIZES, size=64, n_layers=2, conditioning="attention")
    for layer in (net.blocks[0].self_attention.query, net.memory_mlp[0], net.memory_mlp[2]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert (layer.bias == 0).all()
    assert net.positions.std().item() == pytest.approx(0.02, rel=0.2)


def test_condition_that_does_not_divide_is_refused_with_what_would():
    with pytest.raises(ValueError, match=r"cond_size is 6.* cond_tokens 4 .* one of 1, 2, 3, 6"):
        Transformer(**SIZES, cond_tokens=4)
    with pytest.raises(ValueError, match="cond_tokens is 0"):
        Transformer(**SIZES, cond_tokens=0)


def test_sizes_and_choices_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="conditioning is 'film', choose one of memory, adaln, at"):
        Transformer(**SIZES, conditioning="film")
    with pytest.raises(ValueError, match="cond_in is 'suffix', choose one of memory, prefix"):
        Transformer(**SIZES, cond_in="suffix")
    with pytest.raises(ValueError, match="norm is 'batch', choose one of layer, rms"):
        Transformer(**SIZES, norm="batch")
    with pytest.raises(ValueError, match=r"size is 18.* multiple of n_heads 4"):
        Transformer(**SIZES, size=18)
    with pytest.raises(ValueError, match="size is 7, it must be even"):
        Transformer(**SIZES, size=7, n_heads=7)
    with pytest.raises(ValueError, match="n_layers is 0"):
        Transformer(**SIZES, n_layers=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_layers", 1.5), ("n_heads", 2.0), ("size", 16.0), ("cond_tokens", True)],
)
def test_sizes_that_are_no_whole_numbers_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}, it must be a whole number"):
        Transformer(**SIZES, **{name: value})


@pytest.mark.parametrize("dropout", [1.5, -0.1, float("nan"), "much"])
def test_dropout_out_of_range_is_refused(dropout):
    with pytest.raises(ValueError, match=f"attention_dropout is {dropout!r}, it must be a number"):
        Transformer(**SIZES, attention_dropout=dropout)
    for layer in (GELUFeedForward, SwiGLUFeedForward):
        with pytest.raises(ValueError, match=f"dropout is {dropout!r}, it must be a number"):
            layer(size=8, dropout=dropout)


@pytest.mark.parametrize("layer", [GELUFeedForward, SwiGLUFeedForward])
def test_a_layer_without_hidden_features_is_refused(layer):
    with pytest.raises(ValueError, match=r"expansion is 0\.05.* at least 0\.125"):
        layer(size=8, expansion=0.05)
