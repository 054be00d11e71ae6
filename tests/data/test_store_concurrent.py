"""Readers in other processes while one writes, and what they see when they look again."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.store import EpisodeStore
from data.types import Contract, Field

CONTRACT = Contract({"state": Field((2,)), "camera": Field((48, 48, 3), "uint8")}, Field((1,)), 0.1)
N_EPISODES = 25
WRITE = f"""
import sys
sys.path.insert(0, sys.argv[1])
from test_store_concurrent import episode, EpisodeStore
with EpisodeStore.open(sys.argv[2], mode="a") as store:
    for index in range(1, {N_EPISODES}):
        store.append(episode(index), seed=index)
"""


def episode(index: int) -> dict[str, np.ndarray]:
    length = 1 + 7 * index % 30
    steps = np.arange(length)
    return {
        "state": np.stack([np.full(length, index), steps], axis=1).astype(np.float32),
        "camera": np.full((length, 48, 48, 3), index, np.uint8)
        + steps.astype(np.uint8)[:, None, None, None],
        "action": np.full((length, 1), index, np.float32),
    }


def check(store: EpisodeStore, n: int) -> None:
    """The store shows exactly the first n episodes, in every number."""
    episodes = [episode(index) for index in range(n)]
    assert store.episode_ends.tolist() == np.cumsum([len(e["action"]) for e in episodes]).tolist()
    assert [entry["seed"] for entry in store.episode_metadata] == list(range(n))
    for name in CONTRACT.fields:
        np.testing.assert_array_equal(store.read(name), np.concatenate([e[name] for e in episodes]))


def test_readers_see_whole_episodes_while_another_process_writes(tmp_path):
    path = tmp_path / "store.zarr"
    # Shards that are full soon, so that many files come and change.
    with EpisodeStore.create(path, CONTRACT, shard_bytes=2**18) as store:
        store.append(episode(0), seed=0)
    first = EpisodeStore.open(path)
    check(first, 1)
    follower = EpisodeStore.open(path)
    arguments = [sys.executable, "-c", WRITE, Path(__file__).parent, path]
    seen = []
    with subprocess.Popen(arguments) as writer:
        while writer.poll() is None:
            n = follower.n_episodes
            check(follower, n)
            late = EpisodeStore.open(path)
            assert late.n_episodes >= n
            check(late, late.n_episodes)
            assert first.n_episodes == 1
            seen.append(follower.refresh().n_episodes)
    assert writer.returncode == 0
    check(follower.refresh(), N_EPISODES)
    assert seen == sorted(seen)
    check(first, 1)  # What was there when it was opened.
    check(first.refresh(), N_EPISODES)


def test_a_snapshot_outlives_edits(tmp_path):
    path = tmp_path / "store.zarr"
    with EpisodeStore.create(path, CONTRACT) as store:
        for index in range(3):
            store.append(episode(index), seed=index)
        reader = EpisodeStore.open(path)
        store.edit(hide=[0])
        store.edit(hide=[0])
        store.append(episode(3), seed=3)
        check(reader, 3)
        assert [entry["seed"] for entry in reader.refresh().episode_metadata] == [2, 3]


@pytest.mark.parametrize("is_fast", [True, False])
def test_a_reader_of_before_reads_files_that_were_replaced(tmp_path, monkeypatch, is_fast):
    if not is_fast:
        monkeypatch.setattr("data.reading.ChunkReader.of", lambda *_, **__: None)
    path = tmp_path / "store.zarr"
    with EpisodeStore.create(path, CONTRACT) as store:
        for index in range(3):
            store.append(episode(index), seed=index)
        reader = EpisodeStore.open(path)
        check(reader, 3)
        for index in range(3, 9):
            store.append(episode(index), seed=index)
            check(reader, 3)
