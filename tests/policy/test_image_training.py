"""Training on pictures: crops in training alone, several noisy chunks for one encoding."""

import numpy as np
import pytest
import torch

from data.store import EpisodeStore
from data.types import Contract, Field
from policy.entry import compose_config
from policy.lesson import Lesson
from policy.train import Run, prepare
from policy.trainer import NOISE, seeded

CONTRACT = Contract(
    {"camera": Field((12, 12, 3), dtype="uint8"), "agent": Field((2,))}, Field((2,)), 0.1
)
SMALL = ["encoder.trunk.channels=[16]", "encoder.trunk.strides=[2]", "net.channels=[8,16]"]
CROP = ["encoder.crop=8", "crop={_target_:data.augment.RandomCrop,size:8}"]


def prepared(tmp_path, *settings: str) -> Run:
    store, rng = EpisodeStore.create(tmp_path / "store.zarr", CONTRACT), np.random.default_rng(0)
    for _ in range(4):
        camera = rng.integers(0, 256, (20, 12, 12, 3), dtype=np.uint8)
        numbers = rng.normal(size=(20, 4)).astype(np.float32)
        store.append({"camera": camera, "agent": numbers[:, :2], "action": numbers[:, 2:]})
    given = [f"store.path={store.path}", "encoder=small_cnn", "batch_size=16", "precision=fp32"]
    cfg = compose_config("train", [*given, "device=cpu", "threads=1", *SMALL, *settings])
    return prepare(cfg, store, tmp_path / "run")


def recorded(module: torch.nn.Module) -> list:
    """Positional inputs of each call of a module."""
    calls: list = []
    module.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    return calls


def test_pictures_are_cropped_at_random_in_training_alone(tmp_path):
    run = prepared(tmp_path, *CROP)
    trained = recorded(run.trainer.policy.encoder)
    validated = recorded(run.trainer.ema.module.encoder)
    batch = run.dataset.batch(torch.arange(16))
    whole = run.trainer.policy.features(batch.observation)["camera"]
    run.trainer.step(batch, 1.0)
    run.trainer.validate(run.dataset, batch_size=16)
    crop = trained[0][0]["camera"]
    assert crop.shape == (16, 2, 8, 8, 3)
    places = {
        (top, left)
        for window in range(16)
        for top in range(5)
        for left in range(5)
        if torch.equal(crop[window], whole[window, :, top : top + 8, left : left + 8])
    }
    assert len(places) > 5  # of 25, for 16 windows
    assert torch.equal(validated[0][0]["camera"], whole)  # whose centre the encoder takes


def test_pictures_stay_bytes_until_they_are_features(tmp_path):
    run = prepared(tmp_path)
    assert run.dataset.batch(torch.arange(3)).observation["camera"].dtype == torch.uint8


def test_windows_are_encoded_once_for_all_their_draws(tmp_path):
    run = prepared(tmp_path, "draws=3")
    encoded, denoised = recorded(run.trainer.policy.encoder), recorded(run.trainer.policy.net)
    batch = run.dataset.batch(torch.arange(16))
    run.trainer.step(batch, 1.0)
    assert len(encoded) == len(denoised) == 1
    assert len(encoded[0][0]["agent"]) == 16
    _, c_noise, cond = denoised[0]
    assert len(cond) == 3 * 16
    cond, c_noise = cond.view(16, 3, -1), c_noise.view(16, 3, -1)
    assert torch.equal(cond, cond[:, :1].expand_as(cond))
    assert len(c_noise.flatten(0, 1).unique(dim=0)) == 3 * 16


def test_draws_are_as_many_windows_of_the_same_observation(tmp_path):
    """Three draws of one window are three copies of it: the same loss, the same noise."""
    run = prepared(tmp_path)
    trainer, augment = run.trainer, lambda features, generator: features

    def loss(indices: torch.Tensor, draws: int) -> torch.Tensor:
        generator = seeded(0, purpose=NOISE, count=0, device="cpu")
        batch = run.dataset.batch(indices)
        lesson = Lesson.of(
            trainer.policy, trainer.loss, batch, generator, augment=augment, draws=draws
        )
        return lesson.loss(trainer.policy)

    windows = torch.arange(5)
    copied = loss(windows.repeat_interleave(3), 1)
    # Batches of another size are summed in another order.
    torch.testing.assert_close(loss(windows, 3), copied, atol=1e-5, rtol=1e-5)


def test_fewer_than_one_draw_is_refused(tmp_path):
    with pytest.raises(ValueError, match="draws is 0, it must be at least 1"):
        prepared(tmp_path, "draws=0")


def test_a_crop_larger_than_the_pictures_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"crop is 16, the pictures of 'camera' are 12 x 12 px"):
        prepared(tmp_path, "encoder.crop=16")


@pytest.mark.parametrize(("seen", "size"), [(10, 8), ("null", 8), ("null", "${encoder.crop}")])
def test_a_crop_that_the_encoder_does_not_see_is_refused_before_training(tmp_path, seen, size):
    crop = f"crop={{_target_:data.augment.RandomCrop,size:{size}}}"
    with pytest.raises(ValueError, match=r"crop\.size is (8|None), the encoder sees 1\d x 1\d px"):
        prepared(tmp_path, f"encoder.crop={seen}", crop)
