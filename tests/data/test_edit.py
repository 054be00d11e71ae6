"""Editing stores: hidden episodes are seen by nobody, nothing is lost, all or nothing happens."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr.storage._local as zarr_local

from data import edit
from data.codec import Jpeg, codec_of
from data.dataset import WindowDataset, split_episodes
from data.edits import PREFIX, read_edits
from data.mixture import Mixture
from data.place import Reading
from data.store import EpisodeStore, StoreError
from data.types import Contract, ContractError, Field, Horizons

CONTRACT = Contract(
    {"state": Field((2,)), "camera": Field((32, 32, 3), "uint8")}, Field((2,)), 0.1, task="reach"
)
N = 6


def length(index: int) -> int:
    return 5 + 40 * (index % 2)


def episode(index: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    return {
        "state": rng.normal(size=(length(index), 2)).astype(np.float32),
        "camera": rng.integers(0, 256, (length(index), 32, 32, 3), dtype=np.uint8),
        "action": rng.normal(size=(length(index), 2)).astype(np.float32),
    }


def make(path: Path, numbers: Sequence[int] = range(N), contract: Contract = CONTRACT) -> Path:
    with EpisodeStore.create(path, contract, shard_bytes=2**18) as store:
        for index in numbers:
            store.append(episode(index), seed=index, success=index % 3 != 0)
    return path


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("edit") / "store.zarr")


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "store.zarr"))


@pytest.fixture
def store(path: Path) -> Iterator[EpisodeStore]:
    with EpisodeStore.open(path, mode="a") as store:
        yield store


def check(store: EpisodeStore, numbers: list[int]) -> None:
    """The store shows exactly these of the episodes above, by every way to read."""
    assert [entry["seed"] for entry in store.episode_metadata] == numbers
    lengths = [length(index) for index in numbers]
    assert store.episode_ends.tolist() == np.cumsum(lengths).tolist()
    assert (store.n_episodes, store.n_steps) == (len(numbers), sum(lengths))
    assert store.lengths_of(np.arange(len(numbers))).tolist() == lengths
    for name in CONTRACT.fields:
        parts = [episode(index)[name] for index in numbers]
        everything = np.concatenate(parts)
        np.testing.assert_array_equal(store.read(name), everything)
        for shown, part in enumerate(parts):
            np.testing.assert_array_equal(store.read(name, episodes=[shown]), part)
        rows = np.arange(0, store.n_steps, 7)
        np.testing.assert_array_equal(store.read_rows(name, rows), everything[rows])


# In place.


def test_hidden_episodes_are_seen_by_nobody_until_they_are_shown(store, path):
    edit.hide(store, [1, 4])
    for seen in (store, EpisodeStore.open(path)):
        check(seen, [0, 2, 3, 5])
        assert seen.n_hidden == 2
    edit.hide(store, np.array([0, 2]))  # by the numbers that are shown now
    check(EpisodeStore.open(path), [2, 5])
    edit.show_all(store)
    check(EpisodeStore.open(path), list(range(N)))
    assert store.n_hidden == 0
    edit.keep(store, [5, 0])
    check(EpisodeStore.open(path), [0, 5])


def test_all_may_be_hidden(store):
    edit.keep(store, [])
    assert (store.n_episodes, store.n_steps, store.n_hidden) == (0, 0, N)
    assert store.episode_metadata == []
    assert store.read("camera").shape == (0, 32, 32, 3)
    with pytest.raises(StoreError, match="zero episodes to learn from"):
        WindowDataset(store, Horizons(obs=1, pred=2, action=1))


def test_appending_goes_on_after_hidden_episodes(store, path):
    edit.hide(store, [0, N - 1])
    store.append(episode(7), seed=7)
    check(EpisodeStore.open(path), [1, 2, 3, 4, 7])
    edit.hide(store, [4])
    store.append(episode(8), seed=8)
    check(EpisodeStore.open(path), [1, 2, 3, 4, 8])
    edit.show_all(store)
    check(EpisodeStore.open(path), [*range(N), 7, 8])


def test_a_store_with_hidden_episodes_is_learned_from_as_one_without_them(store, tmp_path):
    edit.hide(store, [0, 3])
    without = EpisodeStore.open(make(tmp_path / "without.zarr", [1, 2, 4, 5]))
    assert store.digest() == without.digest()
    horizons = Horizons(obs=2, pred=4, action=2)
    sets = [WindowDataset(shown, horizons) for shown in (store, without)]
    sets += [WindowDataset(Mixture([shown, without]), horizons) for shown in (store, without)]
    for a, b in (sets[:2], sets[2:]):
        assert len(a) == len(b)
        batches = [one.batch(torch.arange(len(one))) for one in (a, b)]
        assert torch.equal(batches[0].action, batches[1].action)
        for name in CONTRACT.observation:
            assert torch.equal(batches[0].observation[name], batches[1].observation[name])


def test_messages_count_what_is_shown(path):
    with EpisodeStore.open(path, mode="a") as store:
        edit.hide(store, [0])
    with pytest.raises(StoreError, match=r"episode 5 of .*, which has 5: choose 0\.\.4"):
        EpisodeStore.open(path).read("state", episodes=[5])
    with pytest.raises(StoreError, match=r"rows 0\.\.145 of a store of 145 steps"):
        EpisodeStore.open(path).read_rows("state", np.array([0, 145]))


def test_labels_replace_and_remove_entries(store, path):
    edit.hide(store, [0])
    edit.relabel(store, [0, 2], {"operator": "anna", "success": None, "seed": 9})
    metadata = EpisodeStore.open(path).episode_metadata
    assert metadata[0] == {"operator": "anna", "seed": 9}
    assert metadata[1] == {"seed": 2, "success": True}
    assert metadata[2] == {"operator": "anna", "seed": 9}
    edit.show_all(store)
    assert EpisodeStore.open(path).episode_metadata[0] == {"seed": 0, "success": False}
    edit.relabel(store, [1], {"operator": None})
    assert store.episode_metadata[1] == {"seed": 9}


def test_metadata_that_is_given_away_is_a_copy(store):
    edit.relabel(store, [0], {"operator": "anna"})
    store.episode_metadata[0]["operator"] = "ben"
    assert store.episode_metadata[0]["operator"] == "anna"


@pytest.mark.parametrize("number", [-1, N, 99])
def test_episodes_that_do_not_exist_are_refused(store, number):
    for change in (
        lambda: edit.hide(store, [0, number]),
        lambda: edit.relabel(store, [0, number], {"a": 1}),
        lambda: store.edit(metadata={number: {}}),
    ):
        with pytest.raises(
            StoreError, match=rf"episode {number} of .*, which has 6: choose 0\.\.5"
        ):
            change()
    check(store, list(range(N)))


def test_labels_must_be_json(store):
    with pytest.raises(StoreError, match="is not JSON"):
        edit.relabel(store, [0], {"operator": object()})


def test_a_store_open_for_reading_is_not_edited(path):
    with pytest.raises(StoreError, match="open it with mode='a' to edit"):
        edit.hide(EpisodeStore.open(path), [0])


class Killed(Exception):
    """The process ends here."""


def test_an_edit_cut_at_any_write_is_not_begun_or_done(path, monkeypatch):
    with EpisodeStore.open(path, mode="a") as store:
        edit.hide(store, [0])
    put = zarr_local._put
    for n_done in range(20):
        calls = []

        def failing(*arguments, calls=calls, n_done=n_done, **settings):
            calls.append(0)
            if len(calls) > n_done:
                raise Killed
            return put(*arguments, **settings)

        with EpisodeStore.open(path, mode="a") as store, monkeypatch.context() as patch:
            patch.setattr(zarr_local, "_put", failing)
            try:
                store.edit(hide=[1, 2], metadata={0: {"seed": 1, "operator": "anna"}})
            except Killed:
                check(store, [1, 2, 3, 4, 5])
                check(EpisodeStore.open(path), [1, 2, 3, 4, 5])
                assert "operator" not in store.episode_metadata[0]
            else:
                break
    assert 2 <= n_done < 19
    check(EpisodeStore.open(path), [1, 4, 5])
    assert EpisodeStore.open(path).episode_metadata[0]["operator"] == "anna"


def test_edits_that_apply_no_more_are_removed(store, path):
    for _ in range(4):
        edit.hide(store, [0])
    assert len(list((path / "meta").glob("edit-*"))) == 2  # This one and that of before.


@pytest.mark.parametrize("damage", ["missing", "changed", "cut"])
def test_damaged_edits_are_noticed(store, path, damage):
    edit.hide(store, [0])
    (file,) = (path / "meta").glob("edit-*/zarr.json")
    if damage == "missing":
        shutil.rmtree(file.parent)
    elif damage == "changed":
        file.write_text(file.read_text().replace("[0]", "[1]"))
    else:
        file.write_text(file.read_text()[:50])
    with pytest.raises(StoreError, match=r"which says what is hidden and relabelled, (is|cannot)"):
        EpisodeStore.open(path)


def test_an_edit_of_a_store_whose_meta_is_damaged_is_refused(store, path):
    (path / "meta/zarr.json").write_bytes(b"\xff")
    with pytest.raises(StoreError, match="/meta is damaged"):
        edit.hide(store, [0])


# Into new stores.


def test_a_copy_has_what_is_shown_and_no_more(store, tmp_path):
    edit.hide(store, [1])
    steps: list[int] = []
    edit.copy(store, tmp_path / "copy.zarr", progress=steps.append)
    assert steps == [length(index) for index in (0, 2, 3, 4, 5)]
    copy = EpisodeStore.open(tmp_path / "copy.zarr")
    check(copy, [0, 2, 3, 4, 5])
    assert copy.n_hidden == 0
    assert copy.contract == CONTRACT
    assert copy.digest() == store.digest()
    edit.copy(store, tmp_path / "some.zarr", episodes=[4, 0])
    check(EpisodeStore.open(tmp_path / "some.zarr"), [0, 5])


def test_a_copy_may_have_another_codec(store, tmp_path):
    edit.copy(store, tmp_path / "copy.zarr", codec=Jpeg(80))
    copy = EpisodeStore.open(tmp_path / "copy.zarr")
    assert codec_of(copy.array("camera")) == Jpeg(80)
    np.testing.assert_array_equal(copy.read("state"), store.read("state"))


def test_metadata_of_any_key_is_copied(tmp_path):
    entries = {"episode": 3, "self": 1, "rows": [1], "entry": {"a": None}}
    with EpisodeStore.create(tmp_path / "a.zarr", CONTRACT) as store:
        store.append(episode(0), **entries)
    edit.copy(store, tmp_path / "b.zarr")
    assert EpisodeStore.open(tmp_path / "b.zarr").episode_metadata == [entries]


def test_a_merge_is_one_store_after_the_other(tmp_path):
    places = replace(CONTRACT, task="place")
    paths = [
        make(tmp_path / "a.zarr", [3, 1]),
        make(tmp_path / "b.zarr", [4], places),
        make(tmp_path / "c.zarr", [0, 5]),
    ]
    stores = [EpisodeStore.open(path) for path in paths]
    edit.merge(stores, tmp_path / "all.zarr")
    merged = EpisodeStore.open(tmp_path / "all.zarr")
    check(merged, [3, 1, 4, 0, 5])
    assert merged.contract == replace(CONTRACT, task="reach, place")
    tasks = [entry["task"] for entry in merged.episode_metadata]
    assert tasks == ["reach", "reach", "place", "reach", "reach"]
    # So that a policy can be told which one is meant.
    assert Mixture([merged], tell_task=True).tasks == ("reach", "place")


def test_episodes_are_added_to_a_store(store, tmp_path):
    other = EpisodeStore.open(make(tmp_path / "other.zarr", [7, 8, 9]))
    edit.add(store, other, episodes=[0, 2])
    check(store, [*range(N), 7, 9])
    with pytest.raises(StoreError, match="cannot be appended to itself"):
        edit.add(store, store)


def test_stores_of_other_numbers_are_not_merged(store, tmp_path):
    other = EpisodeStore.open(make(tmp_path / "other.zarr", [7], replace(CONTRACT, control_dt=0.2)))
    with pytest.raises(ContractError, match=r"control_dt is 0\.1 s in store"):
        edit.merge([store, other], tmp_path / "all.zarr")
    with pytest.raises(ContractError, match=r"control_dt is 0\.1 s in store"):
        edit.add(store, other)
    fewer = Contract({"state": Field((2,))}, CONTRACT.action, 0.1)
    EpisodeStore.create(tmp_path / "fewer.zarr", fewer).close()
    with pytest.raises(ContractError, match="needs the field 'camera'"):
        edit.merge([store, EpisodeStore.open(tmp_path / "fewer.zarr")], tmp_path / "all.zarr")
    with pytest.raises(StoreError, match="a merge of zero stores"):
        edit.merge([], tmp_path / "all.zarr")
    assert not (tmp_path / "all.zarr").exists()


def test_a_split_divides_as_training_does(store, tmp_path):
    train, val = edit.split(store, 0.3, tmp_path / "parts", seed=4)
    learned, held_out = split_episodes(N, 0.3, seed=4)
    assert len(held_out) == 2
    check(EpisodeStore.open(train), learned.tolist())
    check(EpisodeStore.open(val), held_out.tolist())
    assert (train.name, val.name) == ("train.zarr", "val.zarr")
    with pytest.raises(StoreError, match=r"train\.zarr exists already"):
        edit.split(store, 0.3, tmp_path / "parts")


def test_a_split_may_be_a_label(store, path):
    edit.label_split(store, 0.3, seed=4)
    _, held_out = split_episodes(N, 0.3, seed=4)
    metadata = EpisodeStore.open(path).episode_metadata
    parts = [entry["split"] for entry in metadata]
    assert parts == ["val" if index in held_out else "train" for index in range(N)]
    assert [entry["seed"] for entry in metadata] == list(range(N))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 0.0])
def test_a_split_needs_both_parts(store, tmp_path, fraction):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)|leaves none to validate with"):
        edit.split(store, fraction, tmp_path)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)|leaves none to validate with"):
        edit.label_split(store, fraction)


def test_what_is_interrupted_leaves_no_store(store, tmp_path):
    def interrupt(n_steps: int) -> None:
        raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    for write in (
        lambda: edit.copy(store, tmp_path / "new.zarr", progress=interrupt),
        lambda: edit.merge([store], tmp_path / "new.zarr", progress=interrupt),
    ):
        with pytest.raises(KeyboardInterrupt):
            write()
        assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(StoreError, match="exists already: choose another path"):
        edit.copy(store, store.path)
    with pytest.raises(StoreError, match="memory://x can only be read, not created"):
        edit.copy(store, "memory://x")
    with pytest.raises(StoreError, match="memory://x can only be read, not created"):
        edit.split(store, 0.3, "memory://x")


@pytest.mark.parametrize("given", [np.array([False, True] * 3), [1.0], 1, [[0, 1]]])
def test_episodes_are_named_by_their_numbers(store, given, tmp_path):
    for use in (
        store.rows_of,
        store.lengths_of,
        Mixture([store]).rows_of,
        lambda episodes: store.edit(hide=episodes),
        lambda episodes: edit.keep(store, episodes),
        lambda episodes: edit.relabel(store, episodes, {"a": 1}),
        lambda episodes: edit.copy(store, tmp_path / "new.zarr", episodes=episodes),
        lambda episodes: WindowDataset(store, Horizons(1, 2, 1), episodes=episodes),
    ):
        with pytest.raises(StoreError, match="give their numbers as a list of int"):
            use(given)
    check(store, list(range(N)))


def test_a_split_that_is_interrupted_leaves_neither_part(store, tmp_path):
    done: list[int] = []

    def interrupt(n_steps: int) -> None:
        done.append(n_steps)
        if len(done) == N:  # Then only the last episode of "val" is being copied.
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit.split(store, 0.3, tmp_path / "parts", progress=interrupt)
    assert not list((tmp_path / "parts").iterdir())


def test_a_store_is_not_made_within_another(store, tmp_path):
    for path in (store.path / "new.zarr", store.path / "data" / "new.zarr"):
        with pytest.raises(StoreError, match="lies within the store"):
            edit.copy(store, path)
    assert not list(store.path.rglob("*new*"))


@pytest.mark.parametrize("place", ["store", "cache", "host"])
def test_what_is_learned_from_does_not_move_when_the_store_is_edited(store, path, tmp_path, place):
    reading = Reading(place, tmp_path / "cache", memory_fraction=0)
    shown = EpisodeStore.open(path)
    sets = [WindowDataset(s, Horizons(1, 2, 1), reading=reading) for s in (shown, Mixture([shown]))]
    before = [one.batch(torch.arange(len(one))) for one in sets]
    store.edit(hide=[0, 2])
    store.append(episode(N))
    shown.refresh()
    for one, batch in zip(sets, before, strict=True):
        after = one.batch(torch.arange(len(one)))
        assert torch.equal(after.action, batch.action)
        assert torch.equal(after.observation["camera"], batch.observation["camera"])
        statistics = one.arrays()["state"]
        rows = statistics if isinstance(statistics, np.ndarray) else np.concatenate([*statistics])
        np.testing.assert_array_equal(
            rows, np.concatenate([episode(index)["state"] for index in range(N)])
        )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (3, "is not what was written"),
        (json.dumps({"hidden": [7], "metadata": {}}), "not among 2"),
        (json.dumps({"hidden": [], "metadata": {"-1": {}}}), "not among 2"),
    ],
)
def test_edits_of_episodes_that_are_not_there_are_refused(text, told):
    digest = hashlib.sha256(str(text).encode()).hexdigest()
    group = {f"meta/{PREFIX}{digest}": SimpleNamespace(attrs={"edits": text})}
    with pytest.raises(StoreError, match=told):
        read_edits("somewhere", group, digest, n_episodes=2)  # pyright: ignore
