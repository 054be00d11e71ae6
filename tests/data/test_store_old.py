"""Stores of format_version 1 are read and appended to as they are."""

from pathlib import Path

import numpy as np
import pytest
import zarr
import zarr.storage._local as zarr_local
from plain_store import plain_store

from data.edit import copy
from data.store import EpisodeStore, StoreError
from data.types import Contract, Field

CONTRACT = Contract(
    {"state": Field((3,)), "camera": Field((4, 4, 3), "uint8")}, Field((2,)), 0.1, task="reach"
)


def episode(index: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    return {
        "state": rng.normal(size=(length, 3)).astype(np.float32),
        "camera": rng.integers(0, 256, (length, 4, 4, 3), dtype=np.uint8),
        "action": np.full((length, 2), index, np.float32),
    }


def joined(name: str, *episodes: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([one[name] for one in episodes])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two episodes, of 5 and 9 steps, written by zarr alone."""
    path = plain_store(tmp_path / "old.zarr", CONTRACT)
    group = zarr.open_group(path, mode="r+")
    for name in CONTRACT.fields:
        array = group[f"data/{name}"]
        assert isinstance(array, zarr.Array)
        array.append(joined(name, episode(0, 5), episode(1, 9)))
    for name, values in (
        ("episode_ends", np.array([5, 14])),
        ("episode_metadata", np.array(['{"seed": 0}', '{"seed": 1}'], dtype=object)),
    ):
        array = group[f"meta/{name}"]
        assert isinstance(array, zarr.Array)
        array.append(values)
    return path


def test_they_are_read(path):
    store = EpisodeStore.open(path)
    assert store.episode_ends.tolist() == [5, 14]
    assert store.episode_metadata == [{"seed": 0}, {"seed": 1}]
    for name in CONTRACT.fields:
        both = joined(name, episode(0, 5), episode(1, 9))
        np.testing.assert_array_equal(store.read(name), both)
        np.testing.assert_array_equal(store.read_rows(name, np.array([4, 6, 13])), both[[4, 6, 13]])


def test_they_are_appended_to_in_their_own_layout(path):
    with EpisodeStore.open(path, mode="a") as store:
        store.append(episode(2, 30), seed=2)
        store.append(episode(3, 1), seed=3)
    group = zarr.open_group(path, mode="r")
    assert set(group.attrs) == {"format_version", "contract"}
    assert group.attrs["format_version"] == 1
    ends, state = group["meta/episode_ends"], group["data/state"]
    assert isinstance(ends, zarr.Array)
    assert isinstance(state, zarr.Array)
    assert np.asarray(ends[:]).tolist() == [5, 14, 44, 45]
    expected = joined("state", episode(0, 5), episode(1, 9), episode(2, 30), episode(3, 1))
    np.testing.assert_array_equal(np.asarray(state[:]), expected)
    again = EpisodeStore.open(path)
    np.testing.assert_array_equal(again.read("state"), expected)
    assert [entry["seed"] for entry in again.episode_metadata] == [0, 1, 2, 3]


class Killed(Exception):
    """The process ends here."""


def test_an_append_cut_at_any_write_leaves_the_finished_episodes(path, monkeypatch):
    put = zarr_local._put
    for n_done in range(100):
        calls = []

        def failing(*arguments, calls=calls, n_done=n_done, **settings):
            calls.append(0)
            if len(calls) > n_done:
                raise Killed
            return put(*arguments, **settings)

        with monkeypatch.context() as patch, EpisodeStore.open(path, mode="a") as store:
            patch.setattr(zarr_local, "_put", failing)
            try:
                store.append(episode(2, 12))
            except Killed:
                assert EpisodeStore.open(path).episode_ends.tolist() == [5, 14]
            else:
                break
    assert n_done > 10
    assert EpisodeStore.open(path).episode_ends.tolist() == [5, 14, 26]


def test_they_cannot_be_edited_but_copied_into_the_newest_layout(path):
    with (
        EpisodeStore.open(path, mode="a") as store,
        pytest.raises(StoreError, match=r"format_version 1 and cannot be edited.*do=copy out="),
    ):
        store.edit(hide=[0])
    new = path.with_name("new.zarr")
    copy(EpisodeStore.open(path), new)
    old, copied = EpisodeStore.open(path), EpisodeStore.open(new)
    assert copied.digest() == old.digest()
    assert copied.episode_metadata == old.episode_metadata
    with EpisodeStore.open(new, mode="a") as store:
        store.edit(hide=[0])
    assert EpisodeStore.open(new).episode_metadata == [{"seed": 1}]


def test_a_version_that_was_changed_to_the_old_one_is_noticed(tmp_path):
    path = tmp_path / "new.zarr"
    store = EpisodeStore.create(path, CONTRACT)
    store.append(episode(0, 5))
    store.append(episode(1, 5))
    store.edit(hide=[0])
    zarr.open_group(path, mode="r+").attrs["format_version"] = 1
    with pytest.raises(StoreError, match=r"the attributes in zarr.json are damaged"):
        EpisodeStore.open(path)


def test_the_identity_of_an_old_store_changes_with_its_files(path):
    before = EpisodeStore.open(path).identity()
    assert EpisodeStore.open(path).identity() == before
    with EpisodeStore.open(path, mode="a") as store:
        store.append(episode(2, 3))
    assert EpisodeStore.open(path).identity() != before
