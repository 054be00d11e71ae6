"""What a sampler is told of the chunks that it draws."""

import pytest

from data.types import Horizons
from policy.types import ChunkSpace

HORIZONS = Horizons(obs=1, pred=8, action=4)


@pytest.mark.parametrize("discrete", [(-1,), (0, 2), (7,)])
def test_discrete_elements_that_an_action_does_not_have_are_refused(discrete):
    with pytest.raises(ValueError, match=rf"discrete holds \[{discrete[-1]}\], .* give 0 to 1"):
        ChunkSpace(HORIZONS, action_size=2, discrete=discrete)
    assert ChunkSpace(HORIZONS, action_size=2, discrete=(0, 1)).discrete == (0, 1)


@pytest.mark.parametrize("sigma", [0.0099, 20.1, float("nan")])
def test_start_outside_of_the_trained_levels_is_refused(sigma):
    space = ChunkSpace(HORIZONS, action_size=2, sigma_min=0.01, sigma_max=20.0)
    with pytest.raises(ValueError, match=f"it starts at sigma {sigma:g}, .* 0.01 to 20"):
        space.check_start(sigma, name="it")


@pytest.mark.parametrize("sigma", [0.0099, 0.0, float("nan")])
def test_end_below_the_trained_levels_is_refused(sigma):
    space = ChunkSpace(HORIZONS, action_size=2, sigma_min=0.01, sigma_max=20.0)
    with pytest.raises(ValueError, match=f"sigma {sigma:g}, .* 0.01 to 20: give last=0.01 or more"):
        space.check_end(sigma, setting="last")


def test_rounding_of_a_level_is_allowed():
    """By float32 (6e-8) and by six printed digits (5e-6)."""
    space = ChunkSpace(HORIZONS, action_size=2, sigma_min=0.0251234567, sigma_max=20.0)
    space.check_start(20.00001, name="it")
    for sigma in (0.0251234, 0.0251234567 * (1 - 6e-8)):
        space.check_start(sigma, name="it")
        space.check_end(sigma, setting="last")
