"""Limits come from the contract or the caller, are checked, and tell what they lack."""

import math

import numpy as np
import pytest

from data.types import Field
from policy.control.limits import Limits

INF = math.inf
DT = 0.1
ARM = Field(shape=(3,), unit="rad", low=(-1, -2, 0), high=(1, 2, 1), discrete=(2,))


def test_positions_are_limited_by_the_contract():
    limits = Limits.of(ARM, DT, velocity=2.0, acceleration=(3.0, 4.0, 5.0), jerk=[6.0])
    assert limits.low.tolist() == [-1, -2, 0]
    assert limits.high.tolist() == [1, 2, 1]
    # The gripper is not limited in rate.
    assert limits.velocity.tolist() == [2, 2, INF]
    assert limits.acceleration.tolist() == [3, 4, INF]
    assert limits.jerk.tolist() == [6, 6, INF]
    assert limits.is_complete


def test_what_is_given_replaces_the_contract():
    limits = Limits.of(ARM, DT, low=-0.5, high=np.array([0.5, 0.6, 0.7]))
    assert limits.low.tolist() == [-0.5] * 3
    assert limits.high.tolist() == [0.5, 0.6, 0.7]


def test_what_nobody_gives_is_no_limit_and_said_to_be_missing():
    limits = Limits.of(Field(shape=(2,), low=(0, 0), high=(1, 1)), DT, velocity=(1, INF), jerk=1)
    assert not limits.is_complete
    assert limits.missing() == (
        "velocity of element 1",
        "acceleration of element 0",
        "acceleration of element 1",
    )
    assert limits.limits_motion
    assert not Limits.of(ARM, DT).limits_motion


def test_changes_are_limited_in_velocity_by_the_contract():
    field = Field(shape=(2,), kind="delta", low=(-0.2, 0), high=(0.1, 1), discrete=(1,))
    limits = Limits.of(field, DT)
    # The narrower side, 0.1 a tick, is 1 a second; the gripper's own limits stay.
    assert limits.velocity.tolist() == pytest.approx([1.0, INF])
    assert limits.low.tolist() == [-INF, 0]
    assert limits.high.tolist() == [INF, 1]
    assert Limits.of(field, DT, velocity=0.3).velocity[0] == 0.3
    assert Limits.of(field, DT, velocity=3.0).velocity[0] == pytest.approx(1.0)
    placed = Limits.of(field, DT, low=(-3, 0), high=(3, 1), acceleration=1, jerk=1)
    assert placed.is_complete


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"velocity": 0.0}, "velocity is .*positive"),
        ({"jerk": (1, -1, 1)}, "jerk is .*positive"),
        ({"acceleration": (1, 2)}, "acceleration has shape .* 3 elements"),
        ({"low": math.nan}, "NaN limits nothing, write inf"),
        ({"low": 1.0}, "element 0 is limited to 1 to 1: low must be below high"),
        ({"low": (-1, -2, 2)}, "element 2 is limited to 2 to 1"),
    ],
)
def test_wrong_limits_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        Limits.of(ARM, DT, **settings)


@pytest.mark.parametrize("dt", [0.0, -1.0, math.nan, INF])
def test_a_period_that_is_none_is_refused(dt):
    with pytest.raises(ValueError, match="control_dt is"):
        Limits.of(ARM, dt)


def test_changes_that_cannot_be_zero_are_refused():
    field = Field(shape=(1,), kind="delta", low=(0.0,), high=(1.0,))
    with pytest.raises(ValueError, match="both sides of 0"):
        Limits.of(field, DT)
