"""The U-Net against a plain implementation of the paper, its sizes and its limits."""

import pytest
import torch
import torch.nn.functional as F

from policy.nets.noise_embed import NoiseEmbed, sinusoids
from policy.nets.unet1d import FiLM, UNet1d

SIZES = {"action_size": 3, "cond_size": 5, "pred_horizon": 16}
SMALL = {"channels": (8, 16, 24), "n_groups": 4, "noise_embed_size": 8}


def randomised(net):
    """Weights as after training: nothing is zero, so that every part counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.double()


@pytest.fixture(scope="module")
def net():
    return randomised(UNet1d(**SIZES, **SMALL))


def inputs(batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 16, 3, generator=generator, dtype=torch.float64)
    c_noise = 80 * torch.rand(batch, 16, generator=generator, dtype=torch.float64)
    return x, c_noise, torch.randn(batch, 5, generator=generator, dtype=torch.float64)


def paper_net(weights, x, c_noise, cond):
    """The U-Net of Diffusion Policy, with one noise level per chunk [B].

    FiLM is one linear layer on the level's embedding and the condition side by side.
    """
    get = weights.get
    e = sinusoids(c_noise, 8)
    e = F.linear(e, get("noise_embed.mlp.0.weight"), get("noise_embed.mlp.0.bias"))
    e = F.linear(F.silu(e), get("noise_embed.mlp.2.weight"), get("noise_embed.mlp.2.bias"))
    features = F.silu(torch.cat([e, cond], dim=1))

    def conv_block(name, h):
        h = F.conv1d(h, get(f"{name}.0.weight"), get(f"{name}.0.bias"), padding=2)
        return F.silu(F.group_norm(h, 4, get(f"{name}.1.weight"), get(f"{name}.1.bias")))

    def residual(name, h):
        out = conv_block(f"{name}.first", h)
        weight = torch.cat([get(f"{name}.film.noise.weight"), get(f"{name}.film.cond.weight")], 1)
        film = F.linear(features, weight, get(f"{name}.film.cond.bias"))
        scale, shift = film[:, :, None].chunk(2, dim=1)
        out = conv_block(f"{name}.second", scale * out + shift)
        if f"{name}.skip.weight" in weights:
            h = F.conv1d(h, get(f"{name}.skip.weight"), get(f"{name}.skip.bias"))
        return out + h

    def pair(name, h):
        return residual(f"{name}.second", residual(f"{name}.first", h))

    h, skips = x.transpose(1, 2), []
    for level in range(3):
        h = pair(f"down.{level}", h)
        skips.append(h)
        if level < 2:
            weight, bias = get(f"downsample.{level}.weight"), get(f"downsample.{level}.bias")
            h = F.conv1d(h, weight, bias, stride=2, padding=1)
    h = pair("middle", h)
    for i in range(2):
        h = pair(f"up.{i}", torch.cat([h, skips[2 - i]], dim=1))
        weight, bias = get(f"upsample.{i}.weight"), get(f"upsample.{i}.bias")
        h = F.conv_transpose1d(h, weight, bias, stride=2, padding=1)
    h = conv_block("last", h)
    return F.conv1d(h, get("out.weight"), get("out.bias")).transpose(1, 2)


def test_one_level_for_all_actions_gives_the_network_of_the_paper(net):
    x, c_noise, cond = inputs()
    level = c_noise[:, 0]
    expected = paper_net(dict(net.named_parameters()), x, level, cond)
    got = net(x, level[:, None].expand(-1, 16), cond)
    assert got.std() > 0.1
    torch.testing.assert_close(got, expected)


def test_level_of_each_action_matters(net):
    x, c_noise, cond = inputs()
    base = net(x, c_noise, cond)
    for i in (0, 7, 15):
        changed = c_noise.clone()
        changed[:, i] += 5
        assert (net(x, changed, cond) - base).abs().max() > 1e-4


def test_position_of_a_level_sees_the_mean_of_its_actions(net):
    _, c_noise, _ = inputs()
    embedding = net.noise_embed(c_noise)
    for level, features in enumerate(net._noise_per_level(c_noise)):
        groups = embedding.view(2, 16 // 2**level, 2**level, 8)
        torch.testing.assert_close(features, F.silu(groups.mean(dim=2)))


def test_at_given_levels_it_is_the_same_network(net):
    x, c_noise, cond = inputs(batch=3)
    expected = net(x, c_noise[:1].expand(3, -1), cond)
    torch.testing.assert_close(net.at(c_noise[0])(x, cond), expected, rtol=1e-12, atol=1e-12)


def test_samples_do_not_influence_each_other(net):
    x, c_noise, cond = inputs(batch=3)
    together = net(x, c_noise, cond)
    alone = net(x[1:2], c_noise[1:2], cond[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-12, atol=1e-12)


def test_gradient_reaches_every_weight(net):
    x, c_noise, cond = inputs()
    net.zero_grad()
    net(x, c_noise, cond).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_untrained_network_predicts_nothing_and_film_is_the_identity():
    x, c_noise, cond = (t.float() for t in inputs())
    assert (UNet1d(**SIZES, **SMALL)(x, c_noise, cond) == 0).all()
    h = torch.randn(2, 8, 16)
    film = FiLM(8, embed_size=4, cond_size=5)
    assert torch.equal(film(h, torch.randn(2, 16, 4), cond), h)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_any_number_of_levels_that_the_chunk_allows(levels):
    net = UNet1d(**SIZES, **{**SMALL, "channels": (8,) * levels})
    x, c_noise, cond = (t.float() for t in inputs())
    assert net(x, c_noise, cond).shape == x.shape


def test_size_is_that_of_diffusion_policy():
    """65.78 M weights: Push-T from state, 2 steps of 20 values, kernel 5, embedding 256."""
    with torch.device("meta"):
        net = UNet1d(
            action_size=2,
            cond_size=40,
            pred_horizon=16,
            channels=(256, 512, 1024),
            noise_embed_size=256,
        )
    n_weights = sum(parameter.numel() for parameter in net.parameters())
    assert n_weights == pytest.approx(65.78e6, rel=0.001)


def test_chunk_that_cannot_be_halved_is_refused_with_its_neighbours():
    with pytest.raises(ValueError, match=r"pred_horizon is 18.* 3 levels .* of 4: .* 16 or 20"):
        UNet1d(**{**SIZES, "pred_horizon": 18}, **SMALL)
    with pytest.raises(ValueError, match=r"pred_horizon is 3.* to 4,"):
        UNet1d(**{**SIZES, "pred_horizon": 3}, **SMALL)


@pytest.mark.parametrize("pred_horizon", [4, 12, 20])
def test_multiples_of_four_suffice_for_three_levels(pred_horizon):
    net = UNet1d(**{**SIZES, "pred_horizon": pred_horizon}, **SMALL)
    x = torch.zeros(1, pred_horizon, 3)
    assert net(x, x[..., 0], torch.zeros(1, 5)).shape == x.shape


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="channels is empty"):
        UNet1d(**SIZES, **{**SMALL, "channels": ()})
    with pytest.raises(ValueError, match="kernel_size is 4"):
        UNet1d(**SIZES, **SMALL, kernel_size=4)
    with pytest.raises(ValueError, match=r"channels are \[8, 10\].* n_groups 4"):
        UNet1d(**SIZES, **{**SMALL, "channels": (8, 10)})
    with pytest.raises(ValueError, match="noise_embed_size is 7"):
        NoiseEmbed(7)
    with pytest.raises(ValueError, match="noise_embed_size is 2"):
        NoiseEmbed(2)


def test_sinusoids_are_sines_then_cosines_of_geometric_frequencies():
    got = sinusoids(torch.tensor([[3.0]]), 6)
    angles = 3 * torch.tensor([1.0, 1e-2, 1e-4])
    torch.testing.assert_close(got[0, 0], torch.cat([angles.sin(), angles.cos()]))
