"""Noise on observations, crops, and symmetries."""

import pytest
import torch

from data.augment import FeatureNoise, ImageSymmetry, Mirror, RandomCrop, SignedPermutation
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


def numbered(batch: int, steps: int, height: int, width: int) -> torch.Tensor:
    """Pictures [B, To, H, W, 3] whose channels are row, column and 100 x window + step."""
    image = torch.zeros(batch, steps, height, width, 3)
    image[..., 0] = torch.arange(height)[:, None]
    image[..., 1] = torch.arange(width)
    image[..., 2] = (100 * torch.arange(batch)[:, None] + torch.arange(steps))[..., None, None]
    return image


def test_a_crop_is_a_window_of_its_picture_and_the_same_in_all_steps():
    given = {"camera": numbered(50, 2, 7, 9), "state": torch.rand(50, 2, 3)}
    got = RandomCrop(5)(given, generator())
    assert torch.equal(got["state"], given["state"])
    for window, crop in enumerate(got["camera"]):
        top, left = int(crop[0, 0, 0, 0]), int(crop[0, 0, 0, 1])
        cut_out = given["camera"][window, :, top : top + 5, left : left + 5]
        assert torch.equal(crop, cut_out)


def test_every_place_of_a_crop_is_equally_likely():
    n = 6000
    crop = RandomCrop(5)({"camera": numbered(n, 1, 7, 6)}, generator())["camera"]
    for channel, n_places in ((0, 3), (1, 2)):  # rows 0..2, columns 0..1
        counts = torch.bincount(crop[:, 0, 0, 0, channel].long(), minlength=n_places)
        assert len(counts) == n_places
        # Five standard deviations of a binomial.
        spread = 5 * (n / n_places * (1 - 1 / n_places)) ** 0.5
        assert (counts - n / n_places).abs().max() < spread


def test_a_crop_of_the_whole_picture_changes_nothing():
    camera = numbered(3, 2, 6, 6)
    assert torch.equal(RandomCrop(6)({"camera": camera}, generator())["camera"], camera)


def test_impossible_crops_are_refused():
    with pytest.raises(ValueError, match="size is 0 px"):
        RandomCrop(0)
    with pytest.raises(ValueError, match="'camera' are 6 x 8 px, a crop of 7 px is wanted"):
        RandomCrop(7)({"camera": numbered(1, 1, 6, 8)}, generator())


def test_a_picture_is_flipped_first_and_transposed_then():
    picture = torch.tensor([[1, 2], [3, 4]])[..., None]  # [H, W, 1]

    def turned(**settings: bool) -> list:
        return ImageSymmetry(**settings)(picture)[..., 0].tolist()

    assert turned() == [[1, 2], [3, 4]]
    assert turned(flip_rows=True) == [[3, 4], [1, 2]]
    assert turned(flip_columns=True) == [[2, 1], [4, 3]]
    assert turned(transpose=True) == [[1, 3], [2, 4]]
    assert turned(flip_rows=True, flip_columns=True, transpose=True) == [[4, 2], [3, 1]]
    assert turned(flip_rows=True, transpose=True) == [[3, 1], [4, 2]]  # a quarter turn


def test_pictures_of_all_steps_are_mirrored():
    pictures = numbered(2, 3, 4, 4).byte()
    mirrored = ImageSymmetry(flip_columns=True)(pictures)
    assert mirrored.dtype == torch.uint8
    for window in range(2):
        for step in range(3):
            assert torch.equal(mirrored[window, step], pictures[window, step].flip(1))


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
        (
            {"state": SWAP, "action": SWAP},
            r"'action' is given a symmetry of 2 elements, the field has shape \(3,\)",
        ),
    ],
)
def test_a_mirror_of_other_demonstrations_is_refused(fields, message):
    contract = Contract({"state": Field((2,))}, Field((3,)), 0.1)
    with pytest.raises(ValueError, match=message):
        Mirror(fields, share=0.5).check(contract)


def test_a_mirror_of_pictures_that_are_not_square_is_refused():
    contract = Contract({"camera": Field((4, 6, 3), dtype="uint8")}, Field((2,)), 0.1)
    with pytest.raises(ValueError, match=r"symmetry of \(square\) pictures.*shape \(4, 6, 3\)"):
        Mirror({"camera": ImageSymmetry(transpose=True), "action": SWAP}, share=0.5).check(contract)
    Mirror({"camera": ImageSymmetry(flip_rows=True), "action": SWAP}, share=0.5).check(contract)


def test_a_mirror_of_these_demonstrations_is_accepted():
    contract = Contract({"state": Field((2,))}, Field((2,)), 0.1)
    Mirror({"state": SWAP, "action": SWAP}, share=0.5).check(contract)
