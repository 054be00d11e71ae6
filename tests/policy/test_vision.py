"""Trunks: what a spatial softmax gives, sizes of published networks, features of a picture."""

import pytest
import torch
from torch import nn

from policy.nets.vision import (
    ResNet18,
    SmallCNN,
    SpatialSoftmax,
    expected_position,
    group_norm,
    pixel_centers,
)


def n_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_pixel_centers_fill_the_picture():
    # Four pixels of width 1/2 between -1 and 1.
    assert pixel_centers(4, like=torch.zeros(1)).tolist() == [-0.75, -0.25, 0.25, 0.75]


def test_a_sharp_score_is_found_where_it_is():
    scores = torch.zeros(1, 2, 4, 8)
    scores[0, 0, 3, 1] = 1e4  # the last of 4 rows, the second of 8 columns
    scores[0, 1, 0, 7] = 1e4
    (position,) = expected_position(scores)
    assert position.tolist() == [-1 + 3 / 8, 1 - 1 / 8, 1 - 1 / 4, -1 + 1 / 4]  # x x y y


def test_two_equal_scores_give_the_middle_between_them():
    scores = torch.full((1, 1, 2, 2), -1e4)
    scores[0, 0, 0, 0] = scores[0, 0, 0, 1] = 0.0
    assert expected_position(scores).tolist() == [[0.0, -0.5]]


def test_positions_follow_the_picture_by_less_than_a_pixel():
    """A blob that moves by a tenth of a pixel moves the position by as much."""
    centers = pixel_centers(24, like=torch.zeros(1, dtype=torch.float64))

    def blob(x: float) -> torch.Tensor:
        distance = (centers[None, :] - x).square() + (centers[:, None] - 0.1).square()
        return (-distance / 0.02)[None, None]

    moved = expected_position(blob(0.2 + 0.1 / 12)) - expected_position(blob(0.2))
    # The blob's sum over pixels differs from its integral by far less than a thousandth.
    torch.testing.assert_close(
        moved[0], torch.tensor([0.1 / 12, 0.0], dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_positions_stay_in_full_precision_where_all_else_is_in_half():
    torch.manual_seed(0)
    softmax, h = SpatialSoftmax(4, 3), torch.randn(2, 4, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = softmax(h)
    assert half.dtype == torch.float32
    assert torch.equal(half, softmax(h))


def test_a_norm_has_groups_of_16_channels():
    assert [group_norm(n).num_groups for n in (8, 16, 64)] == [1, 1, 4]
    with pytest.raises(ValueError, match="24 channels, a group norm needs a multiple of 16"):
        group_norm(24)


def test_size_of_resnet18():
    stem = 3 * 64 * 7 * 7 + 2 * 64
    stage1 = 4 * (64 * 64 * 9 + 2 * 64)
    stages = sum(
        # First convolution, three more, the skip connection, five norms.
        (c // 2 * c * 9) + 3 * (c * c * 9) + (c // 2 * c) + 5 * 2 * c
        for c in (128, 256, 512)
    )
    assert stem + stage1 + stages == 11_176_512  # as published, without its classifier
    head = 512 * 32 + 32 + 2 * (2 * 32 + 512)  # scores, normalisation
    trunk = ResNet18(image_shape=(96, 96, 3), n_keypoints=32)
    assert n_parameters(trunk) == stem + stage1 + stages + head
    assert trunk.feature_size == 2 * 32 + 512


def test_size_of_the_small_cnn():
    layers = 3 * 16 * 25 + 16 * 32 * 9 + 32 * 64 * 9 + 64 * 64 * 9
    norms = 2 * (16 + 32 + 64 + 64)
    trunk = SmallCNN(image_shape=(96, 96, 3), channels=(16, 32, 64, 64), n_keypoints=32)
    head = 64 * 32 + 32 + 2 * (2 * 32 + 64)  # scores, normalisation
    assert n_parameters(trunk) == layers + norms + head
    assert trunk.feature_size == 2 * 32 + 64


def test_the_small_cnn_keeps_a_quarter_of_the_resolution():
    trunk = SmallCNN(image_shape=(96, 88, 3))
    assert trunk.layers(torch.zeros(1, 3, 96, 88)).shape[-2:] == (24, 22)


@pytest.mark.parametrize("make", [SmallCNN, ResNet18])
@torch.no_grad()
def test_features_of_a_picture_do_not_depend_on_the_others_nor_on_training(make):
    torch.manual_seed(0)
    trunk, images = make(image_shape=(40, 32, 3)), torch.rand(3, 40, 32, 3) * 2 - 1
    together = trunk.train()(images)
    assert together.shape == (3, trunk.feature_size)
    assert torch.isfinite(together).all()
    # Batches of another size are summed in another order.
    torch.testing.assert_close(trunk.eval()(images[1:2])[0], together[1], atol=1e-4, rtol=1e-4)
    assert not any(True for _ in trunk.buffers())  # nothing that an average of weights would miss


@pytest.mark.parametrize("make", [SmallCNN, ResNet18])
def test_all_weights_of_a_trunk_learn(make):
    torch.manual_seed(0)
    trunk = make(image_shape=(64, 64, 3))
    trunk(torch.rand(2, 64, 64, 3)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trunk.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": (), "strides": ()}, "at least one"),
        ({"channels": (16, 32), "strides": (2,)}, "channels has 2 entries and strides 1"),
        ({"channels": (16,), "strides": (0,)}, r"strides are \[0\]"),
        ({"channels": (16,), "strides": (16,)}, "8 x 8 px, this network needs at least 16 x 16"),
        ({"n_keypoints": 0}, "n_keypoints is 0"),
    ],
)
def test_impossible_trunks_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SmallCNN(image_shape=(8, 8, 3), **settings)


def test_a_picture_too_small_for_resnet18_is_refused():
    with pytest.raises(ValueError, match=r"16 x 64 px, this network needs at least 32 x 32"):
        ResNet18(image_shape=(16, 64, 3))
