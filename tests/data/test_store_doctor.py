"""Each illness of a store has its code."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from data.doctor import examine_store
from data.layout import Source
from data.store import EpisodeStore
from data.types import Contract, Field

CONTRACT = Contract(
    {"state": Field((2,)), "camera": Field((2, 2, 3), dtype="uint8")}, Field((1,)), 0.1
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "store.zarr"
    store, rng = EpisodeStore.create(path, CONTRACT), np.random.default_rng(0)
    for _ in range(3):
        store.append(
            {
                "state": rng.normal(size=(10, 2)),
                "camera": rng.integers(0, 256, (10, 2, 2, 3)).astype(np.uint8),
                "action": rng.normal(size=(10, 1)),
            }
        )
    return path


def writable(path: Path) -> zarr.Group:
    return zarr.open_group(path, mode="r+")


def stored(path: Path, key: str) -> zarr.Array:
    array = writable(path)[key]
    assert isinstance(array, zarr.Array)
    return array


def codes(path: Path, contract: Contract | None = None) -> list[tuple[str, str]]:
    return [(finding.code, finding.severity) for finding in examine_store(path, contract)]


def test_a_healthy_store_has_no_findings(path):
    assert examine_store(path) == []


def test_an_array_that_was_changed_behind_our_back_names_its_episodes(path):
    stored(path, "data/state")[5] = 7
    findings = [each for each in examine_store(path) if each.severity == "error"]
    assert [each.code for each in findings] == ["S006"]
    assert 0 in findings[0].episodes


def test_no_store(path):
    assert codes(path / "nothing") == [("S001", "error")]
    assert codes(path.parent) == [("S001", "error")]


def test_no_contract(path):
    writable(path).attrs.put({})
    assert codes(path) == [("S002", "error")]
    assert codes(path, CONTRACT) == []


def test_fields_of_a_foreign_store_may_have_other_names(path):
    writable(path).attrs.put({})
    contract = Contract({"x": Field((1,))}, Field((1,)), 0.1)
    assert codes(path, contract) == [("S004", "error")]
    assert examine_store(path, contract, sources={"x": Source("state", [1])}) == []
    (finding,) = examine_store(path, contract, sources={"x": Source("state", [2])})
    assert (finding.code, "elements [2]" in finding.message) == ("S005", True)


def test_a_newer_program(path):
    writable(path).attrs["format_version"] = 99
    (finding,) = examine_store(path)
    assert (finding.code, finding.severity, finding.fix) == ("S011", "error", "upgrade cadence")


def test_episode_metadata_that_is_not_json(path):
    stored(path, "meta/episode_metadata")[1] = "{broken"
    assert codes(path) == [("S012", "error")]


def test_another_contract(path):
    other = Contract(CONTRACT.observation, CONTRACT.action, 0.5)
    assert ("S002", "error") in codes(path, other)


def test_episode_ends(path):
    stored(path, "meta/episode_ends")[1] = 5
    assert codes(path) == [("S003", "error")]
    del writable(path)["meta/episode_ends"]
    assert codes(path) == [("S003", "error")]


def test_a_missing_array(path):
    del writable(path)["data/state"]
    assert codes(path) == [("S004", "error")]


def test_wrong_length_shape_and_dtype(path):
    stored(path, "data/state").resize((29, 2))
    group = writable(path)
    del group["data/action"]
    group.create_array("data/action", data=np.zeros((30, 1), np.int64))
    assert codes(path) == [("S005", "error")] * 2


def test_numbers_that_cannot_be_used_name_their_episodes(path):
    writable(path).attrs.put({})  # The numbers of a store of our own have checksums.
    stored(path, "data/state")[5] = np.nan
    stored(path, "data/state")[25] = np.inf
    (finding,) = examine_store(path, CONTRACT)
    assert finding.code == "S006"
    assert "at step 5, in episode 0" in finding.message
    assert finding.message.endswith("episodes concerned: 0, 2")


def test_zero_episodes(tmp_path):
    EpisodeStore.create(tmp_path / "empty.zarr", CONTRACT)
    assert codes(tmp_path / "empty.zarr") == [("S007", "error")]


def test_short_episodes_and_constant_elements_are_warnings(path):
    store, rng = (
        EpisodeStore.create(path.with_name("other.zarr"), CONTRACT),
        np.random.default_rng(0),
    )
    for length in (10, 10, 10, 3):
        state = np.stack([rng.normal(size=length), np.full(length, 4.0)], axis=1)
        camera = rng.integers(0, 256, (length, 2, 2, 3)).astype(np.uint8)
        store.append({"state": state, "camera": camera, "action": rng.normal(size=(length, 1))})
    findings = examine_store(store.path)
    assert [(f.code, f.severity) for f in findings] == [("S008", "warning"), ("S009", "warning")]
    assert "1 of 4 episodes has fewer than 8 steps: 3" in findings[0].message
    assert findings[1].message == "state: element 1 never changes"


def test_steps_of_an_unfinished_episode(path):
    stored(path, "data/state").resize((42, 2))
    (finding,) = examine_store(path)
    assert (finding.code, finding.severity) == ("S010", "warning")
    assert "12 steps after the last whole episode" in finding.message
