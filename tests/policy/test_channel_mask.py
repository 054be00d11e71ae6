"""The window of channels over the levels, and the transformer that is routed by it."""

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from policy.nets.channel_mask import ChannelMask
from policy.nets.level_range import LevelRange
from policy.nets.transformer import Transformer

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "net"
B, TP, DA, C, D = 3, 6, 2, 4, 16
SIZES: dict[str, Any] = {"action_size": DA, "cond_size": C, "pred_horizon": TP}
MASK = partial(ChannelMask, active=0.5, lowest=-50.0, highest=50.0)

every_variant = pytest.mark.parametrize(
    ("conditioning", "cond_in"),
    list(product(("memory", "adaln", "attention"), ("memory", "prefix"))),
)


def channels_of(mask, level) -> list[int]:
    return mask(torch.tensor([[float(level)]]))[0, 0].nonzero()[:, 0].tolist()


def net_of(**options: Any) -> Any:
    """With weights of which none is zero."""
    net = Transformer(**SIZES, **({"size": D, "n_layers": 2, "channel_mask": MASK} | options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def inputs():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, TP, DA, generator=generator)
    c_noise = 140 * torch.rand(B, TP, generator=generator) - 70
    return x, c_noise, torch.randn(B, C, generator=generator)


def test_window_slides_from_the_first_channels_to_the_last():
    """10 channels, 4 of them active: the window has 6 to go, half of them at the middle level."""
    mask = ChannelMask(size=10, active=0.4, lowest=-50.0, highest=50.0)
    assert channels_of(mask, -50) == [0, 1, 2, 3]
    assert channels_of(mask, 0) == [3, 4, 5, 6]
    assert channels_of(mask, 50) == [6, 7, 8, 9]
    # Beyond the limits it stays.
    assert channels_of(mask, -80) == [0, 1, 2, 3]
    assert channels_of(mask, 80) == [6, 7, 8, 9]


def test_window_moves_with_the_power_of_the_position():
    """With 4, the paper's, half of the levels have gone (1/2)^4 of the way: 1 of 16 channels."""
    mask = ChannelMask(size=20, active=0.2, power=4, lowest=0.0, highest=100.0)
    starts = [channels_of(mask, level)[0] for level in (0, 50, 75, 100)]
    assert starts == [0, 1, round(16 * 0.75**4), 16]


@pytest.mark.parametrize("power", [0.5, 1, 4])
@pytest.mark.parametrize(("size", "active"), [(128, 0.8), (16, 0.5), (7, 0.3), (8, 1)])
def test_every_level_has_its_share_of_neighbouring_channels(size, active, power):
    mask = ChannelMask(size=size, active=active, power=power, lowest=-46.0, highest=30.0)
    levels = torch.linspace(-60, 40, 301)[None]
    serves = mask(levels)[0]
    assert serves.shape == (301, size)
    assert (serves.sum(dim=-1) == round(active * size)).all()
    start = serves.int().argmax(dim=-1)
    assert (start.diff() >= 0).all()
    # Neighbours: a window begins and ends once.
    assert (serves.int().diff(dim=-1).abs().sum(dim=-1) <= 2).all()


def test_level_is_that_of_an_action():
    mask = MASK(size=D)
    levels = torch.tensor([[-50.0, 50.0], [0.0, -50.0]])
    serves = mask(levels)
    for sample, action in product(range(2), range(2)):
        alone = mask(levels[sample, action].view(1, 1))
        assert torch.equal(serves[sample, action], alone[0, 0])


@every_variant
@torch.no_grad()
def test_fixed_levels_give_the_same_chunk(conditioning, cond_in):
    net = net_of(conditioning=conditioning, cond_in=cond_in)
    x, _, cond = inputs()
    for levels in (torch.full((TP,), -50.0), torch.full((TP,), 9.0), torch.linspace(-50, 50, TP)):
        expected = net(x, levels.expand(B, -1), cond)
        assert expected.std() > 0.01
        torch.testing.assert_close(net.at(levels)(x, cond), expected, rtol=1e-5, atol=1e-5)


@every_variant
@torch.no_grad()
def test_blocks_leave_masked_channels_exactly_as_they_are(conditioning, cond_in):
    """And change the others; all channels of the condition's tokens serve."""
    net = net_of(conditioning=conditioning, cond_in=cond_in)
    x, c_noise, cond = inputs()
    streams = []
    net.blocks[0].register_forward_pre_hook(lambda _, given: streams.append(given[0]))
    net.norm.register_forward_pre_hook(lambda _, given: streams.append(given[0]))
    net(x, c_noise, cond)
    (seen, left), serves = streams, MASK(size=D)(c_noise)
    embedded = net.action_embed(x) + net.positions[-TP:]
    assert torch.equal(left[~serves], embedded[~serves])
    assert (left[serves] != embedded[serves]).all()
    assert (seen[:, -TP:][~serves] == 0).all()
    assert torch.equal(seen[:, -TP:][serves], embedded[serves])
    assert (seen[:, :-TP] != 0).all()


@every_variant
@torch.no_grad()
def test_blocks_do_not_see_masked_channels(conditioning, cond_in):
    net = net_of(conditioning=conditioning, cond_in=cond_in)
    x, _, cond = inputs()
    c_noise = torch.full((B, TP), -50.0)  # The first half of the channels serves.
    streams = []
    net.norm.register_forward_pre_hook(lambda _, given: streams.append(given[0]))
    net(x, c_noise, cond)
    net.action_embed.bias[D // 2 :] += 3
    net(x, c_noise, cond)
    first, second = streams
    assert torch.equal(first[..., : D // 2], second[..., : D // 2])
    torch.testing.assert_close(first[..., D // 2 :] + 3, second[..., D // 2 :])


@torch.no_grad()
def test_all_channels_active_is_the_network_without_a_mask():
    routed, plain = net_of(channel_mask=partial(MASK, active=1)), net_of(channel_mask=None)
    assert routed.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(routed(*inputs()), plain(*inputs()))


def test_gradient_of_a_level_reaches_the_weights_of_its_channels_alone():
    """Those that embed an action reach the last layer at every level, by way of no block."""
    net = net_of(conditioning="adaln", cond_in="prefix", n_layers=1)
    x, _, cond = inputs()
    net(x, torch.full((B, TP), -50.0), cond).square().sum().backward()
    out = net.blocks[0].feed_forward.second.weight.grad.abs().amax(dim=1)
    assert (out[: D // 2] > 0).all()
    assert (out[D // 2 :] == 0).all()
    assert (net.action_embed.weight.grad.abs().amax(dim=1) > 0).all()


def test_routed_config_differs_in_the_mask_alone():
    plain, routed = (
        OmegaConf.to_container(OmegaConf.load(CONFIGS / f"transformer{name}_small.yaml"))
        for name in ("", "_routed")
    )
    assert isinstance(routed, dict)
    mask = routed.pop("channel_mask")
    assert routed == plain
    assert instantiate(mask)(size=128).n_active == 102


def test_routed_network_is_one_graph():
    net = net_of(conditioning="attention", cond_in="prefix")
    assert torch._dynamo.explain(net)(*inputs()).graph_break_count == 0


@pytest.mark.parametrize("active", [0, -0.5, 1.2, 0.01, float("nan"), "half"])
def test_impossible_shares_are_refused(active):
    with pytest.raises(ValueError, match=rf"active is {active!r}.* from 0\.0625 to 1"):
        ChannelMask(size=16, active=active)


@pytest.mark.parametrize("power", [0, -1, float("inf"), float("nan")])
def test_impossible_powers_are_refused(power):
    with pytest.raises(ValueError, match=f"power is {power}, it must be a number above 0"):
        ChannelMask(size=16, power=power)


def test_limits_out_of_order_are_refused():
    with pytest.raises(ValueError, match=r"lowest is 3\.0 and highest is 3\.0"):
        ChannelMask(size=16, lowest=3.0, highest=3.0)
    with pytest.raises(ValueError, match=r"lowest is nan"):
        LevelRange(float("nan"), 3.0)


def test_position_is_the_share_of_the_range():
    levels = torch.tensor([-60.0, -50.0, -25.0, 50.0, 60.0])
    assert LevelRange(-50.0, 50.0).position(levels).tolist() == [0, 0, 0.25, 1, 1]


def test_a_window_over_other_levels_than_the_trained_is_refused():
    mask = MASK(size=16)
    mask.check_levels(-45.0, 55.0)  # A tenth of the range may be missed.
    with pytest.raises(
        ValueError,
        match=r"from -50 to 50, but levels from -46 to 30 .*net\.channel_mask\.highest=30",
    ):
        mask.check_levels(-46.0, 30.0)
