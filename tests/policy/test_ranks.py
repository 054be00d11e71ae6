"""What several processes sum: here two that hold the same."""

import pytest
import torch
from torch import nn

from policy import ranks
from policy.ranks import Ranks


@pytest.fixture
def twins(monkeypatch):
    def all_reduce(tensor):
        tensor.mul_(2)

    monkeypatch.setattr(ranks.dist, "all_reduce", all_reduce)
    return Ranks(rank=0, size=2)


def test_gradients_are_summed_and_one_that_nobody_has_stays_away(twins):
    used, unused = (nn.Linear(2, 1, bias=False) for _ in range(2))
    used(torch.tensor([[3.0, 4.0]])).sum().backward()
    place = used.weight.grad
    twins.sum_gradients(nn.ModuleList([used, unused]))
    assert place is not None
    assert place.tolist() == [[6, 8]]
    assert used.weight.grad is place
    # An optimiser would make a step of zeros: it shrinks weights and moves by its momentum.
    assert unused.weight.grad is None


def test_a_gradient_that_only_another_rank_has_is_taken(monkeypatch):
    def all_reduce(tensor):
        tensor.add_(torch.arange(1, 1 + tensor.numel()) if tensor.is_floating_point() else 1)

    monkeypatch.setattr(ranks.dist, "all_reduce", all_reduce)
    module = nn.Linear(2, 1, bias=False)
    Ranks(rank=0, size=2).sum_gradients(module)
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == [[1, 2]]


def test_one_process_alone_changes_nothing():
    module = nn.Linear(2, 1)
    Ranks().sum_gradients(module)
    assert module.weight.grad is None
