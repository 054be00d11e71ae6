"""Convolutions as products, against the convolution itself and against counts by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from policy.nets.norm_act import FiLMs, norm_act
from policy.nets.short_conv import products, short_conv
from policy.nets.unet1d import UNet1d

LENGTHS = [1, 2, 3, 4, 5, 6, 8, 12, 16]


@pytest.mark.parametrize("n_positions", LENGTHS)
@pytest.mark.parametrize("n_taps", [1, 3, 5, 7])
def test_products_are_the_convolution_for_whole_numbers_exactly(n_positions, n_taps):
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 10, n_positions).astype(float)
    w = rng.integers(-9, 10, n_taps).astype(float)
    p = products(n_positions, n_taps)
    padded = np.pad(x, n_taps // 2)
    expected = [padded[i : i + n_taps] @ w for i in range(n_positions)]
    assert (p.into_outputs @ ((p.of_taps @ w) * (p.of_inputs @ x))).tolist() == expected
    for matrix in (p.of_inputs, p.of_taps, p.into_outputs):
        assert np.array_equal(matrix, matrix.round())


@pytest.mark.parametrize(
    ("n_positions", "n_taps", "n_products"),
    # 3 = Karatsuba, 9 = 3 * 3, 24 = 2 * 9 and two corners of 3, 54 = 2 * 24 and two corners of 3.
    [(2, 5, 3), (4, 5, 9), (8, 5, 24), (16, 5, 54), (1, 5, 1), (3, 3, 7)],
)
def test_products_are_as_few_as_told(n_positions, n_taps, n_products):
    assert len(products(n_positions, n_taps)) == n_products


@pytest.mark.parametrize("n_positions", [1, 2, 3, 4, 5, 16])
def test_values_and_gradients_are_those_of_the_convolution(n_positions):
    torch.manual_seed(n_positions)
    x = torch.randn(n_positions, 6, 4, requires_grad=True)
    weight, d_out = torch.randn(5, 4, 5, requires_grad=True), torch.randn(n_positions, 6, 5)
    expected = F.conv1d(x.permute(1, 2, 0), weight, padding=2).permute(2, 0, 1)
    y = short_conv(x, weight)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    for one, other in zip(
        torch.autograd.grad(y, (x, weight), d_out),
        torch.autograd.grad(expected, (x, weight), d_out),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("is_mish", [False, True])
@pytest.mark.parametrize("beside", ["", "films", "residual", "both"])
def test_norm_act_is_the_layers_it_stands_for(is_mish, beside, n_threads):
    torch.manual_seed(0)
    length, batch, channels = 3, 5, 12
    y, bias = 3 * torch.randn(length, batch, channels), torch.randn(channels)
    norm = nn.GroupNorm(4, channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    position, sample = torch.randn(length, batch, 2 * channels), torch.randn(batch, 2 * channels)
    residual = torch.randn(length, batch, channels)
    inputs = [x.requires_grad_() for x in (y, bias, position, sample, residual)]
    has_films, has_residual = beside in ("films", "both"), beside in ("residual", "both")

    n = norm((y + bias).permute(1, 2, 0)).permute(2, 0, 1)
    expected = F.mish(n) if is_mish else F.silu(n)
    if has_films:
        scale, shift = (position + sample).chunk(2, dim=-1)
        expected = expected * scale + shift
    if has_residual:
        expected = expected + residual

    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        out = norm_act(
            y,
            bias,
            norm,
            is_mish=is_mish,
            films=FiLMs(position, sample) if has_films else None,
            residual=residual if has_residual else None,
        )
        torch.testing.assert_close(out, expected, atol=2e-6, rtol=1e-5)
        d_out, wanted = torch.randn_like(out), [*inputs, *norm.parameters()]
        found = torch.autograd.grad(out, wanted, d_out, allow_unused=True)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(
        found, torch.autograd.grad(expected, wanted, d_out, allow_unused=True), strict=True
    ):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_large_and_small_features_stay_finite():
    norm = nn.GroupNorm(1, 4)
    y = torch.tensor([1e4, -1e4, 0.0, 1e-30]).expand(2, 3, 4).contiguous().requires_grad_()
    for is_mish in (False, True):
        with torch.no_grad():
            norm.weight.fill_(200.0)  # so that the activation sees hundreds
        out = norm_act(y, torch.zeros(4), norm, is_mish=is_mish)
        (gradient,) = torch.autograd.grad(out.sum(), y)
        assert out.isfinite().all()
        assert gradient.isfinite().all()
        assert float(out.detach()[..., 1].abs().max()) < 1e-6  # far below 0 nothing passes


def awake(net: nn.Module) -> None:
    """Let the layers that begin as zero do something."""
    for parameter in net.parameters():
        with torch.no_grad():
            parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize(
    "sizes",
    [
        {"channels": [16, 32], "pred_horizon": 8},
        {"channels": [8, 16, 24], "pred_horizon": 12, "activation": "mish"},
        {"channels": [16], "pred_horizon": 5, "kernel_size": 3},
        {"channels": [16, 16], "pred_horizon": 2, "kernel_size": 7, "n_groups": 2},
    ],
)
def test_the_training_form_of_a_unet_is_the_same_function(sizes):
    torch.manual_seed(0)
    net = UNet1d(action_size=3, cond_size=7, **sizes)
    awake(net)
    fast = net.training_form()
    length = sizes["pred_horizon"]
    x, cond = torch.randn(9, length, 3, requires_grad=True), torch.randn(9, 7, requires_grad=True)
    c_noise, d_out = 30 * torch.randn(9, length), torch.randn(9, length, 3)
    expected, found = net(x, c_noise, cond), fast(x, c_noise, cond)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    names, parameters = zip(*net.named_parameters(), strict=True)
    wanted = (x, cond, *parameters)
    for name, one, other in zip(
        ("x", "cond", *names),
        torch.autograd.grad(found, wanted, d_out),
        torch.autograd.grad(expected, wanted, d_out),
        strict=True,
    ):
        scale = float(other.abs().max())
        assert float((one - other).abs().max()) <= 1e-4 * scale + 1e-6, name


def test_the_training_form_has_the_parameters_of_the_network_itself():
    net = UNet1d(action_size=3, cond_size=7, pred_horizon=4, channels=[8, 16])
    fast = net.training_form()
    assert [id(p) for p in fast.parameters()] == [id(p) for p in net.parameters()]


def test_the_training_form_takes_no_notice_of_a_reduced_precision_outside():
    net = UNet1d(action_size=3, cond_size=7, pred_horizon=4, channels=[8, 16])
    awake(net)
    fast = net.training_form()
    x, c_noise, cond = torch.randn(2, 4, 3), torch.randn(2, 4), torch.randn(2, 7)
    expected = fast(x, c_noise, cond)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fast(x, c_noise, cond), expected)
        found = fast(x.bfloat16(), c_noise, cond.bfloat16())
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.1)


def test_the_training_form_of_another_dtype_is_refused():
    net = UNet1d(action_size=3, cond_size=7, pred_horizon=4, channels=[8, 16]).double()
    with pytest.raises(ValueError, match=r"network is torch.float64 on cpu: .* torch.float32"):
        net.training_form()


@pytest.mark.parametrize("n_positions", [2, 16])
def test_second_derivatives_are_refused(n_positions):
    """They would be wrong without a word: what C++ does is not recorded."""
    x = torch.randn(n_positions, 2, 4, requires_grad=True)
    y = short_conv(x, torch.randn(4, 4, 5, requires_grad=True))
    z = norm_act(x, torch.zeros(4), nn.GroupNorm(2, 4), is_mish=False)
    for out in (y, z):
        (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()
