"""Noise on observations, and symmetries."""

import pytest
import torch

from data.augment import FeatureNoise, Mirror, SignedPermutation
from data.types import Batch, Contract, Field


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


SWAP = SignedPermutation(source=[1, 0], sign=[-1, 1], offset=[10, 0])


def test_a_signed_permutation_is_its_formula():
    x = torch.tensor([[[3.0, 5.0]]])
    assert SWAP(x).tolist() == [[[5.0, 3.0]]]  # 10 - 5 and 3
    assert SWAP(torch.tensor([7.0, 1.0])).tolist() == [9.0, 7.0]


def batch(n):
    state = torch.arange(n * 4.0).reshape(n, 2, 2)
    return Batch({"state": state}, state + 100, torch.zeros(n, 2, dtype=torch.bool))


def test_a_window_is_mirrored_as_a_whole_or_not_at_all():
    given = batch(1000)
    got = Mirror({"state": SWAP, "action": SWAP}, share=0.3)(given, generator())
    is_mirrored = (got.observation["state"] != given.observation["state"]).flatten(1).any(dim=1)
    for name, before, after in (
        ("state", given.observation["state"], got.observation["state"]),
        ("action", given.action, got.action),
    ):
        assert torch.equal(after[is_mirrored], SWAP(before[is_mirrored])), name
        assert torch.equal(after[~is_mirrored], before[~is_mirrored]), name
    # Four standard deviations of a binomial.
    assert abs(is_mirrored.float().mean() - 0.3) < 4 * (0.3 * 0.7 / 1000) ** 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (([0, 0], [1, 1], [0, 0]), "each element must come once"),
        (([0.0, 1.0], [1, 1], [0, 0]), "each element must come once"),
        (([0, 1], [1, 2], [0, 0]), "give 1 or -1"),
        (([0, 1], [1, 1], [0]), "one of each per element"),
    ],
)
def test_impossible_permutations_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SignedPermutation(*settings)


def test_impossible_mirrors_are_refused():
    with pytest.raises(ValueError, match="share is 2"):
        Mirror({}, share=2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"state": SWAP}, r"mirrors \['state'\], the demonstrations have \['action', 'state'\]"),
        ({"state": SWAP, "action": SWAP, "camera": SWAP}, "name each of them"),
        ({"state": SWAP, "action": SWAP}, r"'action' has 2 elements, the field has shape \(3,\)"),
    ],
)
def test_a_mirror_of_other_demonstrations_is_refused(fields, message):
    contract = Contract({"state": Field((2,))}, Field((3,)), 0.1)
    with pytest.raises(ValueError, match=message):
        Mirror(fields, share=0.5).check(contract)


def test_a_mirror_of_these_demonstrations_is_accepted():
    contract = Contract({"state": Field((2,))}, Field((2,)), 0.1)
    Mirror({"state": SWAP, "action": SWAP}, share=0.5).check(contract)
