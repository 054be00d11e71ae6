"""The lowered U-Net against the plain one in double precision, for any sizes that it may have."""

import copy
import math
import os
import shutil
import threading

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from policy.nets import unet1d_lowered
from policy.nets.compiled import COMPILERS
from policy.nets.unet1d import UNet1d

pytestmark = pytest.mark.skipif(
    "CXX" not in os.environ and not any(map(shutil.which, COMPILERS)),
    reason="there is no C++ compiler",
)

# Rounding of single precision through some 30 layers, in units of the output's scale.
TOLERANCE = 1e-5


def small(channels=(32, 64)):
    return UNet1d(
        action_size=3, cond_size=5, pred_horizon=16, channels=channels, noise_embed_size=8
    )


def trained(net, seed=0):
    """Weights as after training: none is zero, and features keep their scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            for name, parameter in module.named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator)
                if isinstance(module, nn.GroupNorm) and name == "weight":
                    parameter.copy_(1 + 0.3 * noise)
                elif parameter.ndim > 1:
                    parameter.copy_(noise / math.sqrt(parameter[0].numel()))
                else:
                    parameter.add_(0.3 * noise)
    return net


@pytest.fixture(scope="module")
def net():
    return trained(small())


def inputs(net, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = net.down[0].first.film.cond.in_features
    x = torch.randn(batch, net.pred_horizon, net.out.out_channels, generator=generator)
    c_noise = 80 * torch.rand(batch, net.pred_horizon, generator=generator)
    return x, c_noise, torch.randn(batch, size, generator=generator)


@torch.no_grad()
def in_double(net, x, c_noise, cond):
    return copy.deepcopy(net).double()(x.double(), c_noise.double(), cond.double())


def assert_near(got, expected):
    assert got.shape == expected.shape
    error = float((got - expected).abs().max() / expected.abs().max())
    assert error < TOLERANCE, f"error is {error:.1e} of the output's scale"


def rounded(net, weights):
    """A copy whose convolutions have weights as they are in a format."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.Conv1d):
            module.weight.data = as_format(module.weight.data, weights, other=(1, 2))
        if isinstance(module, nn.ConvTranspose1d):
            # Even and odd positions are two convolutions.
            for taps in ([0, 2], [1, 3]):
                some = module.weight.data[..., taps]
                module.weight.data[..., taps] = as_format(some, weights, other=(0, 2))
    return net


def as_format(weight, weights, *, other):
    """Rounded weights; `other` are the dimensions besides that of output channels."""
    if weights == "bf16":
        return weight.bfloat16().float()
    if weights == "int8":
        unit = weight.abs().amax(dim=other, keepdim=True) / 127
        return (weight / unit).round() * unit
    return weight


@st.composite
def networks(draw):
    n_levels = draw(st.integers(1, 4))
    n_groups = draw(st.sampled_from([1, 2, 3, 4, 8]))
    size = st.integers(2, 72 // n_groups).map(lambda n: n * n_groups)
    return UNet1d(
        action_size=draw(st.integers(1, 9)),
        cond_size=draw(st.integers(1, 20)),
        pred_horizon=draw(st.integers(1, 5)) * 2 ** (n_levels - 1),
        channels=draw(st.lists(size, min_size=n_levels, max_size=n_levels)),
        kernel_size=draw(st.sampled_from([1, 3, 5, 7])),
        n_groups=n_groups,
        noise_embed_size=draw(st.sampled_from([4, 16])),
        activation=draw(st.sampled_from(["silu", "mish"])),
    )


@settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    networks(),
    st.integers(0, 1000),
    st.integers(1, 3),
    st.sampled_from(["fp32", "bf16", "int8"]),
    st.sampled_from(["per position", "per sample", "the same"]),
)
@torch.no_grad()
def test_it_is_the_network_of_any_sizes(net, seed, batch, weights, levels):
    trained(net, seed)
    x, c_noise, cond = inputs(net, batch, seed)
    if levels == "per sample":
        c_noise = c_noise[:, :1].expand_as(c_noise)
    if levels == "the same":
        c_noise = c_noise[:1, :1].expand_as(c_noise)
    expected = in_double(rounded(net, weights), x, c_noise, cond)
    single = float((rounded(net, weights)(x, c_noise, cond) - expected).abs().max())
    got = net.lowered(weights)(x, c_noise, cond)
    # A norm of few values that are nearly equal amplifies rounding, in the plain network too.
    limit = max(TOLERANCE * float(expected.abs().max()), 4 * single)
    assert float((got - expected).abs().max()) < limit


@pytest.mark.parametrize("channels", [(8,), (8, 16), (8, 8, 8), (8, 8, 8, 8)])
@torch.no_grad()
def test_actions_may_have_more_elements_than_features_have_channels(channels):
    net = trained(UNet1d(action_size=100, cond_size=5, pred_horizon=16, channels=channels))
    for batch in (1, 3):
        expected = in_double(net, *inputs(net, batch))
        assert_near(net.lowered()(*inputs(net, batch)), expected)


@torch.no_grad()
def test_residual_of_features_side_by_side_is_without_the_padding_between_them():
    net = trained(small((48, 24)))  # 24 + 24 become 48
    assert isinstance(net.pairs()[-1][0].first.skip, nn.Identity)
    for weights in ("fp32", "bf16", "int8"):
        expected = in_double(rounded(net, weights), *inputs(net))
        assert_near(net.lowered(weights)(*inputs(net)), expected)


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
@torch.no_grad()
def test_at_given_levels_is_the_same_in_the_plain_and_the_lowered_network(net, weights):
    x, c_noise, cond = inputs(net, batch=3)
    for levels in (c_noise[0], c_noise[0, :1].expand(16)):
        expected = in_double(rounded(net, weights), x, levels.expand(3, -1), cond)
        assert_near(rounded(net, weights).at(levels)(x, cond), expected)
        assert_near(net.lowered(weights).at(levels)(x, cond), expected)


@pytest.mark.parametrize("weights", ["bf16", "int8"])
@torch.no_grad()
def test_weights_are_rounded(net, weights):
    assert not torch.equal(net.lowered(weights)(*inputs(net)), net.lowered()(*inputs(net)))


@torch.no_grad()
def test_samples_of_a_large_batch_are_those_of_a_small_one(net):
    lowered = net.lowered()
    x, c_noise, cond = inputs(net, batch=19)
    for levels in (c_noise, c_noise[:1].expand(19, -1)):
        alone = [lowered(x[i : i + 1], levels[i : i + 1], cond[i : i + 1]) for i in range(19)]
        # The FiLMs come from products of another size.
        torch.testing.assert_close(lowered(x, levels, cond), torch.cat(alone), rtol=0, atol=1e-5)


@torch.no_grad()
def test_number_of_threads_does_not_matter(net, monkeypatch):
    monkeypatch.setattr(unet1d_lowered, "BYTES_PER_THREAD", 1)
    lowered, n_threads = net.lowered(), torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            torch.testing.assert_close(
                lowered(*inputs(net)), net.lowered()(*inputs(net)), rtol=0, atol=0
            )
            assert_near(lowered(*inputs(net)), in_double(net, *inputs(net)))
    finally:
        torch.set_num_threads(n_threads)


@torch.no_grad()
def test_networks_in_several_threads_do_not_disturb_each_other(net):
    other = trained(small((8, 16, 24)), seed=1)
    nets = [net.lowered(), other.lowered(), net.lowered("bf16")]
    given = [inputs(net, seed=i) for i in range(4)]
    expected = [[lowered(*some) for some in given] for lowered in nets]
    wrong = []

    def call(k):
        for i in range(200):
            lowered, some = nets[(k + i) % 3], i % 4
            if not torch.equal(lowered(*given[some]), expected[(k + i) % 3][some]):
                wrong.append((k, i))

    threads = [threading.Thread(target=call, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@torch.no_grad()
def test_not_finite_input_is_seen_in_the_output_and_only_there(net):
    lowered = net.lowered()
    x, c_noise, cond = inputs(net, batch=3)
    expected = lowered(x, c_noise, cond)
    for value in (math.nan, math.inf, -math.inf):
        for i in range(3):
            changed = [x.clone(), c_noise.clone(), cond.clone()]
            changed[i][1].view(-1)[4] = value
            got = lowered(*changed)
            assert not torch.isfinite(got[1]).all(), (value, i)
            assert torch.equal(got[[0, 2]], expected[[0, 2]])
    assert torch.equal(lowered(x, c_noise, cond), expected)


@torch.no_grad()
def test_not_finite_weight_is_seen_in_the_output(net):
    for weights in ("fp32", "bf16", "int8"):
        for value in (math.nan, math.inf):
            broken = copy.deepcopy(net)
            broken.middle.first.first[0].weight[3, 2, 1] = value
            assert torch.isnan(broken.lowered(weights)(*inputs(net))).any(), (weights, value)


@torch.no_grad()
def test_kept_films_are_those_of_the_values(net):
    lowered = net.lowered()
    x, c_noise, cond = inputs(net)
    first = lowered(x, c_noise, cond)
    cond += 1  # in place: the same tensor with other values
    c_noise += 1
    assert not torch.equal(lowered(x, c_noise, cond), first)
    assert_near(lowered(x, c_noise, cond), in_double(net, x, c_noise, cond))
    for level in range(2 * unet1d_lowered.KEPT):
        lowered(x, torch.full_like(c_noise, float(level)), cond)
    assert len(lowered._noise_films) == unet1d_lowered.KEPT
    assert_near(lowered(x, c_noise, cond), in_double(net, x, c_noise, cond))


@torch.no_grad()
def test_it_is_a_frozen_copy(net):
    changed = copy.deepcopy(net)
    lowered = changed.lowered()
    expected = lowered(*inputs(net))
    for parameter in changed.parameters():
        parameter.zero_()
    assert torch.equal(lowered(*inputs(net)), expected)
    assert torch.equal(copy.deepcopy(lowered)(*inputs(net)), expected)
    assert torch.equal(net.double().lowered()(*inputs(net)), expected)
    net.float()


@torch.no_grad()
def test_precision_and_defaults_outside_do_not_matter(net):
    expected = net.lowered()(*inputs(net))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net.lowered()(*inputs(net)), expected)
    x, c_noise, cond = inputs(net)
    assert torch.equal(net.lowered()(x, c_noise.double().requires_grad_(), cond), expected)
    with torch.inference_mode():
        lowered = net.lowered()
        assert torch.equal(lowered(x, c_noise, cond), expected)
    assert torch.equal(lowered(x, c_noise, cond), expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(net.lowered()(x, c_noise, cond), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@torch.no_grad()
def test_strided_input_is_read_as_it_is(net):
    lowered = net.lowered()
    x, c_noise, cond = inputs(net, batch=2)
    expected = lowered(x, c_noise, cond)
    apart = torch.zeros(2, 3, 32).transpose(1, 2)[:, ::2]
    apart.copy_(x)
    wide = torch.zeros(2, 10)[:, ::2].copy_(cond)
    assert torch.equal(lowered(apart, c_noise.t().contiguous().t(), wide), expected)


@torch.no_grad()
def test_empty_batch_gives_an_empty_one(net):
    x, c_noise, cond = (some[:0] for some in inputs(net))
    assert net.lowered()(x, c_noise, cond).shape == (0, 16, 3)


@torch.no_grad()
def test_it_compiles_within_a_larger_graph(net):
    lowered = net.lowered()
    x, c_noise, cond = inputs(net, batch=2)
    call = lowered.at(c_noise[0])

    def both(x, c_noise, cond):
        return 2 * lowered(x, c_noise, cond) + call(x, cond)

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, c_noise, cond), both(x, c_noise, cond))
    exported = torch.export.export(lowered, (x, c_noise, cond)).module()
    torch.testing.assert_close(exported(x, c_noise, cond), lowered(x, c_noise, cond))


@torch.no_grad()
def test_operator_keeps_to_its_declaration(net):
    lowered = net.lowered()
    x, c_noise, cond = inputs(net, batch=2)
    films = lowered._noise_films_of(c_noise), lowered._cond_films_of(cond)
    parts = (lowered.program, lowered.packed, lowered.constants)
    torch.library.opcheck(unet1d_lowered._unet1d, (x, *films, *parts))


@torch.no_grad()
def test_inputs_that_do_not_fit_are_refused(net):
    lowered = net.lowered()
    x, c_noise, cond = inputs(net)
    with pytest.raises(ValueError, match=r"x is \[1, 8, 3\] .* takes \[B, 16, 3\] and \[B, 5\]"):
        lowered(x[:, :8], c_noise[:, :8], cond)
    with pytest.raises(ValueError, match=r"cond \[2, 5\]"):
        lowered(x, c_noise, cond.expand(2, -1))
    with pytest.raises(ValueError, match=r"c_noise is \[16\]"):
        lowered(x, c_noise[0], cond)
    with pytest.raises(ValueError, match=r"c_noise is \[8\], .*\[16\]"):
        lowered.at(c_noise[0, :8])
    for some in ((x.double(), cond), (x, cond.double()), (x.to("meta"), cond.to("meta"))):
        with pytest.raises(ValueError, match=r"takes torch.float32 on the CPU"):
            lowered(some[0], c_noise, some[1])
    with pytest.raises(ValueError, match=r"weights are 'fp8', choose one of fp32, bf16, int8"):
        net.lowered("fp8")
    with pytest.raises(ValueError, match="network is on meta: only one on the CPU"):
        copy.deepcopy(net).to("meta").lowered()


def test_another_dtype_or_device_is_refused_and_changes_nothing(net):
    lowered = net.lowered()
    for change in (lowered.double, lowered.half, lambda: nn.Sequential(lowered).to("meta")):
        with pytest.raises(ValueError, match=r"stays torch.float32 on the CPU and cannot become"):
            change()
    with torch.no_grad():
        assert_near(lowered.to("cpu").float()(*inputs(net)), in_double(net, *inputs(net)))


@torch.no_grad()
def test_films_of_many_samples_are_not_kept(net):
    lowered = net.lowered()
    lowered(*inputs(net, batch=unet1d_lowered.KEPT_SAMPLES))
    assert len(lowered._noise_films) == 1
    lowered(*inputs(net, batch=unet1d_lowered.KEPT_SAMPLES + 1))
    assert len(lowered._noise_films) == 1


def test_gradients_are_refused_where_they_would_be_needed(net):
    lowered = net.lowered()
    x, c_noise, cond = inputs(net)
    with pytest.raises(ValueError, match="a lowered network has no gradients"):
        lowered(x.requires_grad_(), c_noise, cond)
    with torch.no_grad():
        lowered(x, c_noise, cond)
