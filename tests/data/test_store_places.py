"""Stores in archives and at other locations that fsspec knows are read; they are never written."""

import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr

from data.dataset import WindowDataset
from data.location import location, remote_files
from data.store import EpisodeStore, StoreError
from data.types import Contract, Field, Horizons

CONTRACT = Contract({"state": Field((2,)), "camera": Field((48, 48, 3), "uint8")}, Field((1,)), 0.1)


def episode(index: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    return {
        "state": rng.normal(size=(40, 2)).astype(np.float32),
        "camera": rng.integers(0, 256, (40, 48, 48, 3), dtype=np.uint8),
        "action": rng.normal(size=(40, 1)).astype(np.float32),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "store.zarr"
    with EpisodeStore.create(path, CONTRACT, shard_bytes=2**17) as store:
        for index in range(4):
            store.append(episode(index), seed=index)
        store.edit(hide=[1])
    return path


def files_of(path: Path) -> dict[str, bytes]:
    files = [file for file in path.rglob("*") if file.is_file()]
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def in_memory(path: Path) -> str:
    memory = fsspec.filesystem("memory")
    for name, content in files_of(path).items():
        memory.pipe(f"/{path.parent.name}/{name}", content)
    return f"memory://{path.parent.name}"


def in_archive(path: Path) -> str:
    archive = path.parent / "archive.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for name, content in files_of(path).items():
            target.writestr(f"inner/store.zarr/{name}", content)
    return f"zip://inner/store.zarr::{archive}"


@pytest.mark.parametrize("move", [in_memory, in_archive, lambda path: f"file://{path}"])
def test_a_store_elsewhere_is_the_same(path, move):
    store = EpisodeStore.open(move(path))
    assert store.contract == CONTRACT
    assert [entry["seed"] for entry in store.episode_metadata] == [0, 2, 3]
    for name in CONTRACT.fields:
        expected = np.concatenate([episode(index)[name] for index in (0, 2, 3)])
        np.testing.assert_array_equal(store.read(name), expected)
        rows = np.array([0, 1, 39, 40, 77, 119])
        np.testing.assert_array_equal(store.read_rows(name, rows), expected[rows])
    here = EpisodeStore.open(path)
    assert (store.digest(), store.identity()) == (here.digest(), here.identity())
    dataset = WindowDataset(store, Horizons(obs=1, pred=4, action=2))
    assert len(dataset) == 3 * 39
    assert store.refresh().n_episodes == 3


@pytest.mark.parametrize("move", [in_memory, in_archive])
def test_damage_elsewhere_is_noticed(path, move):
    file = path / "data/camera/c/1/0/0/0"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"data/camera is damaged"):
        EpisodeStore.open(move(path)).read("camera")


def test_a_swapped_shard_elsewhere_is_noticed(path):
    files = [path / f"data/camera/c/{shard}/0/0/0" for shard in (0, 1)]
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, reversed(contents), strict=True):
        file.write_bytes(content)
    with pytest.raises(StoreError, match="is not the one that was written there"):
        EpisodeStore.open(in_archive(path)).read("camera")


def test_a_foreign_store_in_an_archive(tmp_path):
    path = tmp_path / "foreign.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    for name, field in CONTRACT.fields.items():
        group.create_array(f"data/{name}", data=episode(0)[name], chunks=(16, *field.shape))
    group.create_array("meta/episode_ends", data=np.array([10, 40]))
    archive = in_archive(path)
    store = EpisodeStore.open(archive, contract=CONTRACT)
    assert store.episode_ends.tolist() == [10, 40]
    np.testing.assert_array_equal(store.read("camera"), episode(0)["camera"])
    assert store.identity() == EpisodeStore.open(archive, contract=CONTRACT).identity()


def test_elsewhere_is_not_written(path):
    place = in_memory(path)
    with pytest.raises(StoreError, match="can only be read, not written to: give a folder"):
        EpisodeStore.open(place, mode="a")
    with pytest.raises(StoreError, match="can only be read, not created: give a folder"):
        EpisodeStore.create(f"{place}/new", CONTRACT)
    with pytest.raises(StoreError, match="open for reading"):
        EpisodeStore.open(place).append(episode(0))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("memory://nothing", "is not a zarr group"),
        ("zip://store.zarr::/nowhere.zip", "is not a zarr group.*No such file"),
        ("unknown://x", "is not a zarr group.*Protocol not known: unknown"),
        ("file:///nowhere.zarr", "/nowhere.zarr does not exist"),
    ],
)
def test_a_wrong_location_is_refused(place, message):
    with pytest.raises(StoreError, match=message):
        EpisodeStore.open(place)


def test_a_location_whose_library_is_missing_says_so(monkeypatch):
    def missing(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("data.location.FsspecStore.from_url", missing)
    with pytest.raises(StoreError, match="needs a library that is not there: Install s3fs"):
        EpisodeStore.open("s3://bucket/store.zarr")


def test_locations():
    assert location("a/b.zarr") == Path("a/b.zarr")
    assert location(Path("/a")) == Path("/a")
    assert location("file:///a/with%20space") == Path("/a/with space")
    assert location("zip://a::b.zip") == "zip://a::b.zip"


def test_the_identity_of_a_foreign_store_elsewhere_changes_with_its_files(tmp_path, monkeypatch):
    identities = []
    for scale in (1, 2):
        path = tmp_path / f"{scale}.zarr"
        group = zarr.open_group(path, mode="w", zarr_format=2)
        for name in CONTRACT.fields:
            group.create_array(f"data/{name}", data=episode(0)[name] // scale)
        group.create_array("meta/episode_ends", data=np.array([40]))
        store = EpisodeStore.open(in_memory(path), contract=CONTRACT)
        identities += [store.identity(), store.identity()]
    assert identities[0] == identities[1] != identities[2] == identities[3]
    # Where a location does not tell about its files, nobody can say that it is the same.
    monkeypatch.setattr("data.location._told", lambda place: [])
    assert store.identity() != store.identity()


@pytest.mark.parametrize(
    ("told", "is_known"),
    [
        ({"size": 3, "LastModified": "2024-01-01"}, True),
        ({"size": 3, "ETag": "a"}, True),
        ({"size": 3, "last-modified": "a"}, True),
        ({"size": 3, "CRC": 7}, True),
        ({"size": 3, "mtime": None}, False),
        ({"size": 3, "type": "file"}, False),
    ],
)
def test_files_of_which_only_the_size_is_told_may_have_changed(monkeypatch, told, is_known):
    """As a page of links on a web server does."""
    memory = type(fsspec.filesystem("memory"))
    files = {"/x/a": {"name": "a", **told}, "/x/b": {"name": "b", "size": 1, "etag": "b"}}
    monkeypatch.setattr(memory, "find", lambda *_, **__: files)
    assert (remote_files("memory://x") == remote_files("memory://x")) == is_known


def test_a_location_that_cannot_be_listed_may_have_changed(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no such thing here")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", fail)
    assert remote_files("memory://x") != remote_files("memory://x")
