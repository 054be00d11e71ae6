"""The U-Net's form for training, against the U-Net itself in double precision."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from policy.nets import unet1d_training
from policy.nets.unet1d import UNet1d
from policy.nets.unet1d_values import Life, Value, placed

DA, C = 3, 7  # action and condition size
SMALL = {"channels": [16, 32], "pred_horizon": 8}


def make(**sizes) -> UNet1d:
    """A network whose layers that begin as zero do something."""
    torch.manual_seed(0)
    net = UNet1d(action_size=DA, cond_size=C, **sizes)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def inputs(net: UNet1d, batch: int) -> list[Tensor]:
    torch.manual_seed(1)
    length = net.pred_horizon
    given = (torch.randn(batch, length, DA), 30 * torch.randn(batch, length), torch.randn(batch, C))
    return [values.requires_grad_() for values in given]


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def differentiated(net: nn.Module, given: list[Tensor], d_out: Tensor) -> dict[str, Tensor]:
    """The output and all gradients by name."""
    given = [values.detach().requires_grad_() for values in given]
    out = net(*given)
    parameters = {name.removeprefix("net."): p for name, p in net.named_parameters()}
    wanted = [*given, *parameters.values()]
    grads = torch.autograd.grad(out, wanted, d_out)
    return {
        "out": out.detach(),
        **dict(zip(["x", "c_noise", "cond", *parameters], grads, strict=True)),
    }


def assert_same(net: UNet1d, batch: int) -> None:
    """In units of the largest entry: rounding of fp32, and of eight sums with factors up to 5."""
    given = inputs(net, batch)
    d_out = torch.randn(batch, net.pred_horizon, DA)
    exact = differentiated(copy.deepcopy(net).double(), [v.double() for v in given], d_out.double())
    found = differentiated(net.training_form(), given, d_out)
    assert list(found) == list(exact)
    for name, one in exact.items():
        error = float((found[name] - one).abs().max())
        assert error <= 1e-4 * float(one.abs().max()) + 1e-6 * batch**0.5, name


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize(
    "sizes",
    [
        SMALL,  # two tiles and one tile of four positions
        {"channels": [32, 64, 128], "pred_horizon": 16},
        {"channels": [8, 16, 24], "pred_horizon": 12, "activation": "mish"},  # padding
        {
            "channels": [40, 72],
            "pred_horizon": 6,
        },  # groups over the borders of panels, tiles unfilled
        {"channels": [16], "pred_horizon": 5, "kernel_size": 3},
        {"channels": [16, 16], "pred_horizon": 2, "kernel_size": 7, "n_groups": 2},
        {"channels": [8, 8], "pred_horizon": 2, "n_groups": 1},  # taps that see nothing
    ],
)
def test_values_and_gradients_are_those_of_the_network(sizes, n_threads):
    with threads(n_threads):
        assert_same(make(**sizes), 9)


@pytest.mark.parametrize("batch", [1, 2, 33, 127, 128, 129, 257])
def test_any_batch_is_cut_into_parts_that_are_the_whole(batch):
    with threads(2):
        assert_same(make(channels=[16, 32], pred_horizon=8, n_groups=2), batch)


def test_an_empty_batch_has_gradients_of_zero():
    net = make(**SMALL)
    given, d_out = inputs(net, 0), torch.zeros(0, 8, DA)
    found = differentiated(net.training_form(), given, d_out)
    assert all(not float(values.abs().sum()) for values in found.values())


def test_the_same_call_gives_the_same_bits():
    net = make(**SMALL)
    given, d_out = inputs(net, 300), torch.randn(300, 8, DA)
    with threads(2):
        fast = net.training_form()
        one, two = (differentiated(fast, given, d_out) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_calls_whose_gradients_are_still_to_come_keep_their_features_apart():
    net = make(**SMALL)
    fast = net.training_form()
    first, second = inputs(net, 5), [values.detach() + 1 for values in inputs(net, 5)]
    d_out = torch.randn(5, 8, DA)
    expected = differentiated(fast, first, d_out)["x"]
    out = fast(*first)
    fast(*second)
    for _ in range(2):  # the second time from the same features
        (found,) = torch.autograd.grad(out, first[:1], d_out, retain_graph=True)
        assert torch.equal(found, expected)


def test_memory_is_used_again_when_nothing_needs_it_any_more():
    net = make(**SMALL)
    fast = unet1d_training.TrainingUNet1d(net)
    given = [values.detach() for values in inputs(net, 5)]
    for _ in range(3):
        fast(*given).sum().backward()
    (program,) = fast._programs.values()
    assert len(program._spare) == 1


def test_gradients_of_parts_add_up():
    net = make(**SMALL)
    fast = net.training_form()
    given = [values.detach() for values in inputs(net, 6)]
    fast(*given).square().sum().backward()
    expected = [parameter.grad for parameter in net.parameters()]
    net.zero_grad()
    for rows in (slice(0, 2), slice(2, 6)):
        fast(*(values[rows] for values in given)).square().sum().backward()
    for parameter, grad in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-3, atol=1e-4)


def test_parameters_are_those_of_the_network_itself():
    net = make(**SMALL)
    fast = net.training_form()
    assert [id(p) for p in fast.parameters()] == [id(p) for p in net.parameters()]


def test_a_copy_has_weights_of_its_own():
    net = make(**SMALL)
    fast = net.training_form()
    given = [values.detach() for values in inputs(net, 4)]
    expected = fast(*given)
    other = copy.deepcopy(fast)
    with torch.no_grad():
        next(p for p in net.out.parameters()).add_(1.0)
    assert torch.equal(other(*given), expected)
    assert not torch.equal(fast(*given), expected)


@pytest.mark.parametrize("activation", ["silu", "mish"])
def test_large_and_small_features_stay_finite(activation):
    net = make(**SMALL, activation=activation)
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, nn.GroupNorm):
                part.weight.fill_(200.0)  # so that activations see hundreds
    given = inputs(net, 3)
    scales = torch.tensor([1e4, 1e-30, 0.0])[:, None, None]
    given[0] = (given[0].detach() * scales).requires_grad_()
    found = differentiated(net.training_form(), given, torch.ones(3, 8, DA))
    assert all(bool(values.isfinite().all()) for values in found.values())


def test_no_notice_is_taken_of_a_reduced_precision_outside():
    net = make(**SMALL)
    fast = net.training_form()
    x, c_noise, cond = (values.detach() for values in inputs(net, 2))
    expected = fast(x, c_noise, cond)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fast(x, c_noise, cond), expected)
        found = fast(x.bfloat16(), c_noise, cond.bfloat16())
    torch.testing.assert_close(found, expected, atol=0.2, rtol=0.1)


def test_second_derivatives_are_refused():
    """They would be wrong without a word: what C++ does is not recorded."""
    net = make(**SMALL)
    given = inputs(net, 2)
    out = net.training_form()(*given)
    (gradient,) = torch.autograd.grad(out.square().sum(), given[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_another_dtype_is_refused():
    net = make(**SMALL).double()
    with pytest.raises(ValueError, match=r"network is torch.float64 on cpu: .* torch.float32"):
        net.training_form()


@pytest.mark.parametrize(
    ("number", "shape", "message"),
    [
        (0, (2, 4, DA), r"x is \[2, 4, 3\] on cpu, the form for training needs \[2, 8, 3\]"),
        (1, (2, 4), r"noise is \[2, 4, 32\] on cpu, .* needs \[2, 8, 32\]"),
        (2, (3, C), r"cond is \[3, 1, 7\] on cpu, .* needs \[2, 1, 7\]"),
    ],
)
def test_another_shape_is_refused(number, shape, message):
    net = make(**SMALL)
    given = [values.detach() for values in inputs(net, 2)]
    given[number] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        net.training_form()(*given)


def test_what_is_needed_at_the_same_time_lies_apart():
    generator = torch.Generator().manual_seed(0)
    wishes = []
    for _ in range(60):
        begin, span, size = (int(torch.randint(1, 20, (), generator=generator)) for _ in range(3))
        wishes.append((("data", Value(1, 1)), size, Life(begin, begin + span)))
    places, end = placed(wishes)
    for time in range(50):
        pieces = [
            range(places[key], places[key] + size)
            for key, size, life in wishes
            if life.begin <= time <= life.end
        ]
        floats = [at for piece in pieces for at in piece]
        assert len(floats) == len(set(floats))
        assert max(floats, default=0) < end
    assert end < sum(size for _, size, _ in wishes)


def test_registers_of_other_machines_give_the_same(monkeypatch):
    """The code for narrower registers, which any x86 runs, is not what this machine would take."""
    net = make(**SMALL)
    given, d_out = inputs(net, 9), torch.randn(9, 8, DA)
    expected = differentiated(net.training_form(), given, d_out)
    narrow = ("-std=c++17", "-O2", "-fPIC", "-fno-math-errno")
    monkeypatch.setattr("policy.nets.compiled._flags", lambda: narrow)
    unet1d_training._library.cache_clear()
    try:
        found = differentiated(net.training_form(), given, d_out)
    finally:
        unet1d_training._library.cache_clear()
    for name, one in expected.items():
        scale = float(one.abs().max())
        assert float((found[name] - one).abs().max()) <= 1e-4 * scale + 3e-6, name
