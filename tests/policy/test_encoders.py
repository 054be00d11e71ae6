"""What a condition vector holds."""

import pytest
import torch

from policy.nets.encoders import StateEncoder

SHAPES = {"agent": (2,), "block": (4,)}


def test_condition_is_all_features_of_all_steps():
    encoder = StateEncoder(feature_shapes=SHAPES, obs_horizon=2)
    agent, block = torch.arange(4.0).view(1, 2, 2), torch.arange(10.0, 18.0).view(1, 2, 4)
    cond = encoder({"block": block, "agent": agent})
    assert encoder.cond_size == 12
    assert cond.tolist() == [[0, 1, 10, 11, 12, 13, 2, 3, 14, 15, 16, 17]]


def test_mlp_sets_the_size_of_the_condition():
    encoder = StateEncoder(feature_shapes=SHAPES, obs_horizon=3, hidden=7)
    cond = encoder({"agent": torch.zeros(5, 3, 2), "block": torch.zeros(5, 3, 4)})
    assert cond.shape == (5, 7)
    assert encoder.cond_size == 7


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="feature_shapes is empty"):
        StateEncoder(feature_shapes={}, obs_horizon=2)
    with pytest.raises(ValueError, match=r"\['camera'\] are images"):
        StateEncoder(feature_shapes={"camera": (96, 96, 3)}, obs_horizon=2)
    with pytest.raises(ValueError, match="hidden is 0"):
        StateEncoder(feature_shapes=SHAPES, obs_horizon=2, hidden=0)
