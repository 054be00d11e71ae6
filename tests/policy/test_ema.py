"""The average against its closed form."""

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
