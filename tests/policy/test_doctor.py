"""`cadence doctor`: what it looks at and its exit status."""

import json
import shutil

import numpy as np
import pytest
import zarr

from data.checks.finding import Finding
from data.dataset import split_episodes
from data.store import EpisodeStore
from data.types import Contract, Field
from policy import collect, doctor
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
        "data/state": rng.uniform(0, 512, (10, 5)).astype(np.float32),
        "data/action": rng.uniform(0, 512, (10, 2)).astype(np.float32),
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


def test_findings_as_json_on_stdout_and_in_a_file(store, tmp_path, capsys):
    made = EpisodeStore.open(store, mode="a")
    made.append({"state": np.ones((3, 2), np.float32), "action": np.ones((3, 1), np.float32)})
    del made
    capsys.readouterr()
    file = tmp_path / "findings.json"
    assert status(f"path={store}", "json=true", f"out={file}") == 1
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(file.read_text())
    assert (told["path"], told["errors"], told["warnings"]) == (str(store), 0, 1)
    (finding,) = told["findings"]
    assert (finding["code"], finding["episodes"]) == ("S008", [3])
    assert status("json=true") in (0, 1)
    assert json.loads(capsys.readouterr().out)["path"] is None


def test_other_stores_are_compared(store, tmp_path, capsys):
    other = shutil.copytree(store, tmp_path / "other.zarr")
    assert status(f"path={store}", f"against=[{other}]") == 1
    assert "S022 warning: 3 episodes are copies" in capsys.readouterr().out
    assert status(f"path={store}", f"against={other}") == 1
    with pytest.raises(ValueError, match=r"absent\.zarr does not exist"):
        status(f"path={store}", f"against=[{tmp_path / 'absent.zarr'}]")
    for wrong in ("5", "[5]", "null"):
        with pytest.raises(ValueError, match="it must be a store or"):
            status(f"path={store}", f"against={wrong}")
    with pytest.raises(ValueError, match=r"holdout is 1\.5, it must be in \[0, 1\)"):
        status(f"path={store}", "holdout=1.5")


def test_copies_across_the_split_that_training_makes(store, capsys):
    made = EpisodeStore.open(store, mode="a")
    copy = {name: made.read(name, episodes=[0]) for name in ("state", "action")}
    for _ in range(3):
        made.append(copy)
    del made
    # Half of the episodes are held out, so copies of episode 0 are on both sides or on one.
    found = set()
    for seed in range(6):
        status(f"path={store}", "holdout=0.5", f"seed={seed}")
        held = set(split_episodes(6, 0.5, seed=seed)[1].tolist())
        is_parted = 0 < len(held & {0, 3, 4, 5}) < 4
        assert is_parted == ("S022" in capsys.readouterr().out)
        found.add(is_parted)
    assert status(f"path={store}", "holdout=0") == 1
    assert "S022" not in capsys.readouterr().out
    assert True in found


@pytest.mark.parametrize("env", ["pillar", "arm", "pick_place", "push_t", "four_pads"])
def test_what_a_scripted_expert_records_is_sound(env, tmp_path, capsys):
    cfg = compose_config("collect", [f"env={env}", "starts=6", f"out={tmp_path}"])
    assert status(f"path={collect.run(cfg)}") == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out


def test_an_unsteady_hand_is_told(tmp_path, capsys):
    """Noise on the action of the gripper, which is open or closed by the contract."""
    overrides = ["env=pillar", "starts=5", "noise=0.1", "keep=all", f"out={tmp_path}"]
    assert status(f"path={collect.run(compose_config('collect', overrides))}") == 1
    assert "S027" in capsys.readouterr().out


def test_status_says_how_bad_it_is(capsys):
    warning = Finding("X1", "warning", "odd", "look")
    error = Finding("X2", "error", "broken", "mend")
    assert doctor.report([]) == 0
    assert doctor.report([warning]) == 1
    assert doctor.report([warning, error]) == 2
    assert "fix: mend" in capsys.readouterr().out
