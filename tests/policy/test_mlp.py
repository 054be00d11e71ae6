"""The residual MLP: its sizes, and what it predicts before it is trained."""

import pytest
import torch

from policy.nets.mlp import ResidualMLP


def make(**settings):
    return ResidualMLP(action_size=3, cond_size=5, pred_horizon=4, **settings)


def test_weights_are_those_of_its_layers():
    net = make(size=16, n_blocks=2, expansion=3, noise_embed_size=8)
    first = (4 * (3 + 8) + 5) * 16 + 16
    block = 2 * 16 + (16 * 48 + 48) + (48 * 16 + 16)
    last = 2 * 16 + 16 * 12 + 12
    embed = (8 * 32 + 32) + (32 * 8 + 8)
    assert sum(p.numel() for p in net.parameters()) == first + 2 * block + last + embed


def test_untrained_it_predicts_nothing():
    assert not make()(torch.randn(2, 4, 3), torch.rand(2, 4), torch.randn(2, 5)).any()


@pytest.mark.parametrize("name", ["size", "n_blocks", "expansion"])
def test_a_size_that_is_no_whole_number_from_1_on_is_refused(name):
    for value in (0, 1.5):
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            make(**{name: value})
