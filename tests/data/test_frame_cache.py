"""A decoded cache: equal to the store, built once, resumed, and never half of it taken for all."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from data import frame_cache
from data.frame_cache import FrameCache, cache_disk
from data.frames import Frames
from data.layout import Source
from data.mixture import Mixture
from data.store import EpisodeStore, StoreError
from data.types import Contract, Field

CONTRACT = Contract(
    observation={"camera": Field((6, 5, 3), dtype="uint8"), "state": Field((3,))},
    action=Field((2,)),
    control_dt=0.1,
)
STEP_BYTES = 6 * 5 * 3


def fill(store: EpisodeStore, lengths, seed=0) -> None:
    rng = np.random.default_rng(seed)
    for length in lengths:
        store.append(
            {
                "camera": rng.integers(0, 256, (length, 6, 5, 3), dtype=np.uint8),
                "state": rng.normal(size=(length, 3)),
                "action": rng.normal(size=(length, 2)),
            }
        )


@pytest.fixture
def store(tmp_path) -> EpisodeStore:
    with EpisodeStore.create(tmp_path / "store.zarr", CONTRACT) as store:
        fill(store, (7, 1, 12))
    return EpisodeStore.open(tmp_path / "store.zarr")


def all_steps(cache: FrameCache) -> np.ndarray:
    return cache.open().gather(torch.arange(cache.n_steps)[None])[0].numpy()


@pytest.mark.parametrize("name", ["camera", "state"])
@pytest.mark.parametrize("is_mapped", [True, False])
def test_steps_are_those_of_the_store_in_any_order(store, tmp_path, name, is_mapped):
    cache = FrameCache.of(tmp_path / "cache", store, name)
    np.testing.assert_array_equal(all_steps(cache), store.read(name))
    field = CONTRACT.fields[name]
    frames = Frames(cache.file, 20, field.shape, np.dtype(field.dtype), is_mapped=is_mapped)
    rows = torch.tensor([[0, 0, 1], [19, 3, 4], [5, 6, 7], [19, 18, 17]])
    np.testing.assert_array_equal(frames.gather(rows).numpy(), store.read(name)[rows.numpy()])
    assert frames.gather(rows[:0]).shape == (0, 3, *field.shape)


def test_what_is_gathered_is_a_copy(store, tmp_path):
    cache = FrameCache.of(tmp_path / "cache", store, "camera")
    cache.open().gather(torch.tensor([[0, 1]])).zero_()
    np.testing.assert_array_equal(all_steps(cache), store.read("camera"))


def test_a_cache_is_built_once_and_says_what_it_is(store, tmp_path):
    cache = FrameCache.of(tmp_path / "cache", store, "camera")
    assert cache_disk(tmp_path / "cache", store, ["camera"]).missing == 20 * STEP_BYTES
    cache.open()
    built = cache.file.stat()
    again = FrameCache.of(tmp_path / "cache", EpisodeStore.open(store.path), "camera")
    again.open()
    assert again.file == cache.file
    assert (built.st_ino, built.st_mtime_ns) == (
        again.file.stat().st_ino,
        again.file.stat().st_mtime_ns,
    )
    assert cache_disk(tmp_path / "cache", store, ["camera"]).missing == 0
    about = json.loads((cache.folder / "about.json").read_text())
    assert (about["field"], about["shape"]) == ("camera", [20, 6, 5, 3])
    assert {f.name for f in cache.folder.iterdir()} == {"steps.raw", "about.json", "lock"}


def test_another_content_is_another_cache(store, tmp_path):
    def file(store, name="camera"):
        return FrameCache.of(tmp_path, store, name).file

    before = file(store)
    with EpisodeStore.open(store.path, mode="a") as more:
        fill(more, (4,), seed=1)
    after = EpisodeStore.open(store.path)
    assert len({before, file(after), file(after, "state")}) == 3
    cache = FrameCache.of(tmp_path, after, "camera")
    np.testing.assert_array_equal(all_steps(cache), after.read("camera"))


def test_the_same_field_of_another_source_is_another_cache(tmp_path):
    group = zarr.open_group(tmp_path / "foreign.zarr", mode="w", zarr_format=2)
    values = np.arange(40, dtype=np.float32).reshape(10, 4)
    for key in ("data/state", "data/action"):
        group.create_array(key, data=values)
    group.create_array("meta/episode_ends", data=np.array([10]))
    contract = Contract({"state": Field((2,))}, Field((4,)), 0.1)
    for elements in ([0, 1], [2, 3]):
        store = EpisodeStore.open(
            tmp_path / "foreign.zarr",
            contract=contract,
            sources={"state": Source("state", elements)},
        )
        steps = all_steps(FrameCache.of(tmp_path / "cache", store, "state"))
        np.testing.assert_array_equal(steps, values[:, elements])


def test_a_mixture_has_a_cache_of_its_own(store, tmp_path):
    with EpisodeStore.create(tmp_path / "other.zarr", CONTRACT) as other:
        fill(other, (5,), seed=1)
    mixture = Mixture([store, other])
    cache = FrameCache.of(tmp_path / "cache", mixture, "camera")
    np.testing.assert_array_equal(all_steps(cache), mixture.read("camera"))
    assert cache.file != FrameCache.of(tmp_path / "cache", Mixture([other, store]), "camera").file


@pytest.fixture
def small_blocks(monkeypatch):
    """Two steps are read at once, and each of them is noted as safe."""
    monkeypatch.setattr(frame_cache, "SAFE_BYTES", 1)
    blocks = frame_cache.Blocks

    def small(store, name, rows):
        return blocks(store, name, rows, n_bytes=2 * STEP_BYTES)

    monkeypatch.setattr(frame_cache, "Blocks", small)


def test_an_interrupted_build_goes_on_where_it_was(store, tmp_path, monkeypatch, small_blocks):
    cache = FrameCache.of(tmp_path / "cache", store, "camera")
    read, seen = EpisodeStore.read_rows, []

    def interrupted(self, key, rows):
        seen.append(int(rows[0]))
        if rows[0] >= 8:
            raise KeyboardInterrupt
        return read(self, key, rows)

    monkeypatch.setattr(EpisodeStore, "read_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.open()
    assert not cache.is_built()
    assert not cache.file.exists()

    def noted(self, key, rows):
        seen.append(int(rows[0]))
        return read(self, key, rows)

    seen.clear()
    monkeypatch.setattr(EpisodeStore, "read_rows", noted)
    np.testing.assert_array_equal(all_steps(cache), store.read("camera"))
    assert seen == [8, 10, 12, 14, 16, 18]


@pytest.mark.parametrize(
    ("progress", "n_bytes"),
    [
        *(("", 1800), ("{", 1800), ("[]", 1800), ('{"n_steps": 99}', 1800)),
        *(('{"n_steps": "3"}', 1800), ('{"n_steps": true}', 1800), ('{"n_steps": -1}', 1800)),
        *(('{"n_steps": 8}', 1799), ('{"n_steps": 8}', 0), ('{"n_steps": 8}', None)),
    ],
)
def test_a_build_begins_anew_where_nobody_knows_how_far_it_was(store, tmp_path, progress, n_bytes):
    cache = FrameCache.of(tmp_path / "cache", store, "camera")
    assert cache.n_bytes == 1800
    cache.folder.mkdir(parents=True)
    if n_bytes is not None:
        (cache.folder / "steps.partial").write_bytes(b"\xff" * n_bytes)
    (cache.folder / "progress.json").write_text(progress)
    np.testing.assert_array_equal(all_steps(cache), store.read("camera"))


@pytest.mark.parametrize("n_done", [0, 3, 9])
def test_a_disk_that_cannot_keep_a_block_is_told(
    store, tmp_path, monkeypatch, small_blocks, n_done
):
    cache = FrameCache.of(tmp_path / "cache", store, "camera")
    calls, sync = [], os.fsync

    def fail(descriptor: int) -> None:
        if os.fstat(descriptor).st_size == cache.n_bytes:  # Not of a note.
            calls.append(descriptor)
            if len(calls) > n_done:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(frame_cache.os, "fsync", fail)
        with pytest.raises(StoreError, match="cannot be built: Input/output error"):
            cache.open()
    assert not cache.file.exists()
    np.testing.assert_array_equal(all_steps(cache), store.read("camera"))


def test_a_file_of_another_size_is_no_cache(store, tmp_path):
    cache = FrameCache.of(tmp_path / "cache", store, "camera")
    cache.open()
    os.truncate(cache.file, 100)
    assert not cache.is_built()
    np.testing.assert_array_equal(all_steps(cache), store.read("camera"))


BUILD = """
import sys
from data import frame_cache
from data.store import EpisodeStore
frame_cache.SAFE_BYTES = 1
blocks = frame_cache.Blocks
frame_cache.Blocks = lambda store, name, rows: blocks(store, name, rows, n_bytes=90)
read = EpisodeStore.read_rows
def slow(self, key, rows):
    print("reading", rows[0], flush=True)
    if rows[0] == 5:
        sys.stdin.readline()  # It waits there.
    return read(self, key, rows)
EpisodeStore.read_rows = slow
frame_cache.FrameCache.of(sys.argv[2], EpisodeStore.open(sys.argv[1]), "camera").open()
"""


def test_a_killed_build_goes_on_and_its_lock_is_gone(store, tmp_path):
    command = [sys.executable, "-c", BUILD, str(store.path), str(tmp_path / "cache")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as builder:
        assert builder.stdout is not None
        while builder.stdout.readline() != "reading 5\n":
            pass
        builder.send_signal(signal.SIGKILL)
    cache = FrameCache.of(tmp_path / "cache", store, "camera")
    assert not cache.is_built()
    # The disk is waited for while the next step is decoded.
    assert json.loads((cache.folder / "progress.json").read_text())["n_steps"] in (4, 5)
    np.testing.assert_array_equal(all_steps(cache), store.read("camera"))


def build(path: Path, root: Path, barrier, built) -> None:
    """Build a cache beside others, and tell how many steps were decoded for it."""
    store, read, n_read = EpisodeStore.open(path), EpisodeStore.read_rows, 0

    def slow(self, key, rows):
        nonlocal n_read
        n_read += len(rows)
        time.sleep(0.2)
        return read(self, key, rows)

    EpisodeStore.read_rows = slow
    barrier.wait(60)
    cache = FrameCache.of(root, store, "camera")
    steps = all_steps(cache)
    built.put((n_read, steps.tobytes()))


def test_of_several_builders_one_builds_and_the_others_wait(store, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, built = context.Barrier(3), context.Queue()
    builders = [
        context.Process(target=build, args=(store.path, tmp_path / "cache", barrier, built))
        for _ in range(3)
    ]
    for builder in builders:
        builder.start()
    results = [built.get(timeout=60) for _ in builders]
    for builder in builders:
        builder.join(60)
    assert sorted(n for n, _ in results) == [0, 0, 20]
    assert {steps for _, steps in results} == {store.read("camera").tobytes()}


def test_a_waiting_builder_says_so(store, tmp_path, monkeypatch):
    cache = FrameCache.of(tmp_path / "cache", store, "camera")
    command = [sys.executable, "-c", BUILD, str(store.path), str(tmp_path / "cache")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as builder:
        assert builder.stdout is not None
        builder.stdout.readline()
        said = []

        def say(text: str, **_: object) -> None:
            said.append(text)
            assert builder.stdin is not None
            builder.stdin.write("go on\n")
            builder.stdin.flush()

        monkeypatch.setattr(frame_cache, "print", say, raising=False)
        np.testing.assert_array_equal(all_steps(cache), store.read("camera"))
    assert builder.returncode == 0
    assert len(said) == 1
    assert "another run builds a cache of camera of" in said[0]


def test_a_full_disk_is_refused_before_anything_is_decoded(store, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(EpisodeStore, "read_rows", None)
    cache = FrameCache.of(tmp_path / "cache", store, "camera")
    with pytest.raises(StoreError, match=r"cannot be built: No space left on device: give reading"):
        cache.open()


def test_what_a_killed_build_reserved_is_not_needed_again(store, tmp_path, monkeypatch):
    cache = FrameCache.of(tmp_path, store, "camera")
    before = cache_disk(tmp_path, store, ["camera"])
    cache.folder.mkdir()
    (cache.folder / "steps.partial").write_bytes(b"x" * 1_000_000)
    after = cache_disk(tmp_path, store, ["camera"])
    assert after.missing == before.missing
    # Others write to the same disk meanwhile.
    assert abs(after.free - before.free) < 900_000_000


def test_a_folder_that_cannot_be_made_is_an_error(store, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        cache_disk(tmp_path / "file", store, ["camera"])
    with pytest.raises(StoreError, match="cannot be built"):
        FrameCache.of(tmp_path / "file", store, "camera").open()


def test_a_folder_that_cannot_be_written_is_an_error_unless_all_is_there(
    store, tmp_path, monkeypatch
):
    FrameCache.of(tmp_path / "cache", store, "camera").open()
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    assert cache_disk(tmp_path / "cache", store, ["camera"]).missing == 0
    with pytest.raises(PermissionError, match="cannot be written"):
        cache_disk(tmp_path / "cache", store, ["camera", "state"])


def test_a_system_without_locks_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr(frame_cache, "fcntl", None)
    with pytest.raises(StoreError, match="has no file locks"):
        FrameCache.of(tmp_path / "cache", store, "camera").open()


def test_a_damaged_store_leaves_no_cache(store, tmp_path, monkeypatch):
    def refuse(self, key, rows):
        raise StoreError("damaged in steps 0..19")

    cache = FrameCache.of(tmp_path / "cache", store, "camera")
    monkeypatch.setattr(EpisodeStore, "read_rows", refuse)
    with pytest.raises(StoreError, match="damaged"):
        cache.open()
    assert not cache.is_built()


def test_a_file_that_is_cut_while_it_is_read_is_an_error(store, tmp_path):
    cache = FrameCache.of(tmp_path / "cache", store, "camera")
    cache.open()
    frames = Frames(cache.file, 20, (6, 5, 3), np.dtype("uint8"), is_mapped=False)
    os.truncate(cache.file, 10 * STEP_BYTES)
    frames.gather(torch.tensor([[9]]))
    with pytest.raises(OSError, match="the cached file ends at"):
        frames.gather(torch.tensor([[9, 10]]))


def test_a_note_of_a_build_whose_file_is_gone_is_not_believed(store, tmp_path, monkeypatch):
    cache = FrameCache.of(tmp_path, store, "camera")
    cache.folder.mkdir()
    (cache.folder / "progress.json").write_text(json.dumps({"n_steps": 20}))

    def interrupt(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # Killed when the file is reserved, and nothing else.
        patch.setattr(FrameCache, "_write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cache.open()
    assert (cache.folder / "steps.partial").stat().st_size == 20 * STEP_BYTES
    np.testing.assert_array_equal(all_steps(cache), store.read("camera"))


def test_a_relabelled_task_is_another_cache_and_another_digest(tmp_path):
    with EpisodeStore.create(tmp_path / "store.zarr", CONTRACT) as store:
        fill(store, (4, 4, 4, 4))
        seen = []
        for tasks in ("xyxy", "xxyy"):
            store.edit(metadata={index: {"task": task} for index, task in enumerate(tasks)})
            mixture = Mixture([store], tell_task=True)
            steps = all_steps(FrameCache.of(tmp_path / "cache", mixture, "task"))
            expected = np.repeat([[task == "x", task == "y"] for task in tasks], 4, axis=0)
            np.testing.assert_array_equal(steps, expected)
            seen.append(mixture.digest())
    assert seen[0] != seen[1]
