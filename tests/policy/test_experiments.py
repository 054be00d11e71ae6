"""Each named run trains: two steps on the CPU, on a small store of its contract."""

import numpy as np
import pytest
from hydra.utils import instantiate

from data.store import EpisodeStore
from data.types import Contract, Field
from policy import train
from policy.checkpoint import load
from policy.entry import CONFIGS, compose_config
from policy.metrics import read_metrics

FIELDS = {"state": Field(shape=(3,)), "cube": Field(shape=(3,))}  # goals are made of the cube
PLAIN = Contract(observation=FIELDS, action=Field(shape=(2,)), control_dt=0.1)


def make_store(path, contract: Contract) -> None:
    rng = np.random.default_rng(0)
    store = EpisodeStore.create(path, contract)
    for _ in range(4):
        fields = contract.fields.items()
        store.append({k: rng.normal(size=(30, *f.shape)).astype(f.dtype) for k, f in fields})


@pytest.mark.parametrize("name", [path.stem for path in (CONFIGS / "experiment").glob("*.yaml")])
def test_experiment_trains_two_steps(name, tmp_path):
    overrides = [f"experiment={name}", f"store.path={tmp_path / 's.zarr'}", "device=cpu"]
    small = ["steps=2", "minutes=null", "batch_size=8", "log_every=1", "threads=1"]
    cfg = compose_config("train", [*overrides, *small, "precision=fp32", f"out={tmp_path / 'o'}"])
    contract = instantiate(cfg.store.contract) if "contract" in cfg.store else PLAIN
    make_store(tmp_path / "s.zarr", contract)
    out = train.run(cfg)
    loaded = load(out)
    assert loaded.step == 2
    assert loaded.weights == "ema"
    assert loaded.contract.horizons == loaded.horizons
    lines = read_metrics(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 2]
    assert "val_loss" in lines[-1]


def train_with(tmp_path, *overrides: str) -> None:
    make_store(tmp_path / "s.zarr", PLAIN)
    given = [f"store.path={tmp_path / 's.zarr'}", f"out={tmp_path / 'o'}", "steps=1"]
    train.run(compose_config("train", [*given, "batch_size=8", *overrides]))


@pytest.mark.parametrize(
    "name", ["batch_size", "log_every", "validate_every", "save_every", "keep"]
)
def test_a_setting_below_1_is_refused_before_training(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        train_with(tmp_path, f"{name}=0")


def test_a_run_is_not_overwritten(tmp_path):
    (tmp_path / "o" / "checkpoints" / "step_00000001").mkdir(parents=True)
    with pytest.raises(ValueError, match="resume="):
        train_with(tmp_path)


def test_an_unknown_precision_names_the_choices(tmp_path):
    with pytest.raises(ValueError, match="bf16"):
        train_with(tmp_path, "precision=fp8")


def test_without_holdout_there_is_no_validation(tmp_path, capsys):
    train_with(tmp_path, "holdout=0", "precision=fp32")
    assert "no validation" in capsys.readouterr().out
    lines = read_metrics(tmp_path / "o" / "metrics.jsonl")
    assert not any("val_loss" in line for line in lines)


def test_a_changed_store_is_not_resumed_on(tmp_path):
    train_with(tmp_path, "precision=fp32")
    extra = {k: np.zeros((30, *f.shape), f.dtype) for k, f in PLAIN.fields.items()}
    EpisodeStore.open(tmp_path / "s.zarr", mode="a").append(extra)
    with pytest.raises(ValueError, match="changed"):
        train.resume(tmp_path / "o")


def test_a_checkpoint_that_names_foreign_code_is_not_resumed(tmp_path):
    train_with(tmp_path, "precision=fp32")
    file = load(tmp_path / "o").path / "checkpoint.json"
    own, foreign = '"data.store.EpisodeStore.open"', '"builtins.print"'
    assert own in file.read_text()
    file.write_text(file.read_text().replace(own, foreign))
    with pytest.raises(ValueError, match="do not trust"):
        train.resume(tmp_path / "o")
