"""The condition of pictures and states: crops, cached frames, what is refused."""

from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from data.augment import RandomCrop
from data.normalize import Normalizer
from data.types import Contract, Field, Horizons
from policy.diffusion.precond import Preconditioning
from policy.model import DiffusionPolicy
from policy.nets.image_encoder import ImageEncoder
from policy.nets.vision import SmallCNN

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "encoder"
SHAPES = {"wrist": (20, 24, 3), "agent": (2,), "front": (16, 16, 1), "gripper": (1,)}
small = partial(SmallCNN, channels=(16, 16), strides=(2, 2), n_keypoints=4)


class Pixels(nn.Module):
    """A trunk whose features are the picture."""

    def __init__(self, *, image_shape: tuple[int, int, int]):
        super().__init__()
        self.feature_size = image_shape[0] * image_shape[1] * image_shape[2]

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def features(batch: int = 3, steps: int = 2, shapes=SHAPES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {k: torch.rand(batch, steps, *s, generator=generator) for k, s in shapes.items()}


def test_condition_is_all_cameras_and_states_of_all_steps():
    encoder = ImageEncoder(feature_shapes=SHAPES, obs_horizon=2, trunk=Pixels)
    given = features()
    cond = encoder(given)
    frame = 20 * 24 * 3 + 16 * 16 * 1 + 2 + 1
    assert encoder.cond_size == cond.shape[1] == 2 * frame
    wanted = [given[name][:, step].flatten(1) for step in range(2) for name in order()]
    assert torch.equal(cond, torch.cat(wanted, dim=1))


def order() -> list[str]:
    """Cameras first, both in the order in which they are given."""
    return ["wrist", "front", "agent", "gripper"]


@torch.no_grad()
def test_kept_features_of_older_frames_give_the_same_condition():
    torch.manual_seed(0)
    encoder = ImageEncoder(feature_shapes=SHAPES, obs_horizon=3, trunk=small, crop=16, hidden=8)
    given = features(steps=5)
    kept = encoder.frames({k: v[:, :2] for k, v in given.items()})  # frames 0 and 1
    for now in range(2, 5):
        newest = encoder.frames({k: v[:, now : now + 1] for k, v in given.items()})
        kept = torch.cat([kept, newest], dim=1)[:, -3:]
        whole = encoder({k: v[:, now - 2 : now + 1] for k, v in given.items()})
        # Batches of another size are summed in another order.
        torch.testing.assert_close(encoder.fuse(kept), whole, atol=1e-5, rtol=1e-5)


def test_each_camera_has_weights_of_its_own():
    shapes = {"left": (16, 16, 3), "right": (16, 16, 3)}
    encoder = ImageEncoder(feature_shapes=shapes, obs_horizon=1, trunk=small)
    one = ImageEncoder(feature_shapes={"left": (16, 16, 3)}, obs_horizon=1, trunk=small)
    n, n_of_one = (sum(p.numel() for p in e.parameters()) for e in (encoder, one))
    assert n == 2 * n_of_one


def test_a_whole_picture_is_seen_by_its_centre():
    shapes = {"camera": (6, 8, 1)}
    encoder = ImageEncoder(feature_shapes=shapes, obs_horizon=1, trunk=Pixels, crop=4)
    whole = features(shapes=shapes, steps=1)["camera"]
    centre = whole[:, :, 1:5, 2:6]
    assert torch.equal(encoder({"camera": whole}), centre.flatten(1))
    assert torch.equal(encoder({"camera": centre}), centre.flatten(1))


def test_a_random_crop_of_training_is_taken_as_it_is():
    shapes = {"camera": (12, 10, 3)}
    encoder = ImageEncoder(feature_shapes=shapes, obs_horizon=2, trunk=Pixels, crop=8)
    cropped = RandomCrop(8)(features(shapes=shapes), torch.Generator().manual_seed(0))
    assert torch.equal(encoder(cropped), cropped["camera"].flatten(1))


def test_a_picture_of_another_size_is_refused():
    encoder = ImageEncoder(
        feature_shapes={"camera": (96, 96, 3)}, obs_horizon=1, trunk=Pixels, crop=84
    )
    with pytest.raises(ValueError, match=r"\(64, 64, 3\).*built for \(96, 96, 3\), cropped to"):
        encoder({"camera": torch.zeros(1, 1, 64, 64, 3)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_shapes": {"agent": (2,)}}, "no field is a picture.*use encoder=state"),
        ({"feature_shapes": {"grid": (4, 4), **SHAPES}}, r"'grid' has shape \(4, 4\)"),
        ({"crop": 17}, "crop is 17, the pictures of 'front' are 16 x 16 px: set it to 1..16"),
        ({"crop": 0}, "crop is 0"),
        ({"hidden": 0}, "hidden is 0"),
    ],
)
def test_impossible_encoders_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageEncoder(**{"feature_shapes": SHAPES, "obs_horizon": 1, "trunk": small, **settings})


@pytest.mark.parametrize("name", ["small_cnn", "resnet18"])
def test_the_configured_encoders_are_built_for_given_shapes(name):
    make = instantiate(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    encoder = make(feature_shapes={"camera": (48, 48, 3), "agent": (2,)}, obs_horizon=2)
    cond = encoder({k: torch.zeros(1, 2, *shape) for k, shape in encoder.shapes.items()})
    assert cond.shape == (1, encoder.cond_size)


def policy_of_pictures() -> DiffusionPolicy:
    contract = Contract({"camera": Field((16, 16, 3), dtype="uint8")}, Field((2,)), 0.1)
    normalizer = Normalizer.fit(contract, {"action": torch.zeros(1, 2).numpy()})
    encoder = ImageEncoder(feature_shapes={"camera": (16, 16, 3)}, obs_horizon=1, trunk=Pixels)
    horizons = Horizons(obs=1, pred=4, action=2)
    return DiffusionPolicy(encoder, nn.Identity(), edm(), normalizer, contract, horizons)


def edm() -> Preconditioning:
    return instantiate(OmegaConf.load(CONFIGS.parent / "precond" / "edm.yaml"))


def test_bytes_are_seen_as_minus_one_to_one():
    bytes_of_picture = torch.tensor([0, 255], dtype=torch.uint8).repeat(384).view(1, 1, 16, 16, 3)
    cond = policy_of_pictures().encode({"camera": bytes_of_picture})
    assert cond[0, :4].tolist() == [-1.0, 1.0, -1.0, 1.0]


def test_pictures_in_floats_or_of_another_size_are_refused():
    policy = policy_of_pictures()
    with pytest.raises(ValueError, match=r"'camera' is torch.float32, the contract says uint8"):
        policy.encode({"camera": torch.rand(1, 1, 16, 16, 3)})
    with pytest.raises(ValueError, match=r"\(1, 1, 8, 8, 3\), the policy needs \[batch, 1, 16, 16"):
        policy.encode({"camera": torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8)})
