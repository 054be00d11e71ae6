"""Training from every place: the same run, and no thread of it left behind."""

import json
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from data.store import EpisodeStore, StoreError
from data.types import Contract, Field
from policy import train
from policy.checkpoint import load, load_trainer
from policy.entry import compose_config
from policy.train import make_absolute
from policy.trainer import Trainer

CONTRACT = Contract(
    {"camera": Field((12, 12, 3), dtype="uint8"), "state": Field((2,))}, Field((2,)), 0.1
)
SMALL = [
    *("encoder=small_cnn", "encoder.trunk.channels=[16]", "encoder.trunk.strides=[2]"),
    *("net.channels=[8,16]", "batch_size=8", "precision=fp32", "device=cpu", "threads=1"),
    *("steps=12", "save_every=5", "log_every=3", "validate_every=6", "holdout=0.25"),
    "goals={_target_:data.goals.Hindsight,source:state}",
]
READING = {
    "device": [],
    "cache": ["reading.place=cache", "reading.ahead=3"],
    "store": ["reading.place=store", "reading.threads=3"],
    "nothing in memory": ["reading.memory_fraction=0", "reading.cache=null"],
    "nothing ahead": ["reading.place=store", "reading.ahead=0"],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path, rng = tmp_path_factory.mktemp("reading") / "store.zarr", np.random.default_rng(0)
    with EpisodeStore.create(path, CONTRACT) as store:
        for length in (30, 9, 25, 40):
            camera = rng.integers(0, 256, (length, 12, 12, 3), dtype=np.uint8)
            numbers = rng.normal(size=(length, 4)).astype(np.float32)
            store.append({"camera": camera, "state": numbers[:, :2], "action": numbers[:, 2:]})
    return path


def trained(store: Path, out: Path, *settings: str) -> Path:
    given = [f"store.path={store}", f"out={out}", f"reading.cache={out}_cache", *SMALL]
    return train.run(compose_config("train", [*given, *settings]))


def no_threads() -> bool:
    return not any(t.name.startswith("prefetch") for t in threading.enumerate())


def assert_same(out: Path, other: Path) -> None:
    assert (out / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    one, two = load(out), load(other)
    for name, values in one.policy_state.items():
        assert torch.equal(values, two.policy_state[name])
    moments, others = load_trainer(one)["optimizer"], load_trainer(two)["optimizer"]
    assert str(moments) == str(others)


@pytest.fixture(scope="module")
def in_memory(store, tmp_path_factory) -> Path:
    return trained(store, tmp_path_factory.mktemp("memory") / "run")


@pytest.mark.parametrize("place", list(READING)[1:])
def test_a_run_is_the_same_from_every_place_bit_for_bit(store, in_memory, tmp_path, place, capsys):
    out = trained(store, tmp_path / "run", *READING[place])
    assert_same(out, in_memory)
    assert no_threads()
    shown = capsys.readouterr().out
    assert ("a decoded cache in" if place == "cache" else "the store itself") in shown


@pytest.mark.parametrize("place", ["cache", "store"])
def test_an_interrupted_run_goes_on_bit_for_bit(store, in_memory, tmp_path, place, monkeypatch):
    step = Trainer.step

    def interrupted(trainer, batch, scale):
        step(trainer, batch, scale)
        if trainer.step_count == 7:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(store, tmp_path / "run", *READING[place])
    assert no_threads()
    monkeypatch.undo()
    assert load(tmp_path / "run").step == 7
    resumed = train.resume(tmp_path / "run")
    assert resumed.dataset.place == place
    train.fit(resumed)
    resumed.save_unless_saved()
    assert_same(tmp_path / "run", in_memory)


def test_a_store_that_is_damaged_meanwhile_ends_the_run_with_its_error(
    store, tmp_path, monkeypatch
):
    read, n_read = EpisodeStore.read_rows, 0

    def damaged(self, key, rows):
        nonlocal n_read
        n_read += key == "camera" and len(rows) < 30  # Batches, and no pass over all.
        if n_read > 5:
            raise StoreError("data/camera is damaged in steps 3..4")
        return read(self, key, rows)

    monkeypatch.setattr(EpisodeStore, "read_rows", damaged)
    with pytest.raises(StoreError, match="is damaged in steps"):
        trained(store, tmp_path / "run", *READING["store"])
    assert no_threads()


def test_the_folder_of_the_cache_is_found_from_anywhere(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = trained(store, tmp_path / "run", "reading.place=cache", "reading.cache=here")
    config = load(out).config
    assert config["reading"]["cache"] == str(tmp_path / "here")
    assert (tmp_path / "here").is_dir()


def test_runs_of_older_programs_have_no_such_settings(store, tmp_path):
    cfg = compose_config("train", [f"store.path={store}", f"out={tmp_path}", *SMALL])
    OmegaConf.set_struct(cfg, False)
    del cfg["reading"]
    run = train.prepare(cfg, EpisodeStore.open(store), tmp_path)
    assert run.dataset.place == "device"


def test_a_store_elsewhere_is_found_from_any_folder():
    place = "zip://store.zarr::/data/archive.zip"
    one = OmegaConf.create({"path": place})
    several = OmegaConf.create({"paths": [place, "a b/store.zarr", "file:///c"]})
    make_absolute(one)
    make_absolute(several)
    assert one.path == place
    assert several.paths == [place, str(Path.cwd() / "a b/store.zarr"), "/c"]


def test_a_large_store_is_read_for_its_digest_once(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data.content_digest.NOTED_BYTES", 1)
    out = tmp_path / "run"
    trained(store, out, "steps=2")
    assert "checking the store: " in capsys.readouterr().out
    (note,) = (tmp_path / "run_cache" / "digests").iterdir()
    assert load(out).store_digest == EpisodeStore.open(store).digest()
    assert json.loads(note.read_text())["digest"] == load(out).store_digest
    capsys.readouterr()
    train.run(compose_config("train", [f"resume={out}"]))
    assert "checking the store: " not in capsys.readouterr().out
