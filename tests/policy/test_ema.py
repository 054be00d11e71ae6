"""The average against its closed form."""

import copy

import pytest
import torch
from torch import nn

from policy.ema import EMA


def weight_of(ema):
    return ema.module.get_parameter("weight")


def set_weight(model, value):
    with torch.no_grad():
        model.weight.fill_(value)


def test_average_is_the_closed_form():
    """w_n = sum_i (1 - d_i) prod_{j > i} d_j theta_i, with d_s = clip(1 - (1 + s)^-p, 0, cap)."""
    model = nn.Linear(1, 1, bias=False).double()
    set_weight(model, 100.0)
    ema = EMA(model, power=0.5, max_decay=0.6)
    thetas = [1.0, -2.0, 5.0, 0.5, 3.0, 8.0, 1.5, -1.0, 2.0, 4.0]
    for theta in thetas:
        set_weight(model, theta)
        ema.update(model)
    decays = [min(1 - (1 + s) ** -0.5, 0.6) for s in range(len(thetas))]
    expected = 0.0
    for i, theta in enumerate(thetas):
        share = 1 - decays[i]
        for later in decays[i + 1 :]:
            share *= later
        expected += share * theta
    assert weight_of(ema).item() == pytest.approx(expected)


def test_schedule_grows_to_the_cap():
    ema = EMA(nn.Linear(1, 1))
    assert ema.decay(0) == 0
    assert ema.decay(15) == pytest.approx(1 - 1 / 8)
    assert ema.decay(9_000) == pytest.approx(1 - 9001**-0.75)
    assert ema.decay(10**6) == 0.999


def test_first_update_copies_and_the_model_is_left_alone():
    model = nn.Linear(2, 3)
    ema = EMA(model)
    set_weight(model, 0.25)
    before = model.weight.detach().clone()
    ema.update(model)
    assert torch.equal(weight_of(ema), model.weight)
    assert torch.equal(model.weight, before)
    set_weight(model, 1.0)
    assert torch.equal(weight_of(ema), before)


def test_buffers_are_copied():
    model = nn.BatchNorm1d(2)
    ema = EMA(model)
    model(torch.randn(8, 2))
    ema.update(model)
    for name, buffer in model.named_buffers():
        assert torch.equal(ema.module.get_buffer(name), buffer)


def test_average_is_for_evaluation():
    ema = EMA(nn.Sequential(nn.Linear(1, 1), nn.Dropout()))
    assert not ema.module.training
    assert not any(p.requires_grad for p in ema.module.parameters())


def test_state_goes_on_bit_for_bit():
    model = nn.Linear(3, 3)
    ema, resumed = EMA(model), EMA(nn.Linear(3, 3))
    ema.update(model)
    set_weight(model, 0.3)
    ema.update(model)
    resumed.load_state_dict(ema.state_dict())
    for value in (0.7, 0.1):
        set_weight(model, value)
        ema.update(model)
        resumed.update(model)
    assert torch.equal(weight_of(ema), weight_of(resumed))
    assert resumed.step_count == 4


def test_impossible_schedules_are_refused():
    with pytest.raises(ValueError, match="power is 0"):
        EMA(nn.Linear(1, 1), power=0)
    with pytest.raises(ValueError, match=r"max_decay is 1\.0"):
        EMA(nn.Linear(1, 1), max_decay=1.0)


def test_copies_of_both_and_other_models_are_followed_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    ema = EMA(model, power=0.5)
    copied, of_copied = copy.deepcopy((model, ema))
    stranger, of_stranger = copy.deepcopy(model), copy.deepcopy(ema)
    others = ((copied, of_copied), (stranger, of_stranger))
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        model(torch.randn(8, 3))
        ema.update(model)
        for other, its_ema in others:
            other.load_state_dict(model.state_dict())
            its_ema.update(other)
    for _, its_ema in others:
        for name, values in its_ema.module.state_dict().items():
            assert torch.equal(values, ema.module.state_dict()[name])
    assert not any(
        torch.equal(a, b) for a, b in zip(*map(weights, (ema.module, model)), strict=True)
    )


def weights(module):
    return list(module.parameters())


def test_buffers_that_were_made_anew_are_copied():
    model = nn.BatchNorm1d(2)
    ema = EMA(model)
    model.running_mean = torch.tensor([3.0, 4.0])
    ema.update(model)
    assert ema.module.get_buffer("running_mean").tolist() == [3.0, 4.0]


def test_a_model_stays_what_it_was_when_it_is_followed():
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    before, parameters = copy.deepcopy(model.state_dict()), list(model.parameters())
    EMA(model)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(torch.equal(before[name], values) for name, values in model.state_dict().items())


def test_weights_of_several_kinds_are_followed_too():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    ema = EMA(model)
    ema.update(model)
    for one, other in zip(ema.module.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
