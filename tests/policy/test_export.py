"""`cadence export`: what it writes comes back, and what is asked wrongly is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from data.importers.lerobot import LeRobot
from data.store import EpisodeStore
from data.types import Contract, Field
from policy import export, import_data
from policy.entry import CONFIGS, compose_config

CONTRACT = Contract({"agent": Field((2,), unit="m")}, Field((1,), unit="m"), 0.1, task="reach")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = EpisodeStore.create(tmp_path / "store.zarr", CONTRACT)
    rng = np.random.default_rng(0)
    for seed in range(3):
        agent = rng.normal(size=(5, 2)).astype(np.float32)
        store.append({"agent": agent, "action": agent[:, :1]}, seed=seed)
    return tmp_path / "store.zarr"


def command(monkeypatch, *arguments: object) -> int:
    """Run the verb as the command line does; its exit status."""
    monkeypatch.setattr(sys, "argv", ["cadence", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        export.main()
    return int(end.value.code or 0)


def test_a_store_is_exported_and_comes_back(store, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert command(monkeypatch, "format=lerobot_v3", f"store={store}", f"out={out}") == 0
    said = capsys.readouterr().out
    assert f"exported: 3 episodes, 15 steps, 0.1 MB, to {out}" in said
    assert "note: fields there: agent is observation.state" in said
    importer = LeRobot(out)
    assert importer.contract == CONTRACT
    original = EpisodeStore.open(store)
    for number, episode in enumerate(importer.episodes()):
        np.testing.assert_array_equal(
            episode.fields["agent"], original.read("agent", episodes=[number])
        )
        assert episode.metadata == {"seed": number}


def test_export_and_import_give_an_equal_store(store, tmp_path, monkeypatch):
    assert command(monkeypatch, f"store={store}", f"out={tmp_path / 'out'}") == 0
    settings = ["format=lerobot", f"src={tmp_path / 'out'}", f"store.path={tmp_path / 'came.zarr'}"]
    import_data.run(compose_config("import", settings))
    came, original = EpisodeStore.open(tmp_path / "came.zarr"), EpisodeStore.open(store)
    assert came.contract == original.contract
    assert came.digest() == original.digest()
    assert [entry["seed"] for entry in came.episode_metadata] == [0, 1, 2]


def test_help_lists_what_is_exported(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cadence", "--help"])
    with pytest.raises(SystemExit) as end:
        export.main()
    assert end.value.code == 0
    assert "  format=aot|lerobot_v3|onnx  (lerobot_v3)" in capsys.readouterr().out.splitlines()


def test_a_format_is_exported_in_the_way_of_its_class(store, tmp_path, monkeypatch):
    """Other ways may take something else than a store."""
    cfg = compose_config("export", [f"store.path={store}", "format.robot_type=arm"])
    ways = {
        "other.": lambda cfg: Path("other"),
        "data.exp": lambda cfg: Path(cfg.format.robot_type),
    }
    monkeypatch.setattr(export, "WAYS", ways)
    assert export.run(cfg) == Path("arm")
    assert export.written_formats() == ["lerobot_v3"]
    monkeypatch.setattr(export, "WAYS", {"data.importers.": export.export_store})
    assert "robomimic" in export.written_formats()


def test_features_are_named_on_the_command_line(store, tmp_path, monkeypatch):
    wanted = "format.features.agent=observation.environment_state"
    assert command(monkeypatch, f"store={store}", f"out={tmp_path / 'out'}", wanted) == 0
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert "observation.environment_state" in info["features"]


def test_without_out_a_fresh_folder_is_made(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, f"store={store}") == 0
    assert len(list(tmp_path.glob("outputs/export/*/data_set/meta/info.json"))) == 2  # and latest


def test_a_format_that_is_only_read_is_refused(store, tmp_path, monkeypatch, capsys):
    for name in sorted({path.stem for path in (CONFIGS / "format").glob("*.yaml")}):
        if name in export.written_formats():
            continue
        status = command(monkeypatch, f"format={name}", f"store={store}", f"out={tmp_path / 'o'}")
        assert status == 1
        assert f"format={name} can only be imported: choose format=" in capsys.readouterr().err
    assert export.written_formats() == ["aot", "lerobot_v3", "onnx"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["format=lerobt"], 2, "Could not find 'format/lerobt'"),
        (["format.images=jpeg"], 1, "images is 'jpeg', choose one of"),
        (["format.features.nothing=observation.x"], 1, "features names ['nothing']"),
        (["store=nothing.zarr"], 1, "nothing.zarr"),
        (["otu=x"], 2, "otu"),
    ],
)
def test_wrong_commands_are_refused(
    store, tmp_path, monkeypatch, capsys, arguments, status, message
):
    given = [f"store={store}", f"out={tmp_path / 'out'}", *arguments]
    assert command(monkeypatch, *given) == status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_several_stores_as_one_are_refused(store, tmp_path):
    overrides = ["store=mixture", f"store.paths=[{store},{store}]", f"out={tmp_path / 'out'}"]
    with pytest.raises(ValueError, match="which is several stores: export each of them"):
        export.run(compose_config("export", overrides))


def test_a_store_whose_contract_is_in_a_config_is_chosen_by_name():
    arguments = ["store=push_t_human", "store.path=there", "store=here", "format.features.a=b"]
    assert export.free_settings(arguments) == [
        "store=push_t_human",
        "store.path=there",
        "store.path=here",
        "++format.features.a=b",
    ]


def test_ctrl_c_leaves_nothing(store, tmp_path, monkeypatch):
    from data.exporters import lerobot_data_set

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lerobot_data_set, "tasks_table", interrupt)
    assert command(monkeypatch, f"store={store}", f"out={tmp_path / 'out'}") == 130
    assert {path.name for path in tmp_path.iterdir()} == {"store.zarr"}
