"""robomimic's files: what they say is believed, what they do not say is asked for."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from data.importers.importer import ImporterError
from data.importers.robomimic import Robomimic
from data.importers.samples import ROBOSUITE, UNITS, episodes, write_robomimic
from data.types import ContractError

TOLD = {"eef_pos": UNITS, "action": {"unit": "1", "rotation": "axis_angle"}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_robomimic(tmp_path, episodes())


def opened(path: Path, *, fields: dict = TOLD, **settings) -> Robomimic:
    return Robomimic(path, fields=fields, **settings)


def array(file: h5py.File, name: str) -> h5py.Dataset:
    found = file[name]
    assert isinstance(found, h5py.Dataset)
    return found


def environment(path: Path, entry: object) -> None:
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = entry if isinstance(entry, str) else json.dumps(entry)


def controlled(controllers: object) -> dict:
    return {"env_name": "Lift", "env_kwargs": {"controller_configs": controllers}}


def test_rate_task_and_kind_come_from_the_file(path):
    contract = opened(path).contract
    assert (contract.control_dt, contract.task) == (0.05, "PickPlaceCan")
    assert (contract.action.kind, contract.action.rotation) == ("delta", "axis_angle")
    assert opened(path, control_dt=0.1, task="can").contract.control_dt == 0.1
    assert opened(path, task="can").contract.task == "can"


@pytest.mark.parametrize(
    ("controllers", "kind"),
    [
        ({"control_delta": True}, "delta"),
        ({"control_delta": False}, "absolute"),
        ([{"control_delta": False}, {"control_delta": False}], "absolute"),
        ({"type": "BASIC", "body_parts": {"right": {"input_type": "delta"}}}, "delta"),
        ({"body_parts": {"right": {"input_type": "absolute"}, "left": {}}}, "absolute"),
    ],
)
def test_absolute_and_delta_are_told_apart(path, controllers, kind):
    environment(path, controlled(controllers))
    assert opened(path, control_dt=0.1).contract.action.kind == kind
    other = {"absolute": "delta", "delta": "absolute"}[kind]
    told = {**TOLD, "action": TOLD["action"] | {"kind": other}}
    with pytest.raises(ContractError, match=f"kind is '{other}', but .* says '{kind}'"):
        opened(path, fields=told, control_dt=0.1)


@pytest.mark.parametrize(
    "controllers",
    [None, {}, {"type": "JOINT_VELOCITY"}, [{"control_delta": True}, {"control_delta": False}]],
)
def test_a_kind_that_the_file_does_not_say_is_asked_for(path, controllers):
    environment(path, controlled(controllers))
    with pytest.raises(ContractError, match=r"fields.action.kind=\.\.\."):
        opened(path, control_dt=0.1)


def test_a_file_without_an_environment(path):
    with h5py.File(path, "a") as file:
        del file["data"].attrs["env_args"]
    with pytest.raises(ContractError, match=r"fields.action.kind=\.\.\. control_dt=\.\.\."):
        opened(path)


def test_absolute_actions_beside_deltas(path):
    with h5py.File(path, "a") as file:
        for index in range(3):
            deltas = array(file, f"data/demo_{index}/actions")
            file[f"data/demo_{index}/actions_abs"] = deltas[:] + 5
    plain, absolute = (
        opened(path),
        opened(path, take={"eef_pos": "eef_pos", "action": "actions_abs"}),
    )
    assert (plain.contract.action.kind, absolute.contract.action.kind) == ("delta", "absolute")
    assert "actions_abs" not in plain.contract.fields
    deltas, targets = (next(iter(i.episodes())).fields["action"] for i in (plain, absolute))
    np.testing.assert_allclose(targets, deltas + 5, rtol=1e-6)
    nested = opened(path, take={"eef_pos": "eef_pos", "action": {"key": "actions_abs"}})
    assert nested.contract.action.kind == "absolute"
    with pytest.raises(ContractError):
        opened(path, take=["eef_pos"]).contract.check(absolute.contract, this="a", that="b")


def test_masks_choose_demonstrations(path):
    assert [e.metadata["masks"] for e in opened(path).episodes()] == [
        ["train"],
        ["train"],
        ["valid"],
    ]
    chosen = opened(path, mask="valid")
    assert chosen.n_episodes == 1
    assert next(iter(chosen.episodes())).metadata["name"] == "demo_2"
    with pytest.raises(ImporterError, match="has no mask 'test', it has train, valid"):
        opened(path, mask="test")
    with h5py.File(path, "a") as file:
        file["mask/gone"] = np.array(["demo_7"], dtype="S")
        file["mask/none"] = np.array([], dtype="S8")
    with pytest.raises(ImporterError, match="mask/gone names 'demo_7', which is missing"):
        opened(path, mask="gone")
    with pytest.raises(ImporterError, match="mask/none is empty"):
        opened(path, mask="none")


def test_what_is_known_of_a_demonstration_is_kept(path):
    with h5py.File(path, "a") as file:
        file["data/demo_0"].attrs["operator"] = "ann"
        file["data/demo_0"].attrs["seed"] = np.int64(3)
        del file["data/demo_2/rewards"]
        array(file, "data/demo_1/rewards")[:] = 0.3
    found = [episode.metadata for episode in opened(path).episodes()]
    assert found[0] == {
        "name": "demo_0",
        "masks": ["train"],
        "operator": "ann",
        "seed": 3,
        "success": True,
    }
    assert "success" not in found[1] | found[2]  # Dense rewards do not tell.
    assert type(found[0]["seed"]) is int


def change(path: Path, what: str, values: object) -> None:
    with h5py.File(path, "a") as file:
        del file[what]
        if values is not None:
            file[what] = values


@pytest.mark.parametrize(
    ("what", "values", "complaint"),
    [
        ("data/demo_1/actions", np.zeros((2, 2)), r"demo_1: its arrays have .*'actions': 2"),
        ("data/demo_1/actions", np.zeros((5, 2)), "demo_1 says it has 3 steps, it has 5"),
        (
            "data/demo_1/actions",
            np.zeros((3, 2), np.float32),
            "dtype float32, in the first episode",
        ),
        ("data/demo_1/actions", np.zeros((3, 4)), r"shape \(4,\) .* in the first episode"),
        ("data/demo_1/actions", np.full((3, 2), np.inf), "demo_1: actions is not a finite number"),
        ("data/demo_1/actions", np.array(["a"] * 3, h5py.string_dtype()), "dtype object"),
        ("data/demo_1/actions", np.zeros(()), "is a single number"),
        ("data/demo_1/actions", None, "demo_1/actions is missing"),
        ("data/demo_1/obs", None, "demo_1/obs is missing"),
        ("data/demo_1/obs", h5py.ExternalLink("x.hdf5", "/"), "link to / in the file 'x.hdf5'"),
        ("data/demo_1", h5py.SoftLink("/data/demo_0"), "link to /data/demo_0"),
        ("data/demo_1", None, "says it has 13 steps, its demonstrations say 10"),
        ("data/demo_0/obs", None, "dataset_states_to_obs.py"),
        ("data/demo_0/actions", None, "has no array actions"),
        ("data", None, "/data is missing"),
    ],
)
def test_demonstrations_that_cannot_be_imported(path, what, values, complaint):
    change(path, what, values)
    with pytest.raises(ImporterError, match=complaint):
        list(opened(path).episodes())


def test_a_demonstration_of_no_steps(path):
    with h5py.File(path, "a") as file:
        for name in ("actions", "obs/eef_pos", "obs/agentview_image"):
            found = array(file, f"data/demo_1/{name}")
            nothing = np.zeros((0, *found.shape[1:]), found.dtype)
            del file[f"data/demo_1/{name}"]
            file[f"data/demo_1/{name}"] = nothing
        file["data/demo_1"].attrs["num_samples"] = 0
        file["data"].attrs["total"] = 10
    with pytest.raises(ImporterError, match="demo_1 has 0 steps, it needs at least 1"):
        list(opened(path).episodes())


def test_a_file_without_demonstrations(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_group("data")
    with pytest.raises(ImporterError, match="holds no demonstrations"):
        opened(tmp_path / "a.hdf5")


@pytest.mark.parametrize(
    "entry", ["{", "[]", "3", json.dumps({"env_kwargs": {"control_freq": "x"}})]
)
def test_an_environment_that_cannot_be_read(path, entry):
    environment(path, entry)
    with pytest.raises(ImporterError, match="env_args cannot be read"):
        opened(path)


@pytest.mark.parametrize("rate", [-20, 1e30, float("inf")])
def test_a_rate_that_is_none(path, rate):
    environment(path, {"env_kwargs": ROBOSUITE["env_kwargs"] | {"control_freq": rate}})
    with pytest.raises(ImporterError, match="control_freq is"):
        opened(path)


def test_a_mask_that_fills_the_memory_is_refused(path, monkeypatch):
    monkeypatch.setattr("data.importers.robomimic.MAX_DEMOS", 1)  # `train` names more.
    with pytest.raises(ImporterError, match=r"mask/train has the shape \(2,\), no list"):
        opened(path)


def test_a_mask_that_is_damaged(path):
    with h5py.File(path, "a") as file:
        file["mask/odd"] = h5py.Empty("f8")
    with pytest.raises(ImporterError, match="mask/odd"):
        opened(path)


def test_demonstrations_with_odd_names_have_an_order(tmp_path):
    path = write_robomimic(tmp_path, episodes())
    with h5py.File(path, "a") as file:
        file.move("data/demo_0", "data/demo_0_left")
        file.move("data/demo_1", "data/first")
    names = [episode.metadata["name"] for episode in opened(path).episodes()]
    assert names == ["first", "demo_0_left", "demo_2"]


def test_newer_files_of_the_library_are_read(tmp_path):
    made = episodes()
    path = write_robomimic(tmp_path, made, libver="latest")
    for episode, original in zip(opened(path).episodes(), made, strict=True):
        np.testing.assert_array_equal(episode.fields["agentview_image"], original["camera"])
