"""What an append or an edit leaves is on the disk before it counts; failing disks are told."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr.storage._local as zarr_local

from data import durable
from data.shard_files import replace_file
from data.store import EpisodeStore, StoreError
from data.types import Contract, Field

CONTRACT = Contract({"state": Field((2,)), "camera": Field((48, 48, 3), "uint8")}, Field((2,)), 0.1)


def episode(length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(length)
    return {
        "state": rng.normal(size=(length, 2)).astype(np.float32),
        "camera": rng.integers(0, 256, (length, 48, 48, 3), dtype=np.uint8),
        "action": rng.normal(size=(length, 2)).astype(np.float32),
    }


@pytest.fixture
def store(tmp_path) -> EpisodeStore:
    store = EpisodeStore.create(tmp_path / "store.zarr", CONTRACT, shard_bytes=2**18)
    for length in (3, 40):
        store.append(episode(length))
    return store


def inodes(path: Path) -> dict[Path, int]:
    """Of files, which are new ones where they were replaced, and of folders."""
    return {file: file.stat().st_ino for file in path.rglob("*") if file.name != ".writer"}


@pytest.mark.parametrize(
    "change",
    [lambda store: store.append(episode(90), seed=1), lambda store: store.edit(hide=[0])],
    ids=["append", "edit"],
)
def test_all_that_changed_is_flushed_before_it_counts_and_the_commit_after(
    store, monkeypatch, change: Callable[[EpisodeStore], None]
):
    assert isinstance(store.path, Path)
    commit, before = store.path / "zarr.json", inodes(store.path)
    flushed: list[int] = []
    n_before_commit: list[int] = []
    sync, put = os.fsync, zarr_local._put

    def noted_sync(descriptor: int) -> None:
        sync(descriptor)
        flushed.append(os.fstat(descriptor).st_ino)

    def noted_put(path, *arguments, **settings):
        if path == commit:
            n_before_commit.append(len(flushed))
        return put(path, *arguments, **settings)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(zarr_local, "_put", noted_put)
    change(store)
    after = inodes(store.path)
    changed = {place for place, inode in after.items() if before.get(place) != inode}
    names = {place.parent for place in changed if place.is_file()}
    n_first = n_before_commit[-1]  # Zarr tries whether it is there before.
    wanted = {after[place] for place in (changed | names) - {commit, store.path} if place.exists()}
    assert len(wanted) >= 2
    assert wanted <= set(flushed[:n_first])
    assert after[commit] in flushed[n_first:]
    assert store.path.stat().st_ino in flushed[n_first:]


def test_a_disk_that_cannot_keep_it_is_told_and_nothing_counts(store, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreError, match=r"Input/output error.* 2 finished episodes are safe"):
            store.append(episode(5))
    assert EpisodeStore.open(store.path).n_episodes == store.n_episodes == 2
    store.append(episode(5))
    np.testing.assert_array_equal(store.read("state", episodes=[2]), episode(5)["state"])


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_only_a_system_that_cannot_flush_folders_does_without(tmp_path, monkeypatch, code):
    sync = os.fsync

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    (tmp_path / "file").write_text("some")
    monkeypatch.setattr(os, "fsync", fail)
    if code == errno.EINVAL:
        durable.flush(tmp_path, [tmp_path / "file"])
    else:
        with pytest.raises(OSError, match="Input/output"):
            durable.flush(tmp_path, [tmp_path / "file"])


def test_what_replaces_a_file_is_on_the_disk_before_it_does(tmp_path, monkeypatch):
    file, order = tmp_path / "shard", []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (order.append("flushed"), sync(number)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replaced"), replace(a, b)))
    replace_file(file, b"old")  # Where there is nothing yet, nothing can be lost.
    replace_file(file, b"new")
    assert order == ["replaced", "flushed", "replaced"]
    assert file.read_bytes() == b"new"
