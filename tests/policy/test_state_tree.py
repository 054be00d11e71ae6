"""Nested state through safetensors and JSON."""

import json
import math

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from policy.state_tree import flatten, unflatten


def through_files(state):
    """The state after its way through safetensors and JSON."""
    tensors, rest = flatten(state)
    return unflatten(load(save(tensors)), json.loads(json.dumps(rest)))


def test_nested_state_comes_back_with_its_types():
    state = {
        "a": [1, 2.5, None, True, "text", math.inf],
        "betas": (0.9, 0.999),
        "by number": {0: torch.arange(3), 7: {"x": torch.tensor(1.5, dtype=torch.float64)}},
        "empty": {"list": [], "dict": {}, "tuple": ()},
        "$tensor": "not one",
        "tiny": 5e-324,
    }
    got = through_files(state)
    assert got.keys() == state.keys()
    for key in ("a", "betas", "empty", "$tensor", "tiny"):
        assert got[key] == state[key]
        assert type(got[key]) is type(state[key])
    assert torch.equal(got["by number"][0], torch.arange(3))
    assert got["by number"][7]["x"].dtype == torch.float64


def training_step(model, optimizer):
    loss = model(torch.linspace(-1, 1, 12).view(4, 3)).square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_adamw_goes_on_bit_for_bit():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.95, 0.999))
    for _ in range(3):
        training_step(model, optimizer)
    copy = nn.Linear(3, 2)
    resumed = torch.optim.AdamW(copy.parameters(), lr=1.0)
    state = through_files({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    copy.load_state_dict(state["model"])
    resumed.load_state_dict(state["optimizer"])
    for _ in range(3):
        training_step(model, optimizer)
        training_step(copy, resumed)
    assert torch.equal(model.weight, copy.weight)
    assert torch.equal(model.bias, copy.bias)


def test_generator_state_comes_back():
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    state = through_files({"generator": generator.get_state()})
    resumed = torch.Generator()
    resumed.set_state(state["generator"])
    assert torch.equal(torch.rand(5, generator=generator), torch.rand(5, generator=resumed))


def test_places_with_the_same_path_do_not_mix():
    state = {"a": {"b": torch.zeros(1)}, "a/b": torch.ones(1)}
    got = through_files(state)
    assert (got["a"]["b"].item(), got["a/b"].item()) == (0, 1)


def test_what_cannot_be_saved_is_named_with_its_place():
    with pytest.raises(TypeError, match=r"/a/1 is a set"):
        flatten({"a": [1, {2}]})
