"""`cadence train store=mixture`: resumed bit for bit, and from the same stores only."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException

from data.joint_contract import TASK
from data.normalize import Normalizer
from data.store import EpisodeStore
from data.types import Contract, Field
from policy import train
from policy.build import from_checkpoint
from policy.checkpoint import load
from policy.entry import compose_config

SMALL = ["net.channels=[8,16]", "batch_size=8", "precision=fp32", "device=cpu", "threads=1"]


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    for path, n_episodes in zip(paths, (2, 4), strict=True):
        contract = Contract(
            observation={"state": Field(shape=(3,))},
            action=Field(shape=(2,)),
            control_dt=0.1,
            task=path.stem,
        )
        store = EpisodeStore.create(path, contract)
        for _ in range(n_episodes):
            store.append({k: rng.normal(size=(20, *f.shape)) for k, f in contract.fields.items()})
    return paths


def trained(paths: list[Path], out: Path, *overrides: str) -> Path:
    told = [f"store.paths=[{','.join(map(str, paths))}]", f"out={out}", *overrides]
    return train.run(compose_config("train", ["store=mixture", *told, *SMALL]))


@pytest.mark.parametrize("weights", ["null", "[3,1]"])
def test_a_resumed_run_equals_an_uninterrupted_one(paths, tmp_path, weights):
    # An epoch is 6 steps: 1 + 3 episodes are not held out, with 13 windows each.
    settings = [f"store.weights={weights}", "steps=12", "save_every=5"]
    out = trained(paths, tmp_path / "run", *settings)
    expected = load(out).policy_state
    shutil.rmtree(out / "checkpoints" / "step_00000012")
    run = train.resume(out)
    assert run.trainer.step_count == 10
    train.fit(run)
    for name, values in run.trainer.ema.module.state_dict().items():
        assert torch.equal(values, expected[name])


def test_weights_change_what_is_learned(paths, tmp_path):
    one, other = (
        load(trained(paths, tmp_path / w, "steps=2", f"store.weights=[{w},1]")).policy_state
        for w in ("1", "9")
    )
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_each_task_has_statistics_of_its_own(paths, tmp_path):
    """They are in the checkpoint, named by its contract, and are what the stores' steps give."""
    settings = ["store.statistics=task", "steps=4", "save_every=2", "holdout=0"]
    out = trained(paths, tmp_path / "run", *settings)
    loaded = load(out)
    assert loaded.contract.scaled_per == TASK
    policy = from_checkpoint(loaded)
    assert policy.normalizer.digest() == loaded.contract.statistics
    joint = load(trained(paths, tmp_path / "joint", "steps=1", "holdout=0")).contract.statistics
    assert joint != loaded.contract.statistics
    for number, path in enumerate(paths):
        store = EpisodeStore.open(path)
        arrays = {name: store.read(name) for name in store.contract.fields}
        alone = Normalizer.fit(store.contract, arrays).state_dict()
        for name, expected in alone.items():
            assert torch.equal(policy.normalizer.get_buffer(name)[number], expected)
    # And a resumed run goes on by them.
    shutil.rmtree(out / "checkpoints" / "step_00000004")
    run = train.resume(out)
    train.fit(run)
    for name, values in run.trainer.ema.module.state_dict().items():
        assert torch.equal(values, loaded.policy_state[name])


def test_a_change_of_any_store_is_noticed(paths, tmp_path):
    out = trained(paths, tmp_path / "run", "steps=1")
    EpisodeStore.open(paths[1], mode="a").append(
        {"state": np.zeros((20, 3), np.float32), "action": np.zeros((20, 2), np.float32)}
    )
    with pytest.raises(ValueError, match="changed"):
        train.resume(out)


def test_relative_paths_are_found_from_another_folder(paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = trained([Path(path.name) for path in paths], tmp_path / "run", "steps=1")
    monkeypatch.chdir("/")
    assert train.resume(out).trainer.step_count == 1


def test_a_path_in_place_of_a_list_is_refused(paths, tmp_path):
    overrides = ["store=mixture", f"store.paths={paths[0]}", f"out={tmp_path / 'run'}"]
    message = r"a\.zarr', it must be a list: 'store\.paths=\["
    with pytest.raises(InstantiationException, match=message):
        train.run(compose_config("train", [*overrides, *SMALL]))
