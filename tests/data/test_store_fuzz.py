"""Damage to a store is refused or does not matter, and the counting of it can fail."""

import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from plain_store import plain_store

from data import corrupt as damage
from data import fuzz as fuzzing
from data.codec import Jpeg
from data.corrupt import corrupt
from data.fuzz import FuzzReport, content, fuzz, fuzz_store, small_store
from data.store import EpisodeStore, StoreError
from data.types import Contract, Field


def copies_of(original: Path):
    return lambda place: Path(shutil.copytree(original, place / "store.zarr"))


def test_a_damaged_store_is_refused_or_read_right(tmp_path):
    report = fuzz_store(n=120, seed=5, folder=tmp_path)
    assert report.is_clean, report
    assert report.refused > 60
    assert report.right > 0
    assert report.n == 120


def test_a_damaged_store_of_jpeg_is_refused_or_read_right(tmp_path):
    original, rng = tmp_path / "original.zarr", np.random.default_rng(0)
    contract = Contract({"camera": Field((16, 16, 3), "uint8")}, Field((3,)), 0.1)
    with EpisodeStore.create(original, contract, codec=Jpeg(), shard_bytes=2**13) as store:
        for index in range(3):
            frames = rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
            store.append({"camera": frames, "action": rng.normal(size=(8, 3))}, seed=index)
    expected = content(original)
    report = fuzz(copies_of(original), lambda path: content(path) == expected, n=40, seed=6)
    assert report.is_clean, report


def test_a_damaged_store_is_not_written_to_or_written_right(tmp_path):
    original, one = tmp_path / "original.zarr", {}
    fields = small_store(original).contract.fields
    for name, field in fields.items():
        one[name] = np.ones((50, *field.shape), field.dtype)

    def change(path: Path) -> tuple:
        with EpisodeStore.open(path, mode="a") as store:
            store.append(one, seed=9)
            store.edit(hide=[0], metadata={1: {"seed": 1}})
        return content(path)

    expected = change(copies_of(original)(tmp_path))
    report = fuzz(copies_of(original), lambda path: change(path) == expected, n=40, seed=7)
    assert report.is_clean, report


def test_without_checksums_damage_is_read_wrong(tmp_path):
    """The counting itself: of a store of format_version 1 not all damage can be noticed."""
    contract = Contract({"state": Field((3,))}, Field((3,)), 0.1)
    original = plain_store(tmp_path / "original.zarr", contract)
    with EpisodeStore.open(original, mode="a") as store:
        store.append({"state": np.ones((9, 3)), "action": np.zeros((9, 3))})
    expected = content(original)

    def swap_fields(path: Path, generator: np.random.Generator) -> str:
        shutil.move(path / "data/state", path / "data/other")
        shutil.move(path / "data/action", path / "data/state")
        shutil.move(path / "data/other", path / "data/action")
        return "fields swapped"

    report = fuzz(
        copies_of(original),
        lambda path: content(path) == expected,
        n=2,
        seed=0,
        corruption=swap_fields,
    )
    assert (report.wrong, report.is_clean) == (2, False)
    assert "[seed 0, 1] fields swapped -> wrong: it read other numbers" in str(report)


def refuse(path: Path) -> bool:
    raise StoreError("no")


def crash(path: Path) -> bool:
    return 1 // 0 == 0


def hang(path: Path) -> bool:
    time.sleep(5)
    return True


@pytest.mark.parametrize(
    ("attempt", "counted"),
    [
        (lambda path: True, FuzzReport(right=2)),
        (refuse, FuzzReport(refused=2)),
        (lambda path: False, FuzzReport(wrong=2)),
        (crash, FuzzReport(crashed=2)),
        (hang, FuzzReport(crashed=2)),
    ],
)
def test_outcomes_are_told_apart(tmp_path, monkeypatch, attempt, counted):
    monkeypatch.setattr(fuzzing, "PATIENCE", 0.05)
    (tmp_path / "file").write_bytes(b"content")
    report = fuzz(
        lambda place: Path(shutil.copy(tmp_path / "file", place)), attempt, n=2, seed=0, n_shown=1
    )
    assert report.n == 2
    assert str(report).splitlines()[0] == str(counted)
    assert len(report.offenders) == (1 if counted.wrong or counted.crashed else 0)


def test_a_plain_value_error_is_a_crash(tmp_path):
    (tmp_path / "file").write_bytes(b"content")

    def attempt(path: Path) -> bool:
        return bool(json.loads("{ half"))

    report = fuzz(lambda place: Path(shutil.copy(tmp_path / "file", place)), attempt, n=1, seed=0)
    assert report.crashed == 1


def test_the_same_seed_does_the_same_damage(tmp_path):
    done = []
    for _ in range(2):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            path = Path(folder) / "s.zarr"
            small_store(path)
            done.append([corrupt(path, np.random.default_rng(index)) for index in range(5)])
    assert done[0] == done[1]


def test_each_kind_of_damage_changes_what_it_says(tmp_path):
    file, rng = tmp_path / "x.json", np.random.default_rng(0)
    text = json.dumps({"a": [1, 2], "b": {"c": "text"}})
    for harm in (
        damage.flip_bits,
        damage.overwrite_block,
        damage.truncate,
        damage.extend,
        damage.empty,
        damage.cut_text,
        damage.drop_key,
        damage.replace_value,
    ):
        changed = False
        for _ in range(20):
            file.write_text(text)
            assert isinstance(harm(file, rng), str)
            changed |= file.read_bytes() != text.encode()
        assert changed, harm
    file.write_text(text)
    assert damage.remove(file, rng) == "removed"
    assert not file.exists()
    first, second = tmp_path / "1", tmp_path / "2"
    for _ in range(20):
        first.write_text("1")
        second.write_text("2")
        damage.swap(first, rng)
        if first.read_text() == "2":
            break
    assert (first.read_text(), second.read_text()) == ("2", "1")


def test_a_folder_without_files_cannot_be_damaged(tmp_path):
    with pytest.raises(ValueError, match="holds no files"):
        corrupt(tmp_path, np.random.default_rng(0))


def test_the_command_counts(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["fuzz", "--n", "3", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        fuzzing.main()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("3 corruptions:")
