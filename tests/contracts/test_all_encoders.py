"""What every encoder of configs/encoder does; a new one is tested by its YAML alone."""

from functools import cache
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from policy.entry import compose_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "encoder"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
B, TO = 3, 2
STATES = {"agent": (3,), "goal": (2,)}
PICTURE = {"camera": (32, 32, 3)}


@cache
def built(name):
    """The encoder, in evaluation, and the fields that it was built for: pictures if it can."""
    torch.manual_seed(0)
    make = instantiate(compose_config("train", [f"encoder={name}"]).encoder)
    shapes = {**STATES, **PICTURE} if takes_pictures(make) else STATES
    return make(feature_shapes=shapes, obs_horizon=TO).eval(), shapes


def takes_pictures(make):
    try:
        make(feature_shapes={**STATES, **PICTURE}, obs_horizon=TO)
    except ValueError:  # Which of them do is told by tests of their own.
        return False
    return True


def features(shapes, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 2 * torch.rand(B, TO, *shape, generator=generator) - 1
        for name, shape in shapes.items()
    }


def test_there_are_encoders():
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_its_size_is_that_of_its_conditions(name):
    encoder, shapes = built(name)
    cond = encoder(features(shapes))
    assert cond.shape == (B, encoder.cond_size)
    assert cond.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_every_field_matters(name):
    encoder, shapes = built(name)
    given, others = features(shapes), features(shapes, seed=2)
    cond = encoder(given)
    for field in shapes:
        changed = encoder({**given, field: others[field]})
        assert (changed != cond).any(dim=1).all(), field


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite(name):
    encoder, shapes = built(name)
    given = {field: values.requires_grad_() for field, values in features(shapes).items()}
    encoder.zero_grad()
    encoder(given).square().sum().backward()
    inputs, weights = given.values(), dict(encoder.named_parameters())
    weights.pop("no_goal", None)  # Used where the goal is left out.
    for tensor in (*inputs, *weights.values()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_samples_do_not_influence_each_other(name):
    encoder, shapes = built(name)
    given, others = features(shapes), features(shapes, seed=2)
    mixed = {field: torch.cat([given[field][:1], others[field][1:]]) for field in shapes}
    together, changed = encoder(given), encoder(mixed)
    torch.testing.assert_close(together[0], changed[0], rtol=0, atol=1e-5)
    assert not torch.equal(together[1:], changed[1:])
