"""A digest that was noted is the one that reading gives, whatever became of store and note."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr
from plain_store import plain_store

from data import content_digest
from data.codec import Jpeg
from data.fields import Fields
from data.layout import stored_array
from data.mixture import Mixture
from data.store import EpisodeStore, StoreError
from data.types import Contract, Field

CONTRACT = Contract({"state": Field((2,)), "camera": Field((8, 8, 3), "uint8")}, Field((1,)), 0.1)


def episode(index: int, length: int = 12) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    return {
        "state": rng.normal(size=(length, 2)).astype(np.float32),
        "camera": rng.integers(0, 256, (length, 8, 8, 3), dtype=np.uint8),
        "action": rng.normal(size=(length, 1)).astype(np.float32),
    }


def expected(*episodes: dict[str, np.ndarray]) -> str:
    """The digest in closed form."""
    ends = np.cumsum([len(one["action"]) for one in episodes]).astype("<i8")
    text = ends.tobytes()
    for name, kind in (("action", "float32 (1,)"), ("camera", "uint8 (8, 8, 3)")):
        text += f"{name} {kind}".encode() + b"".join(one[name].tobytes() for one in episodes)
    text += b"state float32 (2,)" + b"".join(one["state"].tobytes() for one in episodes)
    return hashlib.sha256(text).hexdigest()


def of_ours(path: Path) -> EpisodeStore:
    with EpisodeStore.create(path, CONTRACT) as store:
        for index in range(3):
            store.append(episode(index))
    return EpisodeStore.open(path)


def of_version_1(path: Path) -> EpisodeStore:
    with EpisodeStore.open(plain_store(path, CONTRACT), mode="a") as store:
        for index in range(3):
            store.append(episode(index))
    return EpisodeStore.open(path)


def foreign(path: Path) -> EpisodeStore:
    """In the layout of Diffusion Policy."""
    group = zarr.create_group(path, zarr_format=2)
    for name in CONTRACT.fields:
        values = np.concatenate([episode(index)[name] for index in range(3)])
        group.create_array(f"data/{name}", data=values, chunks=(5, *values.shape[1:]))
    group.create_array("meta/episode_ends", data=np.array([12, 24, 36]))
    return EpisodeStore.open(path, contract=CONTRACT)


KINDS = [of_ours, of_version_1, foreign]


@pytest.fixture
def notes(tmp_path: Path, monkeypatch) -> Path:
    """Where digests are noted; of small stores too, and of files that were written just now."""
    monkeypatch.setattr(content_digest, "NOTED_BYTES", 1)
    monkeypatch.setattr(content_digest, "SETTLED", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The fields of which steps were read."""
    read, seen = Fields.read, []

    def noted(self: Fields, key: str, steps: np.ndarray) -> np.ndarray:
        seen.append(key)
        return read(self, key, steps)

    monkeypatch.setattr(Fields, "read", noted)
    return seen


def notes_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.json"))


def again(store: EpisodeStore) -> EpisodeStore:
    return EpisodeStore.open(store.path, contract=CONTRACT)


def wait() -> None:
    """Until the clock of the file system, which ticks every few milliseconds, has gone on."""
    time.sleep(0.02)


@pytest.mark.parametrize("make", KINDS)
def test_what_was_noted_is_not_read_again(tmp_path, notes, reads, make, capsys):
    store = make(tmp_path / "store.zarr")
    wait()
    before = sorted(tmp_path.rglob("*"))
    digest = expected(*(episode(index) for index in range(3)))
    assert store.digest(notes=notes) == digest
    assert set(reads) == set(CONTRACT.fields)
    assert "checking the store: " in capsys.readouterr().out
    assert len(notes_in(notes)) == 1
    # Nothing is written beside what is read, which may be read-only and somebody else's.
    assert [p for p in sorted(tmp_path.rglob("*")) if notes not in (p, *p.parents)] == before
    reads.clear()
    for opened in (store, again(store), again(store).frozen()):
        assert opened.digest(notes=notes) == digest
    assert reads == []
    assert capsys.readouterr().out == ""
    assert store.digest() == digest
    assert set(reads) == set(CONTRACT.fields)


def test_a_small_store_is_not_worth_a_note(tmp_path, capsys):
    store = of_ours(tmp_path / "store.zarr")
    store.digest(notes=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert capsys.readouterr().out == ""


def changes() -> list[Callable[[EpisodeStore], object]]:
    return [
        lambda store: store.append(episode(3)),
        lambda store: store.edit(hide=[1]),
        lambda store: store.edit(metadata={0: {"success": True}}),
    ]


def test_each_content_has_its_own_note(tmp_path, notes):
    path = tmp_path / "store.zarr"
    of_ours(path)
    found = [EpisodeStore.open(path).digest(notes=notes)]
    with EpisodeStore.open(path, mode="a") as store:
        for change in changes():
            change(store)
            found.append(store.digest(notes=notes))
            assert found[-1] == store.digest() == EpisodeStore.open(path).digest(notes=notes)
    parts = [episode(index) for index in range(4)]
    without = [parts[0], *parts[2:]]
    assert found == [expected(*one) for one in (parts[:3], parts, without, without)]
    assert len(notes_in(notes)) == 3  # Labels are not what the digest is of.


def test_the_contract_that_is_asked_for_counts(tmp_path, notes):
    path = tmp_path / "store.zarr"
    of_ours(path)
    fewer = Contract({"state": CONTRACT.observation["state"]}, CONTRACT.action, 0.1)
    stores = [EpisodeStore.open(path), EpisodeStore.open(path, contract=fewer)]
    assert len({store.digest(notes=notes) for store in stores}) == 2
    for store in stores:
        assert store.digest(notes=notes) == store.digest()


def test_a_foreign_array_that_changes_under_its_times_is_read_again(tmp_path, notes):
    path = tmp_path / "store.zarr"
    store = foreign(path)
    wait()
    first = store.digest(notes=notes)
    file = path / "data/state/0.0"
    status = file.stat()
    shutil.copytree(path, tmp_path / "copy.zarr")
    state = stored_array(tmp_path, zarr.open_group(tmp_path / "copy.zarr"), "data/state")
    state[:5] = -episode(0)["state"][:5]
    content = (tmp_path / "copy.zarr/data/state/0.0").read_bytes()
    assert len(content) == status.st_size  # Random numbers; their signs take as many bytes.
    with open(file, "r+b") as stream:
        stream.write(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    wait()
    assert again(store).digest(notes=notes) == again(store).digest() != first
    parts = [episode(index) for index in range(3)]
    parts[0]["state"][:5] *= -1
    assert again(store).digest(notes=notes) == expected(*parts)


def test_files_that_changed_just_now_are_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(content_digest, "NOTED_BYTES", 1)
    for make, n_notes in ((foreign, 0), (of_version_1, 0), (of_ours, 1)):
        folder = tmp_path / make.__name__
        store = make(folder / "store.zarr")
        digest = store.digest(notes=folder / "cache")
        assert digest == expected(*(episode(index) for index in range(3)))
        assert len(notes_in(folder / "cache")) == n_notes


def test_files_behind_a_link_count(tmp_path, notes):
    path = tmp_path / "store.zarr"
    foreign(path)
    (path / "data").rename(tmp_path / "elsewhere")
    (path / "data").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "elsewhere")  # It ends nevertheless.
    wait()
    store = EpisodeStore.open(path, contract=CONTRACT)
    first, identity = store.digest(notes=notes), store.identity()
    stored_array(path, zarr.open_group(path, mode="r+"), "data/state")[0] = 7.0
    wait()
    assert again(store).digest(notes=notes) == again(store).digest() != first
    assert again(store).identity() != identity


def while_reading(monkeypatch, change: Callable[[], object]) -> None:
    """Let something happen once a digest has read its first field."""
    read, is_done = Fields.read, []

    def read_and_change(self: Fields, key: str, steps: np.ndarray) -> np.ndarray:
        values = read(self, key, steps)
        if not is_done:
            is_done.append(True)
            change()
        return values

    monkeypatch.setattr(Fields, "read", read_and_change)


@pytest.mark.parametrize(("make", "n_notes"), [(of_ours, 1), (of_version_1, 0)])
def test_a_digest_is_of_what_was_visible_when_it_began(tmp_path, notes, monkeypatch, make, n_notes):
    path = tmp_path / "store.zarr"
    store = make(path)
    wait()
    parts = [episode(index) for index in range(4)]
    with monkeypatch.context() as patch, EpisodeStore.open(path, mode="a") as writer:
        while_reading(patch, lambda: writer.append(episode(3)))
        assert store.digest(notes=notes) == expected(*parts[:3])
    assert len(notes_in(notes)) == n_notes
    wait()
    # Whoever looked before the append, and whoever looks now.
    for opened, there in ((store, parts[:3]), (EpisodeStore.open(path), parts)):
        assert opened.digest(notes=notes) == opened.digest() == expected(*there)


def test_an_older_look_does_not_note_its_digest_as_that_of_newer_files(tmp_path, notes):
    path = tmp_path / "store.zarr"
    old = of_version_1(path)
    with EpisodeStore.open(path, mode="a") as writer:
        writer.append(episode(3))
    wait()
    parts = [episode(index) for index in range(4)]
    for _ in range(2):
        assert old.digest(notes=notes) == expected(*parts[:3])
        assert EpisodeStore.open(path).digest(notes=notes) == expected(*parts)


def test_a_foreign_store_that_was_replaced_after_it_was_opened(tmp_path, notes):
    """By one of as many steps in another order of bytes, which its old description misreads."""
    path = tmp_path / "store.zarr"
    old = foreign(path)
    old.read("state")
    (path).rename(tmp_path / "gone")
    foreign(path)
    group = zarr.open_group(path, mode="r+")
    values = np.asarray(group["data/state"]) + 1
    del group["data/state"]
    group.create_array("data/state", data=values.astype(">f4"), chunks=(5, 2))
    wait()
    old.digest(notes=notes)
    assert again(old).digest(notes=notes) == again(old).digest()


DAMAGE = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "another digest": lambda text: json.dumps({**json.loads(text), "digest": "0" * 64}),
    "a list": lambda text: "[]",
    "numbers": lambda text: '{"digest": 3, "seal": 4}',
    "no text": lambda text: "\udcff",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_note_is_mended(tmp_path, notes, reads, damage):
    store = of_ours(tmp_path / "store.zarr")
    digest = store.digest(notes=notes)
    (note,) = notes_in(notes)
    whole = note.read_text()
    note.write_bytes(DAMAGE[damage](whole).encode(errors="surrogateescape"))
    reads.clear()
    assert store.digest(notes=notes) == digest
    assert set(reads) == set(CONTRACT.fields)
    assert note.read_text() == whole
    assert os.listdir(note.parent) == [note.name]


def test_the_note_of_another_store_is_not_taken_for_its_own(tmp_path, notes):
    store = of_ours(tmp_path / "store.zarr")
    digest = store.digest(notes=notes)
    (note,) = notes_in(notes)
    with EpisodeStore.open(store.path, mode="a") as writer:
        writer.append(episode(3))
        assert writer.digest(notes=notes) != digest
    (other,) = set(notes_in(notes)) - {note}
    other.write_bytes(note.read_bytes())
    assert again(store).digest(notes=notes) == again(store).digest() != digest


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), OSError(28, "No space")])
def test_a_note_that_cannot_be_written_is_no_error(tmp_path, notes, monkeypatch, error):
    def fail(*_: object) -> None:
        raise error

    store = of_ours(tmp_path / "store.zarr")
    monkeypatch.setattr("data.content_digest.os.replace", fail)
    assert store.digest(notes=notes) == store.digest()
    assert [file for file in notes.rglob("*") if file.is_file()] == []


def test_a_folder_of_notes_that_is_a_file_is_no_error(tmp_path, notes):
    notes.write_text("in the way")
    store = of_ours(tmp_path / "store.zarr")
    assert store.digest(notes=notes) == store.digest()


def test_a_damaged_store_is_an_error_and_gets_no_note(tmp_path, notes):
    store = of_ours(tmp_path / "store.zarr")
    files = (tmp_path / "store.zarr/data/camera/c").rglob("*")
    shard = next(file for file in files if file.is_file())
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreError, match="data/camera is damaged"):
        store.digest(notes=notes)
    assert notes_in(notes) == []


def test_of_a_location_only_a_commit_is_trusted(tmp_path, notes, reads):
    memory = fsspec.filesystem("memory")
    for make, is_noted in ((of_ours, True), (foreign, False)):
        path = tmp_path / make.__name__
        make(path)
        for file in path.rglob("*"):
            if file.is_file():
                name = file.relative_to(tmp_path).as_posix()
                memory.pipe(f"/{tmp_path.name}/{name}", file.read_bytes())
        place = f"memory://{tmp_path.name}/{make.__name__}"
        store = EpisodeStore.open(place, contract=CONTRACT)
        digest = store.digest(notes=notes)
        reads.clear()
        assert store.digest(notes=notes) == digest
        assert (reads == []) == is_noted
    assert len(notes_in(notes)) == 1


def test_another_decoder_may_give_other_numbers(tmp_path, notes, reads, monkeypatch):
    with EpisodeStore.create(tmp_path / "store.zarr", CONTRACT, codec=Jpeg(90)) as store:
        store.append(episode(0))
        store.digest(notes=notes)
        reads.clear()
        store.digest(notes=notes)
        assert reads == []
        monkeypatch.setattr("importlib.metadata.version", lambda name: "another")
        store.digest(notes=notes)
        assert set(reads) == set(CONTRACT.fields)


def test_of_a_mixture_only_the_store_that_changed_is_read(tmp_path, notes, monkeypatch):
    stores = [of_ours(tmp_path / f"{name}.zarr") for name in "ab"]
    first = Mixture(stores).digest(notes=notes)
    assert first == Mixture(stores).digest()
    with EpisodeStore.open(stores[1].path, mode="a") as writer:
        writer.append(episode(5))
    stores[1].refresh()
    seen, read = set(), Fields.read

    def noted(self: Fields, key: str, steps: np.ndarray) -> np.ndarray:
        seen.add(self.path)
        return read(self, key, steps)

    mixture = Mixture(stores)
    with monkeypatch.context() as patch:
        patch.setattr(Fields, "read", noted)
        digest = mixture.digest(notes=notes)
    assert seen == {stores[1].path}
    assert digest == mixture.digest() != first
