"""One writer at a time, which is told to the second one and outlives no process."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from data import lock
from data.lock import LOCK_FILE, Writer, acquire, started, writer_of
from data.store import EpisodeStore, StoreError
from data.types import Contract, Field

CONTRACT = Contract({"state": Field((1,))}, Field((1,)), 0.1)
EPISODE = {"state": np.ones((3, 1)), "action": np.ones((3, 1))}
HOLD = """
import sys, time
from data.store import EpisodeStore
store = EpisodeStore.open(sys.argv[1], mode="a")
print("holds", flush=True)
time.sleep(100)
"""
RACE = """
import sys, time
from data.store import EpisodeStore
sys.stdin.read()
try:
    store = EpisodeStore.open(sys.argv[1], mode="a")
    print("mine", flush=True)
    time.sleep(2)
except ValueError as error:
    print(error)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "store.zarr"
    EpisodeStore.create(path, CONTRACT).close()
    return path


@pytest.fixture
def other_process(path: Path):
    """A process that has the store open for writing."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def append(path: Path) -> int:
    with EpisodeStore.open(path, mode="a") as store:
        store.append(EPISODE)
        return store.n_episodes


def test_the_second_writer_is_told_who_the_first_one_is(path, other_process):
    message = (
        rf"is being written to by .+@{platform.node()}, process {other_process.pid} \(-c .*\), "
        r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d: wait until it has ended"
    )
    for _ in range(2):
        with pytest.raises(StoreError, match=message):
            EpisodeStore.open(path, mode="a")
    assert EpisodeStore.open(path).n_episodes == 0  # Anybody may read.


def test_the_lock_of_a_killed_writer_is_taken_over(path, other_process):
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    writer = writer_of(path)
    assert writer is not None
    assert writer.pid == other_process.pid
    assert append(path) == 1
    assert writer_of(path) is None


def test_of_many_writers_at_once_one_gets_the_lock(path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    said = [process.communicate()[0].strip() for process in processes]
    # One that came late, after another had ended, may have got it as well.
    assert "mine" in said
    assert all(line == "mine" or "is being written to by" in line for line in said)


def say(path: Path, **changes: object) -> None:
    """Let the lock file say that somebody else writes."""
    writer = replace(Writer.here(path), **changes)  # pyright: ignore[reportArgumentType]
    (path / LOCK_FILE).write_text(json.dumps(asdict(writer)))


def test_a_process_of_another_age_is_another_one(path):
    say(path, pid=os.getppid(), started="12345")
    assert append(path) == 1


@pytest.mark.parametrize("is_guarded", [True, False])
def test_a_process_that_is_gone_writes_no_more(path, monkeypatch, is_guarded):
    if not is_guarded:
        monkeypatch.setattr(lock, "fcntl", None)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    say(path, pid=ended.pid)
    assert append(path) == 1


def test_without_a_guarding_file_system_a_living_process_is_believed(path, monkeypatch):
    def cannot(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if lock.fcntl is not None:
        monkeypatch.setattr(lock.fcntl, "flock", cannot)
    say(path, pid=os.getppid(), started=started(os.getppid()), user="anna")
    with pytest.raises(StoreError, match=r"anna@.*wait until it has ended"):
        EpisodeStore.open(path, mode="a")
    say(path, pid=os.getppid(), started="12345")
    assert append(path) == 1


def test_what_another_machine_does_is_not_guessed(path):
    say(path, host="robot-7", user="anna", pid=1)
    message = rf"locked for writing by anna@robot-7, process 1 .* look on robot-7, .*/{LOCK_FILE}"
    with pytest.raises(StoreError, match=message):
        EpisodeStore.open(path, mode="a")
    (path / LOCK_FILE).unlink()
    assert append(path) == 1


def test_a_store_that_was_moved_while_it_was_written_is_free_at_its_new_place(path):
    with EpisodeStore.open(path, mode="a"):
        moved = path.rename(path.with_name("moved.zarr"))
    assert writer_of(moved) is not None  # It was not found where it had been.
    code = (
        "import sys\nfrom data.store import EpisodeStore\nEpisodeStore.open(sys.argv[1], mode='a')"
    )
    subprocess.run([sys.executable, "-c", code, moved], check=True)
    assert writer_of(moved) is None


def test_a_copy_of_a_store_does_not_inherit_the_lock(path, tmp_path):
    say(path, host="robot-7", inode=1)  # as in a folder that was copied from there
    assert append(path) == 1


@pytest.mark.parametrize("content", ["", "{ half", "[]", '{"user": 1}', '{"pid": "x"}'])
def test_a_lock_file_that_says_nothing_holds_nobody_up(path, content):
    (path / LOCK_FILE).write_text(content)
    assert append(path) == 1


def test_the_lock_ends_with_its_last_holder(path):
    first, second = (EpisodeStore.open(path, mode="a") for _ in range(2))
    first.close()
    assert writer_of(path) is not None
    first.close()  # Once more is no harm.
    assert writer_of(path) is not None
    second.close()
    assert writer_of(path) is None
    assert not (path / LOCK_FILE).exists()
    store = EpisodeStore.open(path, mode="a")
    assert writer_of(path) is not None
    del store
    assert writer_of(path) is None


def test_a_closed_store_reads_on(path):
    store = EpisodeStore.open(path, mode="a")
    store.append(EPISODE)
    store.close()
    assert store.read("state").shape == (3, 1)
    with pytest.raises(StoreError, match="open for reading"):
        store.append(EPISODE)


def test_objects_of_one_process_write_in_turn(path):
    stores = [EpisodeStore.open(path, mode="a") for _ in range(3)]
    for index in range(6):
        stores[index % 3].append(EPISODE, seed=index)
    threads = [
        threading.Thread(target=lambda store=store: [store.append(EPISODE) for _ in range(4)])
        for store in stores
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = EpisodeStore.open(path)
    assert store.episode_ends.tolist() == list(range(3, 3 * 18 + 1, 3))
    assert [entry.get("seed") for entry in store.episode_metadata[:6]] == list(range(6))
    assert (store.read("state") == 1).all()


def test_a_forked_process_does_not_write_with_its_parents_lock(path):
    store = EpisodeStore.open(path, mode="a")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            store.append(EPISODE)
        except StoreError as error:
            status = 0 if "forked from: open it again" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    store.append(EPISODE)
    assert EpisodeStore.open(path).n_episodes == 1
    with pytest.raises(AssertionError):  # The child's end left the lock alone.
        assert writer_of(path) is None


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder_is_read_and_not_written(path, monkeypatch, code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock.os, "open", refuse)
    with pytest.raises(StoreError, match=rf"cannot be written to \({os.strerror(code)}\): open it"):
        EpisodeStore.open(path, mode="a")
    assert EpisodeStore.open(path).n_episodes == 0


def test_a_full_disk_is_told_and_leaves_no_lock(path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(lock.os, "pwrite", refuse)
        with pytest.raises(StoreError, match="No space left on device"):
            EpisodeStore.open(path, mode="a")
    assert append(path) == 1


def test_a_store_that_cannot_be_opened_is_not_locked(path):
    (path / "data/state/zarr.json").write_text("{ half")
    with pytest.raises(StoreError, match="is damaged"):
        EpisodeStore.open(path, mode="a")
    assert writer_of(path) is None


def test_a_lock_file_that_is_a_link_is_not_written_through(path, tmp_path):
    (tmp_path / "precious").write_text("content")
    (path / LOCK_FILE).symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match="cannot be written to"):
        EpisodeStore.open(path, mode="a")
    assert (tmp_path / "precious").read_text() == "content"


def test_a_file_that_is_replaced_all_the_time_is_given_up(path, monkeypatch):
    monkeypatch.setattr(lock, "_try_to_acquire", lambda _: None)
    with pytest.raises(StoreError, match="is replaced all the time"):
        acquire(path)


def test_processes_are_told_by_their_begin():
    assert started(os.getpid()) == started(os.getpid())
    assert started(os.getpid()) != started(1) != ""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert started(ended.pid) == ""


@pytest.mark.parametrize("what", ["moved", "unlocked", "locked by another"])
def test_nothing_is_written_where_the_lock_is_gone(path, tmp_path, what):
    with EpisodeStore.open(path, mode="a") as store:
        n = store.n_episodes
        if what == "moved":
            path.rename(tmp_path / "elsewhere.zarr")
        else:
            (path / LOCK_FILE).rename(tmp_path / "old")
        if what == "locked by another":
            (path / LOCK_FILE).write_text("{}")
        for change in (lambda: store.append(EPISODE), lambda: store.edit(hide=[0])):
            with pytest.raises(StoreError, match="of this process is gone"):
                change()
        assert store.n_episodes == n
    assert path.exists() == (what != "moved")
    assert (path / LOCK_FILE).exists() == (what == "locked by another")
