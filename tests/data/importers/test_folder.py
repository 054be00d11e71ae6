"""Folders of npz and csv: order, columns, single numbers, and files that are refused."""

from pathlib import Path

import numpy as np
import pytest

from data.importers.folder import Folder, read_csv
from data.importers.importer import ImporterError
from data.importers.samples import ACTION, UNITS
from data.types import ContractError

TOLD = {"state": UNITS, "action": ACTION}


def opened(path: Path, **settings) -> Folder:
    return Folder(path, **{"fields": TOLD, "control_dt": 0.1} | settings)


def npz(path: Path, *episodes: dict[str, object]) -> Path:
    path.mkdir(exist_ok=True)
    for index, episode in enumerate(episodes):
        arrays = {"state": np.zeros((3, 2)), "action": np.zeros((3, 1)), **episode}
        kept = {k: v for k, v in arrays.items() if v is not None}
        np.savez(path / f"episode_{index}.npz", **kept)  # pyright: ignore[reportArgumentType]
    return path


def text(path: Path, *files: str) -> Path:
    path.mkdir(exist_ok=True)
    for index, content in enumerate(files):
        (path / f"episode_{index}.csv").write_text(content)
    return path


def test_files_come_in_the_order_of_their_numbers(tmp_path):
    for name in ("run_10", "run_9", "a_2", "run_9b"):
        np.savez(tmp_path / f"{name}.npz", state=np.zeros((2, 1)), action=np.zeros((2, 1)))
    (tmp_path / "readme.txt").write_text("not an episode")
    (tmp_path / "._run_1.npz").write_text("of another system")
    names = [episode.metadata["name"] for episode in opened(tmp_path).episodes()]
    assert names == ["a_2", "run_9", "run_9b", "run_10"]


def test_endings_in_capitals_are_files_too(tmp_path):
    path = text(tmp_path / "a", "state,action\n1,2", "state,action\n3,4")
    (path / "episode_1.csv").rename(path / "episode_1.CSV")
    values = [episode.fields["state"].tolist() for episode in opened(path).episodes()]
    assert values == [[[1.0]], [[3.0]]]


def test_single_numbers_are_what_is_known_of_an_episode(tmp_path):
    path = npz(
        tmp_path / "a",
        {"success": np.array(True), "seed": np.array(7), "note": np.array("hello")},
        {"success": np.array(False), "score": np.array(np.nan), "name": np.array(3)},
    )
    assert [episode.metadata for episode in opened(path).episodes()] == [
        {"name": "episode_0", "success": True, "seed": 7},
        {"name": "episode_1", "success": False},
    ]


def test_the_action_may_be_called_actions(tmp_path):
    path = npz(tmp_path / "a", {"action": None, "actions": np.ones((3, 1))})
    assert next(iter(opened(path).episodes())).fields["action"].tolist() == [[1]] * 3


def test_columns_of_one_name_are_an_array(tmp_path):
    content = "state_1,state_0,action.0,action.1,grip[0]\n1,2,3,4,5\n6,7,8,9,-1e1\n"
    told = {**TOLD, "grip": UNITS}
    fields = next(iter(opened(text(tmp_path / "a", content), fields=told).episodes())).fields
    assert fields["state"].tolist() == [[2, 1], [7, 6]]
    assert fields["action"].tolist() == [[3, 4], [8, 9]]
    assert fields["grip"].tolist() == [[5], [-10]]


def test_columns_of_other_names_are_told(tmp_path):
    path = text(tmp_path / "a", "t;x;y;vx\n0;1;2;3\n1;4;5;6\n")
    columns = {"state": ["y", "x"], "action": ["vx"]}
    importer = opened(path, columns=columns, take=["state"])
    fields = next(iter(importer.episodes())).fields
    assert (fields["state"].tolist(), fields["action"].tolist()) == ([[2, 1], [5, 4]], [[3], [6]])
    with pytest.raises(ContractError, match=r"columns name z, .* has t, x, y, vx"):
        opened(path, columns={"state": ["z"]})


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is empty"),
        ("1,2,3\n4,5,6\n", "the first line must name the columns"),
        ("a,a\n1,2\n", "must name the columns, each differently"),
        ("a,,b\n1,2,3\n", "must name the columns"),
        ("a,b\n1,2\n3\n", "row 2 has 1 cells, there are 2 columns"),
        ("a,b\n1,two\n", "row 1 has 'two' in the column b, which is no number"),
        ("a,b\n1,\n", "row 1 has '' in the column b"),
        ("a,b\n1,1_000\n", "row 1 has '1_000'"),
        ("a,b\n1,0x10\n", "row 1 has '0x10'"),
        ('a,b\n1,"2\n', "cannot be read as csv"),
        ("a,b\n1,\0\n", "row 1 has|cannot be read as csv"),
    ],
)
def test_text_that_is_no_table_of_numbers(tmp_path, content, complaint):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ImporterError, match=complaint):
        read_csv(tmp_path / "a.csv")


def test_bytes_that_are_no_text(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(ImporterError, match="cannot be read as csv"):
        read_csv(tmp_path / "a.csv")
    with pytest.raises(ImporterError, match="cannot be read as csv"):
        read_csv(tmp_path / "nothing.csv")
    monkeypatch.setattr("data.importers.folder.CSV_BYTES", 3)
    with pytest.raises(ImporterError, match="has more than 3 bytes"):
        read_csv(tmp_path / "a.csv")


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfx, y\r\n1, 2\r\n\r\n")
    header, values = read_csv(tmp_path / "a.csv")
    assert (header, values.tolist()) == (["x", "y"], [[1, 2]])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("state_0,state_2,action_0\n1,2,3\n", r"columns of state are numbered \[0, 2\]"),
        ("state_2,state_3,action_0\n1,2,3\n", "there are gaps"),
        ("state_0,state.0,action_0\n1,2,3\n", "state has two columns of number 0"),
        ("state_0,action_0\n", "its arrays have .* 0|needs at least 1|the same number"),
        ("state_0,action_0\nnan,1\n", "state is not a finite number"),
        ("state_0,action_0\n1,inf\n", "action is not a finite number"),
    ],
)
def test_tables_that_are_no_episode(tmp_path, content, complaint):
    with pytest.raises(ImporterError, match=complaint):
        list(opened(text(tmp_path / "a", content)).episodes())


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        ({"state": np.zeros((3, 3))}, r"steps of shape \(3,\) .* in the first episode"),
        ({"state": np.zeros((3, 2), np.float32)}, "dtype float32, in the first episode"),
        ({"state": np.zeros((4, 2))}, "its arrays have {'action': 3, 'state': 4} steps"),
        ({"state": np.zeros((0, 2)), "action": np.zeros((0, 1))}, "has 0 steps"),
        ({"state": None}, "lacks state"),
        ({"state": np.array(1.0)}, "state must have a row per step"),
        ({"state": np.array([[object()] * 2] * 3)}, "objects are never unpickled"),
        ({"state": np.array([["a", "b"]] * 3)}, "in the first episode|only real numbers"),
    ],
)
def test_episodes_that_differ_from_the_first(tmp_path, second, complaint):
    importer = opened(npz(tmp_path / "a", {}, second))
    episodes = importer.episodes()
    next(episodes)
    with pytest.raises(ImporterError, match=complaint):
        next(episodes)


def test_a_table_that_lacks_columns(tmp_path):
    path = text(tmp_path / "a", "state_0,action_0\n1,2\n", "state_0,act\n1,2\n")
    with pytest.raises(ImporterError, match="has no columns of action: leave it out"):
        list(opened(path).episodes())


def test_folders_that_hold_no_episodes(tmp_path):
    with pytest.raises(ImporterError, match="holds no npz or csv files"):
        opened(tmp_path)
    with pytest.raises(ImporterError, match="is no folder"):
        opened(tmp_path / "nothing")
    npz(tmp_path, {})
    text(tmp_path, "state,action\n1,2\n")
    with pytest.raises(ImporterError, match="holds both npz and csv files"):
        opened(tmp_path)


def test_names_that_cannot_be_fields_are_renamed(tmp_path):
    path = npz(tmp_path / "a", {"observation.state": np.ones((3, 2)), "state": None})
    with pytest.raises(ImporterError, match=r"take.NAME='observation.state'"):
        opened(path)
    fields = next(iter(opened(path, take={"state": "observation.state"}).episodes())).fields
    assert fields["state"].tolist() == [[1, 1]] * 3
