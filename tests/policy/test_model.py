"""The policy with a network that is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from data.normalize import Normalizer
from data.types import Contract, Field, Horizons
from policy.diffusion.precond import EDM
from policy.model import DiffusionPolicy
from policy.nets.encoders import StateEncoder

HORIZONS = Horizons(obs=2, pred=4, action=2)
CONTRACT = Contract(
    observation={
        "position": Field(shape=(2,), unit="m"),
        "angle": Field(shape=(1,), unit="rad", angles=(0,)),
    },
    action=Field(shape=(2,), unit="m"),
    control_dt=0.1,
)
ARRAYS = {
    "position": np.array([[0.0, 0.0], [10.0, 20.0]], dtype=np.float32),
    "angle": np.zeros((2, 1), dtype=np.float32),
    "action": np.array([[0.0, -1.0], [4.0, 1.0]], dtype=np.float32),
}


class Recorder(nn.Module):
    """A network that keeps its inputs and returns a constant."""

    def forward(self, x, c_noise, cond):
        self.inputs = (x, c_noise, cond)
        return torch.full_like(x, 0.5)


@pytest.fixture
def policy():
    normalizer = Normalizer.fit(CONTRACT, ARRAYS)
    encoder = StateEncoder(feature_shapes={"position": (2,), "angle": (2,)}, obs_horizon=2)
    return DiffusionPolicy(encoder, Recorder(), EDM(0.5), normalizer, CONTRACT, HORIZONS)


def observation(batch=3):
    return {"position": torch.zeros(batch, 2, 2), "angle": torch.zeros(batch, 2, 1)}


def test_prediction_is_the_preconditioned_network(policy):
    x = torch.ones(1, 4, 2)
    sigma = torch.tensor([[0.0, 0.5, 1.0, 2.0]])
    x0_hat = policy(x, sigma, torch.zeros(1, 8))
    for i, s in enumerate(sigma[0].tolist()):
        total = s**2 + 0.25  # table 1 of Karras et al., sigma_data 0.5
        expected = 0.25 / total + s * 0.5 / math.sqrt(total) * 0.5
        assert x0_hat[0, i, 0].item() == pytest.approx(expected)
        assert policy.net.inputs[0][0, i, 0].item() == pytest.approx(1 / math.sqrt(total))
    assert policy.net.inputs[1].shape == (1, 4)


def test_observation_is_normalised_and_encoded(policy):
    cond = policy.encode(
        {
            "position": torch.tensor([[[0.0, 0.0], [10.0, 10.0]]]),
            "angle": torch.tensor([[[0.0], [math.pi / 2]]]),
            "unused": torch.zeros(1),
        }
    )
    # Limits 0..10 and 0..20 to -1..1; an angle as cosine and sine; oldest step first.
    torch.testing.assert_close(
        cond, torch.tensor([[-1.0, -1, 1, 0, 1, 0, 0, 1]]), rtol=0, atol=1e-6
    )


def test_actions_go_to_the_networks_scale_and_back(policy):
    actions = torch.tensor([[[0.0, -1.0], [4.0, 1.0], [2.0, 0.0], [1.0, 0.5]]])
    x = policy.chunk(actions)
    torch.testing.assert_close(x, torch.tensor([[[-1.0, -1], [1, 1], [0, 0], [-0.5, 0.5]]]))
    torch.testing.assert_close(policy.actions(x), actions)


def test_missing_field_is_named_with_those_given(policy):
    with pytest.raises(KeyError, match=r"lacks 'angle'.*\['angle', 'position'\].*\['position'\]"):
        policy.encode({"position": torch.zeros(1, 2, 2)})


def test_wrong_number_of_steps_is_named(policy):
    with pytest.raises(ValueError, match=r"'position' has shape \(3, 5, 2\).*\[batch, 2, 2\]"):
        policy.encode({**observation(), "position": torch.zeros(3, 5, 2)})
    with pytest.raises(ValueError, match=r"'angle' has shape \(3, 2\)"):
        policy.encode({**observation(), "angle": torch.zeros(3, 2)})
