"""Damaged LeRobot data sets: a clear error or the right numbers, never anything else.

Data sets that lerobot wrote have no checksum for numbers and frames: there, a change that stays
within the episode's statistics could go unnoticed, and none of these does.
"""

import sys

import make_lerobot_files as truth
import pytest

from data.fuzz import FuzzReport
from data.importers import lerobot_fuzz
from data.importers.lerobot_fuzz import content, exported, fuzz_data_set, is_same, told_of

N = 80


def check(report: FuzzReport) -> None:
    assert report.is_clean, report
    assert report.n == N
    assert report.refused > N / 2
    assert report.right > 0


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
    told = told_of(path)
    whole, changed = content(path, told), content(path, told)
    assert is_same(whole, content(truth.FILES / "lerobot_v21_state", told))
    changed[1][1].fields["action"][2, 0] += 1
    assert not is_same(changed, whole)
    assert not is_same((whole[0], whole[1][:2]), whole)


def test_the_command_says_what_became_of_each(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fuzz", "--n", "2"])
    lerobot_fuzz.main()
    assert capsys.readouterr().out.count("2 corruptions:") == len(lerobot_fuzz.EXPORTED)
    path = str(truth.FILES / "lerobot_v3_state")
    monkeypatch.setattr(sys, "argv", ["fuzz", "--n", "2", path])
    lerobot_fuzz.main()
    assert f"{path}: 2 corruptions:" in capsys.readouterr().out
