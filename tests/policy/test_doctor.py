"""`cadence doctor`: what it looks at and its exit status."""

import json
import shutil

import numpy as np
import pytest
import zarr

from data.doctor import Finding
from data.store import EpisodeStore
from data.types import Contract, Field
from policy import doctor
from policy.entry import compose_config


@pytest.fixture
def store(tmp_path):
    contract = Contract(
        observation={"state": Field(shape=(2,))}, action=Field(shape=(1,)), control_dt=0.1
    )
    rng = np.random.default_rng(0)
    made = EpisodeStore.create(tmp_path / "s.zarr", contract)
    for _ in range(3):
        state = rng.normal(size=(20, 2)).astype(np.float32)
        made.append({"state": state, "action": state[:, :1].copy()})
    return tmp_path / "s.zarr"


def status(*overrides: str) -> int:
    return doctor.run(compose_config("doctor", list(overrides)))


def test_a_healthy_store_has_status_0(store, capsys):
    assert status(f"path={store}") == 0
    assert "0 errors" in capsys.readouterr().out


def test_a_broken_store_has_status_2_and_a_fix(store, capsys):
    shutil.rmtree(store / "data" / "state")
    assert status(f"path={store}") == 2
    printed = capsys.readouterr().out
    assert "data/state" in printed
    assert "fix:" in printed


def test_a_named_store_says_where_its_fields_are(tmp_path, capsys):
    """The agent's position is a part of another array, the pictures are floats."""
    rng = np.random.default_rng(0)
    arrays = {
        "data/img": rng.integers(0, 256, (10, 96, 96, 3)).astype(np.float32),
        "data/state": rng.normal(size=(10, 5)).astype(np.float32),
        "data/action": rng.normal(size=(10, 2)).astype(np.float32),
        "meta/episode_ends": np.array([10]),
    }
    group = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=2)
    for key, values in arrays.items():
        group.create_array(key, data=values)
    assert status(f"path={tmp_path / 's.zarr'}", "store=push_t_human_pixels") == 0
    del group["data/state"]
    assert status(f"path={tmp_path / 's.zarr'}", "store=push_t_human_pixels") == 2
    assert "lacks the array data/state" in capsys.readouterr().out


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    assert status(f"path={tmp_path}") == 2
    assert "C001" in capsys.readouterr().out


def test_a_checkpoint_that_no_policy_can_be_built_from(pillar_checkpoint, tmp_path, capsys):
    run = shutil.copytree(pillar_checkpoint, tmp_path / "run", symlinks=True)
    assert status(f"path={run}") == 0
    (meta,) = run.glob("checkpoints/step_*/checkpoint.json")
    for was, becomes in (("unet1d.UNet1d", "unet1d.Absent"), ("[8, 16]", "[8, 17]")):
        text = pillar_checkpoint / meta.relative_to(run)
        config = json.loads(text.read_text())
        config["config"]["net"] = json.loads(
            json.dumps(config["config"]["net"]).replace(was, becomes)
        )
        meta.write_text(json.dumps(config))
        capsys.readouterr()
        assert status(f"path={run}") == 2
        assert "C009 error: no policy can be built from it" in capsys.readouterr().out


def test_status_says_how_bad_it_is(capsys):
    warning = Finding("X1", "warning", "odd", "look")
    error = Finding("X2", "error", "broken", "mend")
    assert doctor.report([]) == 0
    assert doctor.report([warning]) == 1
    assert doctor.report([warning, error]) == 2
    assert "fix: mend" in capsys.readouterr().out
