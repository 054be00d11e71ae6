"""Damaged data sets of every format: a clear error or a correct read, never wrong data."""

from pathlib import Path

import numpy as np
import pytest

from data.importers import fuzz as module
from data.importers.fuzz import ANY, Trial, fuzz_format, main, unprotected
from data.importers.samples import SAMPLES, episodes


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.filterwarnings("ignore")  # of zarr, about the things it then refuses
def test_damage_is_refused_or_does_not_matter(name):
    n = 60
    report, n_undetectable = fuzz_format(name, n=n, seed=1)
    assert report.is_clean, str(report)
    assert report.n + n_undetectable == n
    assert report.refused > n / 5


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
    assert made.n_undetectable == 0
    flip(file, place.start)
    assert made.attempt(copy)
    assert made.n_undetectable == 1


def test_wrong_numbers_elsewhere_count_as_wrong(tmp_path, monkeypatch):
    made, copy = trial(tmp_path, "minari")
    place = next(u for u in unprotected(copy, "data/main_data.hdf5") if u.field == "actions")
    flip(copy / "data" / "main_data.hdf5", place.start)
    made._unprotected = {name: [] for name in made._unprotected}  # As if checksums guarded all.
    assert not made.attempt(copy)
    assert made.n_undetectable == 0


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
    assert made.n_undetectable == 1


def test_every_byte_of_a_table_of_text_is_unprotected(tmp_path):
    made, copy = trial(tmp_path, "csv")
    size = (copy / "run-0.csv").stat().st_size
    assert list(unprotected(copy, "run-0.csv")) == [module.Unprotected(0, size, ANY)]
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


def test_samples_differ_from_seed_to_seed():
    first, second = episodes(0), episodes(1)
    assert not np.array_equal(first[0]["state"], second[0]["state"])
