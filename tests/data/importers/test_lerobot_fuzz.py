"""Damaged LeRobot data sets: a clear error or the right numbers, never anything else.

Data sets that lerobot wrote have no checksum for numbers and frames: there, a change that stays
within the episode's statistics could go unnoticed, and none of these does.
"""

import sys

import make_lerobot_files as truth
import pytest

from data.importers import lerobot_fuzz
from data.importers.apart import Reader
from data.importers.lerobot_fuzz import (
    DataSetReport,
    content,
    exported,
    fuzz_data_set,
    is_same,
    told_of,
    unnoticed,
)

N = 80


def check(found: DataSetReport) -> None:
    report = found.report
    assert report.is_clean, report
    assert report.n + found.undetectable.total() == N
    assert report.refused > N / 2
    assert report.right > 0
    assert found.causes.total() == report.refused


@pytest.mark.parametrize(
    "kind", ["lerobot_v3_state", "lerobot_v3_images", "lerobot_v21_images", "lerobot_v21_video"]
)
def test_what_lerobot_wrote(kind):
    check(fuzz_data_set(truth.FILES / kind, n=N, seed=0))


@pytest.mark.parametrize("images", lerobot_fuzz.EXPORTED)
def test_what_we_wrote(images):
    with exported(images) as path:
        check(fuzz_data_set(path, n=N, seed=0))


def test_other_numbers_are_told_apart():
    path = truth.FILES / "lerobot_v3_state"
    told, reader = told_of(path), Reader()
    whole, changed, rounded = (content(path, told, reader) for _ in range(3))
    assert is_same(whole, content(truth.FILES / "lerobot_v21_state", told, reader))
    reader.stop()
    assert unnoticed(whole, rounded) == ""
    rounded[1][1].fields["action"][2, 0] *= 1 + 2**-22
    assert not is_same(rounded, whole)
    assert unnoticed(whole, rounded) == "within rounding"
    assert unnoticed(whole, (whole[0], whole[1][:2])) == ""
    rounded[1][0].fields["state"][0, 0] += 1  # Besides, something that is noticed.
    assert unnoticed(whole, rounded) == ""
    changed[1][1].fields["action"][2, 0] += 1
    assert not is_same(changed, whole)
    assert unnoticed(whole, changed) == ""


def test_a_picture_of_another_step_is_told_from_one_of_none():
    path, reader = truth.FILES / "lerobot_v21_images", Reader()
    whole, changed = (content(path, told_of(path), reader) for _ in range(2))
    reader.stop()
    pictures = changed[1][0].fields["top"]
    pictures[3] = pictures[1]
    assert unnoticed(whole, changed) == "picture of another step"
    pictures[3] = 7
    assert unnoticed(whole, changed) == ""
    assert unnoticed(whole, changed, ["top"]) == "frames of a video"
    changed[1][1].fields["state"][0] += 1
    assert unnoticed(whole, changed, ["top"]) == ""
    assert not is_same((whole[0], whole[1][:2]), whole)


def test_the_command_says_what_became_of_each(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fuzz", "--n", "2"])
    assert run() == 0
    assert capsys.readouterr().out.count("2 corruptions:") == len(lerobot_fuzz.EXPORTED)
    path = str(truth.FILES / "lerobot_v3_state")
    monkeypatch.setattr(sys, "argv", ["fuzz", "--n", "2", path])
    assert run() == 0
    assert f"{path}: 2 corruptions:" in capsys.readouterr().out
    monkeypatch.setattr(lerobot_fuzz, "is_same", lambda a, b: False)
    monkeypatch.setattr(lerobot_fuzz, "unnoticed", lambda *contents: "")
    monkeypatch.setattr(sys, "argv", ["fuzz", "--n", "9", path])
    assert run() == 1
    assert "read wrong" in capsys.readouterr().out


def run() -> int:
    with pytest.raises(SystemExit) as end:
        lerobot_fuzz.main()
    return int(end.value.code or 0)
