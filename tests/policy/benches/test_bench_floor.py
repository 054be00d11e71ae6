"""The floor in closed form: bytes, multiply-adds, and which of them binds."""

import itertools

import pytest
import torch
from torch import nn

from policy.benches.floor import (
    MATRIX,
    Floor,
    bytes_read,
    multiplier,
    multiply_adds,
    readers,
    synchronised,
    weights_used,
)
from policy.nets.experts import Experts
from policy.nets.unet1d import UNet1d

CPU = torch.device("cpu")


def test_the_longer_time_binds():
    reading = Floor(weight_bytes=8, multiply_adds=6, bandwidth=2.0, matrix_rate=3.0)
    assert (reading.reading, reading.arithmetic) == (4, 2)
    assert (reading.seconds, reading.binds) == (4, "reading")
    arithmetic = Floor(weight_bytes=8, multiply_adds=60, bandwidth=2.0, matrix_rate=3.0)
    assert (arithmetic.seconds, arithmetic.binds) == (20, "arithmetic")


def test_multiply_adds_of_a_linear_layer():
    layer = nn.Linear(5, 7)
    assert multiply_adds(lambda: layer(torch.ones(3, 5))) == 3 * 5 * 7


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding", "dilation"), [(5, 2, 1), (3, 1, 1), (3, 4, 2)])
@pytest.mark.parametrize("transposed", [False, True])
def test_multiply_adds_of_a_convolution_leave_out_its_padding(
    stride, kernel, padding, dilation, transposed
):
    n_in, n_out, length, batch = 4, 6, 9, 2
    kind = nn.ConvTranspose1d if transposed else nn.Conv1d
    layer = kind(n_in, n_out, kernel, stride=stride, padding=padding, dilation=dilation, groups=2)
    x = torch.ones(batch, n_in, length)
    n_positions = layer(x).shape[-1]
    pairs = 0
    for i, j, k in itertools.product(range(length), range(n_positions), range(kernel)):
        # A tap joins the positions i (in) and j (out), which for a transposed one change places.
        many, few = (j, i) if transposed else (i, j)
        pairs += many == few * stride - padding + k * dilation
    with torch.no_grad():
        assert multiply_adds(lambda: layer(x)) == batch * pairs * n_in * n_out // 2


def test_multiply_adds_of_a_picture_without_padding():
    layer = nn.Conv2d(3, 8, (3, 2))
    with torch.no_grad():
        found = multiply_adds(lambda: layer(torch.ones(2, 3, 10, 7)))
    assert found == 2 * (8 * 6) * (3 * 2) * 3 * 8


def test_weights_used_are_those_of_the_call():
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6))
    first = net[0]
    assert weights_used(net, lambda: first(torch.ones(1, 4))) == 4 * 5 + 5
    assert weights_used(net, lambda: net(torch.ones(1, 4))) == 4 * 5 + 5 + 5 * 6 + 6
    assert weights_used(net, lambda: torch.ones(1)) == 0


def test_weights_of_known_levels_are_not_used_any_more():
    net = UNet1d(action_size=2, cond_size=3, pred_horizon=4, channels=(8,), noise_embed_size=8)
    at = net.at(torch.full((4,), 7.0))
    x, cond = torch.ones(1, 4, 2), torch.ones(1, 3)
    everything = sum(weight.numel() for weight in net.parameters())
    of_levels = [
        weight.numel()
        for name, weight in net.named_parameters()
        if name.startswith("noise_embed") or "film.noise" in name
    ]
    with torch.no_grad():
        assert weights_used(net, lambda: at(x, cond)) == everything - sum(of_levels)


def test_of_experts_that_lie_in_one_tensor_those_that_are_asked_count():
    net = nn.ParameterList([torch.ones(4, 3, 2)])  # Four experts, from 2 to 3 features.
    weight, x = net[0], torch.ones(1, 2)
    assert weights_used(net, lambda: x @ weight[1].t()) == 3 * 2
    assert weights_used(net, lambda: [x @ weight[i].t() for i in (1, 1, 2)]) == 2 * 3 * 2
    assert weights_used(net, lambda: (x @ weight[1].t(), weight[0] * 2, weight.sum())) == 4 * 3 * 2
    # In another order of the axes it is the same part; what is added to something else is read.
    assert weights_used(net, lambda: (x @ weight[1].t(), weight[1] * 2)) == 3 * 2
    with torch.no_grad():
        assert weights_used(net, lambda: torch.zeros(3, 2).add_(weight[0])) == 3 * 2


@pytest.mark.parametrize(("top_k", "used"), [(1, 1), (2, 2), (4, 4)])
def test_a_mixture_at_a_known_level_reads_the_experts_it_asks(top_k, used):
    layer = Experts(size=4, n_experts=4, top_k=top_k)
    with torch.no_grad():
        at = layer.at(torch.zeros(3, 4))
        read = weights_used(layer, lambda: at(torch.ones(1, 3, 4)))
    one = (layer.up.numel() + layer.down.numel()) // 4
    assert read == used * one


@pytest.mark.parametrize("n_bytes", [1, 4 * MATRIX, 10_000_000])
def test_readers_read_as_many_bytes_as_they_say(n_bytes):
    n_numbers = bytes_read(n_bytes) // 4
    assert n_bytes < 4 * MATRIX or n_bytes - bytes_read(n_bytes) < 4 * MATRIX
    calls = readers(n_bytes, CPU)
    # They read ones: each sum says how many.
    assert calls["sum"]() == n_numbers
    assert calls["dot"]() == n_numbers
    assert calls["matrix times vector"]().sum() == n_numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_multiplier_makes_a_whole_product(dtype):
    product = multiplier(CPU, dtype)()
    assert product.shape == (MATRIX, MATRIX)
    assert (product == MATRIX).all()


def test_a_result_on_the_cpu_is_there_already():
    x = torch.ones(2)
    assert synchronised(x) is x
