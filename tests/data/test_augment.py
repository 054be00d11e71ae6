"""Noise on observations."""

import pytest
import torch

from data.augment import FeatureNoise


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_noise_has_the_given_standard_deviation_and_no_bias():
    features = {"state": torch.full((500, 2, 50), 3.0)}
    noise = FeatureNoise(0.1)(features, generator())["state"] - 3.0
    # 50,000 samples: the estimates scatter by 0.1 / sqrt(50,000) and 0.1 / sqrt(100,000).
    assert float(noise.mean()) == pytest.approx(0, abs=5 * 0.1 / 50_000**0.5)
    assert float(noise.std()) == pytest.approx(0.1, abs=5 * 0.1 / 100_000**0.5)


def test_the_steps_of_a_window_are_noised_independently():
    noise = FeatureNoise(1.0)({"state": torch.zeros(2000, 2, 5)}, generator())["state"]
    product = (noise[:, 0] * noise[:, 1]).mean()
    assert float(product) == pytest.approx(0, abs=5 / 10_000**0.5)


def test_images_and_zero_noise_change_nothing():
    image = torch.rand(2, 2, 4, 4, 3)
    assert torch.equal(FeatureNoise(0.5)({"image": image}, generator())["image"], image)
    state = torch.rand(2, 2, 3)
    assert torch.equal(FeatureNoise(0.0)({"state": state}, generator())["state"], state)


def test_a_negative_deviation_is_refused():
    with pytest.raises(ValueError, match="at least 0"):
        FeatureNoise(-0.1)
