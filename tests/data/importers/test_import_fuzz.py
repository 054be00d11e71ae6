"""Damaged data sets of every format: a clear error or a correct read, never wrong data."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.importers import fuzz as module
from data.importers.apart import FromReader
from data.importers.fuzz import ANY, Trial, fuzz_format, main, unprotected
from data.importers.fuzz_apart import account, counted
from data.importers.importer import ImporterError
from data.importers.samples import SAMPLES, episodes


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.filterwarnings("ignore")  # of zarr, about the things it then refuses
def test_damage_is_refused_or_does_not_matter(name):
    n = 60
    found = fuzz_format(name, n=n, seed=1)
    assert found.report.is_clean, str(found)
    assert found.report.n + found.undetectable.total() == n
    assert found.report.refused > n / 5
    assert found.causes.total() == found.report.refused


def trial(tmp_path: Path, name: str) -> tuple[Trial, Path]:
    (tmp_path / "pristine").mkdir()
    made = Trial(SAMPLES[name], SAMPLES[name].write(tmp_path / "pristine", episodes()))
    (tmp_path / "home").mkdir()
    return made, made.copy(tmp_path / "home")


def flip(file: Path, byte: int) -> None:
    content = bytearray(file.read_bytes())
    content[byte] ^= 1
    file.write_bytes(content)


def test_numbers_without_a_checksum_count_as_undetectable(tmp_path):
    made, copy = trial(tmp_path, "minari")
    file = copy / "data" / "main_data.hdf5"
    place = next(u for u in unprotected(copy, "data/main_data.hdf5") if u.field == "actions")
    assert made.attempt(copy)
    assert not made.undetectable
    flip(file, place.start)
    assert made.attempt(copy)
    assert made.undetectable == {"numbers": 1}


@pytest.mark.parametrize(("kind", "byte"), [("text", 20), ("address", 1)])
def test_texts_and_addresses_in_hdf5_have_no_checksum(tmp_path, kind, byte):
    made, copy = trial(tmp_path, "robomimic")
    places = [u for u in unprotected(copy, ".") if u.kind == kind]
    start = min(places, key=lambda u: u.stop - u.start if kind == "address" else u.start - u.stop)
    flip(copy, start.start + byte)
    assert made.attempt(copy)
    assert made.undetectable == {kind: 1}


def test_wrong_numbers_elsewhere_count_as_wrong(tmp_path, monkeypatch):
    made, copy = trial(tmp_path, "minari")
    place = next(u for u in unprotected(copy, "data/main_data.hdf5") if u.field == "actions")
    flip(copy / "data" / "main_data.hdf5", place.start)
    made._unprotected = {name: [] for name in made._unprotected}  # As if checksums guarded all.
    assert not made.attempt(copy)
    assert not made.undetectable


def test_other_fields_than_those_of_the_bytes_count_as_wrong(tmp_path):
    made, copy = trial(tmp_path, "minari")
    places = list(unprotected(copy, "data/main_data.hdf5"))
    made._unprotected["data/main_data.hdf5"] = [
        module.Unprotected(p.start, p.stop, "arm") for p in places
    ]
    flip(copy / "data" / "main_data.hdf5", next(p.start for p in places if p.field == "actions"))
    assert not made.attempt(copy)


def test_files_of_which_there_is_no_list_may_be_missing(tmp_path):
    made, copy = trial(tmp_path, "npz")
    (copy / "episode_1.npz").unlink()
    assert made.attempt(copy)
    assert made.undetectable == {"files without a list": 1}


def test_every_byte_of_a_table_of_text_is_unprotected(tmp_path):
    made, copy = trial(tmp_path, "csv")
    size = (copy / "run-0.csv").stat().st_size
    assert list(unprotected(copy, "run-0.csv")) == [module.Unprotected(0, size, ANY, "text")]
    assert made.attempt(copy)


def test_the_command_reports_and_fails_where_anything_was_wrong(capsys, monkeypatch):
    with pytest.raises(SystemExit) as end:
        main(["--n", "3", "--only", "dppo"])
    assert end.value.code == 0
    assert "dppo: 3 corruptions" in capsys.readouterr().out
    monkeypatch.setattr(module.Trial, "attempt", lambda self, path: False)
    with pytest.raises(SystemExit) as end:
        main(["--n", "3", "--only", "dppo"])
    assert end.value.code == 1
    assert "3 read wrong" in capsys.readouterr().out


def test_faults_of_ours_are_not_taken_for_damage():
    """An error that says the file is damaged, because our code tripped over it, is a crash."""
    causes: Counter[str] = Counter()

    def attempt(path: Path) -> bool:
        error = ImporterError(f"{path} is damaged")
        error.__cause__ = FromReader(str(path), "")
        raise error

    with pytest.raises(AssertionError, match=r"a fault of ours .KeyError in data.importers.hdf5."):
        counted(attempt, causes)(Path("KeyError in data.importers.hdf5"))
    for origin in ("KeyError in h5py.h5o", "ImporterError in data.importers.hdf5", "SIGSEGV"):
        with pytest.raises(ImporterError):
            counted(attempt, causes)(Path(origin))
        assert causes[origin] == 1
    assert account(Counter({"rare": 1, "frequent": 22})).split() == ["22", "frequent", "1", "rare"]


def test_samples_differ_from_seed_to_seed():
    first, second = episodes(0), episodes(1)
    assert not np.array_equal(first[0]["state"], second[0]["state"])
