"""What the condition tells of a goal, and that a dropped goal is dropped whole."""

from functools import partial

import pytest
import torch

from policy.nets.encoders import StateEncoder
from policy.nets.goal_encoder import GoalEncoder

SHAPES = {"agent": (2,), "goal": (3,), "block": (4,), "task": (5,)}
N = 4000


def make(**settings):
    torch.manual_seed(0)
    values = {"goals": ["goal", "task"], "size": 6, "dropout": 0.25, **settings}
    base = partial(StateEncoder, hidden=None)
    encoder = GoalEncoder(feature_shapes=SHAPES, obs_horizon=2, base=base, **values)
    torch.nn.init.normal_(encoder.no_goal)
    return encoder


def features(batch=N):
    generator = torch.Generator().manual_seed(1)
    return {n: torch.randn(batch, 2, *s, generator=generator) for n, s in SHAPES.items()}


def test_the_condition_is_that_of_the_other_fields_and_the_goal_beside_it():
    encoder, given = make().eval(), features(5)
    others = {name: SHAPES[name] for name in ("agent", "block")}
    alone = StateEncoder(feature_shapes=others, obs_horizon=2)(given)
    cond = encoder(given)
    assert cond.shape == (5, encoder.cond_size)
    assert encoder.cond_size == alone.shape[1] + 6
    assert torch.equal(cond[:, :-6], alone)


def test_the_last_step_of_the_goal_is_looked_at():
    encoder, given = make().eval(), features(5)
    cond = encoder(given)
    earlier = {**given, "goal": given["goal"].clone()}
    earlier["goal"][:, 0] += 1
    assert torch.equal(encoder(earlier), cond)
    for name in ("goal", "task"):
        later = {**given, name: given[name].clone()}
        later[name][:, -1] += 1
        assert (encoder(later)[:, -6:] != cond[:, -6:]).all(dim=1).all()


def test_in_training_whole_goals_are_dropped_at_the_given_rate():
    encoder, given = make(), features()
    goal = encoder.eval()(given)[:, -6:]
    encoder.train()
    torch.manual_seed(2)
    trained = encoder(given)[:, -6:]
    is_kept = (trained == goal).all(dim=1)
    is_none = (trained == encoder.no_goal).all(dim=1)
    assert (is_kept ^ is_none).all()  # never a mixture of both
    spread = (0.25 * 0.75 / N) ** 0.5
    assert abs(is_none.float().mean().item() - 0.25) < 4 * spread


def test_nothing_is_dropped_in_evaluation_or_at_rate_0():
    given = features()
    encoder = make().eval()
    assert torch.equal(encoder(given), encoder(given))
    encoder = make(dropout=0.0)
    assert torch.equal(encoder.train()(given), encoder.eval()(given))


def test_dropping_follows_torchs_generator():
    encoder, given = make().train(), features()
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(encoder(given))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_what_stands_for_no_goal_is_learned_from_the_dropped_alone():
    encoder = make(dropout=0.999).train()
    encoder(features()).sum().backward()
    assert encoder.no_goal.grad is not None
    assert (encoder.no_goal.grad > 0.9 * N).all()
    encoder = make(dropout=0.0).train()
    encoder(features()).sum().backward()
    assert encoder.no_goal.grad is None


def test_without_goal_no_goal_makes_a_difference_and_all_else_does():
    encoder, given = make().eval(), features(5)
    free = encoder.without_goal(encoder(given))
    other_goal = {**given, "goal": given["goal"] + 1, "task": given["task"] - 1}
    assert torch.equal(encoder.without_goal(encoder(other_goal)), free)
    assert torch.equal(free[:, -6:], encoder.no_goal.expand(5, -1))
    assert torch.equal(free[:, :-6], encoder(given)[:, :-6])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"goals": ["aim"]}, r"goals is \['aim'\], the fields are \['agent', 'block', 'goal', 'ta"),
        ({"goals": []}, r"goals is \[\]"),
        ({"goals": "goal"}, r"goals is 'goal', it must be a list: encoder\.goals=\[goal\]"),
        ({"goals": list(SHAPES)}, "feature_shapes is empty"),
        ({"size": 0}, "size is 0"),
        ({"dropout": 1.0}, r"dropout is 1.0, it must be in \[0, 1\)"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_an_image_is_refused_as_a_goal():
    with pytest.raises(ValueError, match=r"\['camera'\] are images.* some of \['agent'\]"):
        GoalEncoder(
            feature_shapes={"agent": (2,), "camera": (96, 96, 3)},
            obs_horizon=2,
            base=StateEncoder,
            goals=["camera"],
            size=4,
            dropout=0.1,
        )
