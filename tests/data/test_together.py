"""Episodes that are gathered and written together: the same files, all or none, none lost."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from plain_store import plain_store

import data.append
import data.writing
from data import edit, shard_files
from data.codec import Jpeg
from data.store import EpisodeStore, StoreError
from data.types import Contract, Field

CONTRACT = Contract(
    {
        "state": Field((2,)),
        "camera": Field((48, 48, 3), "uint8"),  # An episode fills chunks of both cameras.
        "hand": Field((64, 64, 3), "uint8"),
    },
    Field((1,)),
    0.1,
)
ROOT = Path(__file__).resolve().parents[2]


def episode(index: int, length: int | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    length = int(rng.integers(1, 40)) if length is None else length
    return {
        "state": rng.normal(size=(length, 2)).astype(np.float32),
        "camera": rng.integers(0, 256, (length, 48, 48, 3), dtype=np.uint8),
        "hand": rng.integers(0, 256, (length, 64, 64, 3), dtype=np.uint8),
        "action": np.full((length, 1), index, np.float32),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.zarr"


@pytest.fixture
def store(path: Path) -> EpisodeStore:
    store = EpisodeStore.create(path, CONTRACT, shard_bytes=2**18)
    store.append(episode(0), number=0)
    return store


def numbers(path: Path) -> list[int]:
    """Which episodes are on the disk, by every number of them and by their metadata."""
    store = EpisodeStore.open(path)
    found = [entry["number"] for entry in store.episode_metadata]
    for place, index in enumerate(found):
        for name, values in episode(index).items():
            np.testing.assert_array_equal(store.read(name, episodes=[place]), values)
    return found


def append_together(
    store: EpisodeStore, indices: list[int], then: Callable[[], object] = lambda: None
) -> None:
    with store.together():
        for index in indices:
            store.append(episode(index), number=index)
        then()


def files_of(path: Path) -> dict[str, bytes]:
    files = [file for file in path.rglob("*") if file.is_file() and file.name != ".writer"]
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


@pytest.mark.parametrize("codec", [None, Jpeg(80)])
@pytest.mark.parametrize("groups", [[12], [1, 5, 1, 1, 4]])
def test_the_files_are_those_of_episodes_that_were_written_one_by_one(tmp_path, groups, codec):
    paths = [tmp_path / name / "store.zarr" for name in ("one", "together")]
    stores = [EpisodeStore.create(p, CONTRACT, shard_bytes=2**18, codec=codec) for p in paths]
    for index in range(12):
        stores[0].append(episode(index), number=index)
    indices = iter(range(12))
    for n in groups:
        with stores[1].together() as store:
            assert store is stores[1]
            for _ in range(n):
                index = next(indices)
                store.append(episode(index), number=index)
    one, together = (files_of(path) for path in paths)
    assert len(one) > 20
    assert one == together
    if codec is None:
        assert numbers(paths[1]) == list(range(12))


def test_they_become_visible_together(store, path):
    with store.together():
        for index in (1, 2, 3):
            store.append(episode(index), number=index)
            assert (numbers(path), store.n_episodes) == ([0], 1)
    assert (numbers(path), store.n_episodes) == ([0, 1, 2, 3], 4)
    store.append(episode(4), number=4)  # From now on at once again.
    assert numbers(path) == [0, 1, 2, 3, 4]


def test_none_waits_longer_than_is_said(store, path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("data.writing.time.monotonic", lambda: now[0])
    with store.together(seconds=5):
        for index, time, there in ((1, 104, [0]), (2, 105, [0, 1, 2]), (3, 109, [0, 1, 2])):
            now[0] = time
            store.append(episode(index), number=index)
            assert numbers(path) == there
        now[0] = 110
        store.append(episode(4), number=4)
        assert numbers(path) == [0, 1, 2, 3, 4]


def test_no_more_is_gathered_than_memory_is_meant_for(store, path, monkeypatch):
    size = sum(values.nbytes for values in episode(1).values())
    monkeypatch.setattr(data.writing, "GATHERED_BYTES", size + 1)
    with store.together():
        store.append(episode(1), number=1)
        assert numbers(path) == [0]
        store.append(episode(2), number=2)
        assert numbers(path) == [0, 1, 2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_is_whole_stays_whatever_ends_it(store, path, error):
    def end() -> None:
        raise error

    with pytest.raises(error):
        append_together(store, [1, 2], end)
    assert numbers(path) == [0, 1, 2]


@pytest.mark.parametrize("n_done", range(4))
def test_ctrl_c_while_they_are_written_loses_none_and_doubles_none(
    store, path, monkeypatch, n_done
):
    calls, write = [], shard_files.replace_file

    def interrupted(file, content):
        calls.append(file)
        if len(calls) == n_done + 1:
            raise KeyboardInterrupt
        write(file, content)

    monkeypatch.setattr(shard_files, "replace_file", interrupted)
    with pytest.raises(KeyboardInterrupt), store.together(seconds=0):
        store.append(episode(1), number=1)
    assert numbers(path) == [0, 1]


def test_ctrl_c_once_they_are_written_doubles_none(store, path, monkeypatch):
    commit = data.append._commit

    def interrupted(*arguments):
        commit(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(data.append, "_commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        append_together(store, [1, 2])
    assert numbers(path) == [0, 1, 2]


def test_ctrl_c_twice_once_they_are_written_doubles_none(store, path, monkeypatch):
    commit, refresh, calls = data.append._commit, data.writing.Writing.refresh, []

    def interrupted(*arguments):
        commit(*arguments)
        raise KeyboardInterrupt

    def interrupted_again(writing):
        calls.append(writing)
        if len(calls) == 1:
            raise KeyboardInterrupt
        refresh(writing)

    def append() -> None:
        with store.together(seconds=0):
            store.append(episode(1), number=1)

    monkeypatch.setattr(data.append, "_commit", interrupted)
    monkeypatch.setattr(data.writing.Writing, "refresh", interrupted_again)
    with pytest.raises(KeyboardInterrupt):
        append()
    assert numbers(path) == [0, 1]


def test_ctrl_c_between_a_commit_and_the_end_doubles_none(store, path, monkeypatch):
    commit, calls = data.append._commit, []

    def interrupted(*arguments):
        commit(*arguments)
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt

    def append() -> None:
        with store.together(seconds=0):
            store.append(episode(1), number=1)

    monkeypatch.setattr(data.append, "_commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        append()
    assert numbers(path) == [0, 1]


def test_a_full_disk_names_those_that_could_not_be_written(store, path, monkeypatch):
    def full(file, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    message = r"episodes 1\.\.2 could not be .*: No space left.* The 1 finished episodes are safe"
    with monkeypatch.context() as patch:
        patch.setattr(shard_files, "replace_file", full)
        with pytest.raises(StoreError, match=message):
            append_together(store, [1, 2])
    store.append(episode(3), number=3)
    assert numbers(path) == [0, 3]


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_together import episode, EpisodeStore
with EpisodeStore.open(sys.argv[2], mode="a") as store, store.together():
    for index in (1, 2):
        store.append(episode(index), number=index)
    if sys.argv[3] == "late":
        from data import writing
        writing.append_episodes.__globals__["_commit"] = lambda *_: os.kill(os.getpid(), 9)
        store.edit(metadata={0: {"number": 0}})
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["early", "late"])
def test_a_kill_takes_what_is_gathered_and_nothing_else(store, path, when):
    store.close()
    arguments = [sys.executable, "-c", KILLED, Path(__file__).parent, path, when]
    assert subprocess.run(arguments, cwd=ROOT).returncode == -signal.SIGKILL
    assert numbers(path) == [0]
    with EpisodeStore.open(path, mode="a") as store, store.together():
        store.append(episode(5), number=5)
    assert numbers(path) == [0, 5]


def test_an_edit_and_a_close_come_after_what_was_appended_before(store, path):
    with store.together():
        store.append(episode(1), number=1)
        store.append(episode(2), number=2)
        store.edit(hide=[1])
        store.append(episode(3), number=3)
        with store.together(seconds=0):  # The outer one counts.
            store.append(episode(4), number=4)
            assert numbers(path) == [0, 2]
        store.close()
        assert numbers(path) == [0, 2, 3, 4]
        with pytest.raises(StoreError, match="open for reading"):
            store.append(episode(5), number=5)
    with pytest.raises(StoreError, match="open for reading"), store.together():
        pass


def test_another_object_of_the_process_may_append_meanwhile(store, path):
    other = EpisodeStore.open(path, mode="a")
    with store.together():
        store.append(episode(1), number=1)
        other.append(episode(2), number=2)
        store.append(episode(3), number=3)
    other.append(episode(4), number=4)
    assert numbers(path) == [0, 2, 1, 3, 4]


def test_threads_may_append_to_one_store(store, path):
    def append(first: int) -> None:
        for index in range(first, first + 5):
            store.append(episode(index), number=index)

    with store.together(seconds=0.001):
        threads = [threading.Thread(target=append, args=(first,)) for first in (1, 6, 11)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(numbers(path)) == list(range(16))


def test_what_another_thread_appends_at_the_very_end_is_not_lost(store, path, monkeypatch):
    settle = data.writing.Writing.settle
    other = threading.Thread(target=lambda: store.append(episode(2), number=2))

    def settled(writing: data.writing.Writing) -> None:
        settle(writing)
        if other.ident is None:
            other.start()
            other.join(timeout=0.3)  # It may have to wait for this thread.

    monkeypatch.setattr(data.writing.Writing, "settle", settled)
    append_together(store, [1])
    other.join()
    assert numbers(path) == [0, 1, 2]


def test_a_close_lets_others_write_even_where_nothing_can_be_written(store, path, monkeypatch):
    def full(file, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with store.together():
        store.append(episode(1), number=1)
        with monkeypatch.context() as patch:
            patch.setattr(shard_files, "replace_file", full)
            with pytest.raises(StoreError, match=r"episode 1 could not be .*: No space left"):
                store.close()
    assert not (path / ".writer").exists()
    assert store.n_episodes == 1


def test_a_store_that_was_taken_away_is_not_made_anew(store, path):
    with pytest.raises(StoreError, match="moved or removed"):
        append_together(store, [1], lambda: shutil.rmtree(path))
    assert not path.exists()


def test_an_episode_that_does_not_fit_is_refused_at_once(store, path):
    with store.together():
        store.append(episode(1), number=1)
        with pytest.raises(StoreError, match="state has shape"):
            store.append({**episode(2), "state": np.zeros((3, 5))})
        values = episode(3)
        store.append(values, number=3)
        values["state"][:] = 0.0  # What was appended is a copy.
    assert numbers(path) == [0, 1, 3]


def test_a_store_of_version_1_commits_each_as_before(path):
    plain_store(path, CONTRACT)
    with EpisodeStore.open(path, mode="a") as store, store.together():
        for index in (1, 2):
            store.append(episode(index), number=index)
            assert numbers(path)[-1] == index


# What is built aside.


def test_a_build_is_on_the_disk_before_it_has_its_name(store, path, monkeypatch, tmp_path):
    for index in range(1, 30):
        store.append(episode(index, 3), number=index)
    flushed: list[tuple[str, int]] = []
    sync, rename = os.fsync, os.rename

    def noted_sync(descriptor):
        sync(descriptor)
        flushed.append(("flushed", os.fstat(descriptor).st_ino))

    def noted_rename(source, target, **settings):
        if Path(target) == tmp_path / "new.zarr":
            wanted = [Path(source), *Path(source).rglob("*")]
            left.extend(p for p in wanted if ("flushed", p.stat().st_ino) not in flushed)
            flushed.append(("renamed", 0))
        rename(source, target, **settings)

    left: list[Path] = []
    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "rename", noted_rename)
    edit.copy(store, tmp_path / "new.zarr")
    assert left == []
    after = flushed[flushed.index(("renamed", 0)) :]
    assert ("flushed", tmp_path.stat().st_ino) in after
    # Of 30 episodes; each alone has 12 files.
    assert len(flushed) < 100
    assert EpisodeStore.open(tmp_path / "new.zarr").n_episodes == 30


BUILD = """
import os, signal, sys
from data import edit, writing
from data.store import EpisodeStore
writing.GATHERED_BYTES = 2**17
n = [0]
def progress(n_steps):
    n[0] += 1
    if n[0] == 20:
        os.kill(os.getpid(), signal.SIGKILL)
edit.copy(EpisodeStore.open(sys.argv[1]), sys.argv[2], progress=progress)
"""


def test_a_build_that_is_killed_leaves_nothing_under_its_name(store, path, tmp_path):
    for index in range(1, 24):
        store.append(episode(index), number=index)
    new = tmp_path / "new.zarr"
    arguments = [sys.executable, "-c", BUILD, path, new]
    assert subprocess.run(arguments, cwd=ROOT).returncode == -signal.SIGKILL
    assert not new.exists()
    assert list(tmp_path.glob(".new.zarr.*.unfinished"))  # It had begun.
    edit.copy(store, new)
    assert numbers(new) == list(range(24))
