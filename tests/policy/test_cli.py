"""The command line: help, errors, output folders."""

import os
import signal
import sys

import pytest
from omegaconf import OmegaConf

from policy import cli
from policy.entry import CONFIGS, entry, out_dir, pick_device
from policy.help import help_text


def run_cli(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["cadence", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_help_lists_the_verbs(monkeypatch, capsys):
    assert run_cli(monkeypatch, "--help") == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_itself(monkeypatch, capsys, verb):
    assert run_cli(monkeypatch, verb, "--help") == 0
    printed = capsys.readouterr().out
    assert f"cadence {verb}" in printed
    assert "Settings" in printed


def test_an_unknown_verb_names_the_choices(monkeypatch, capsys):
    assert run_cli(monkeypatch, "trian") == 2
    assert "train" in capsys.readouterr().err


def test_a_mistyped_override_is_one_clear_line(monkeypatch, capsys):
    assert run_cli(monkeypatch, "train", "store.path=x", "bach_size=3") == 2
    assert "bach_size" in capsys.readouterr().err


def test_a_missing_setting_is_named(monkeypatch, capsys):
    assert run_cli(monkeypatch, "train") == 1
    assert "store.path=..." in capsys.readouterr().err


def test_a_missing_store_is_one_clear_line(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, "train", "store.path=nowhere.zarr") == 1
    assert "nowhere.zarr" in capsys.readouterr().err


def test_fresh_folders_never_collide_and_latest_points_to_the_last(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    cfg = OmegaConf.create({"out": None})
    folders = [out_dir(cfg, "train") for _ in range(3)]
    assert len(set(folders)) == 3
    assert (tmp_path / "outputs/train/latest").resolve() == folders[-1].resolve()
    assert str(folders[-1]) in capsys.readouterr().out


def test_a_given_folder_is_used(tmp_path):
    cfg = OmegaConf.create({"out": str(tmp_path / "a" / "b")})
    assert out_dir(cfg, "train") == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


def test_an_unusable_device_names_the_mend():
    with pytest.raises(ValueError, match="device=cpu"):
        pick_device("warp")


def test_the_exit_status_is_what_the_work_returns(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cadence"])
    with pytest.raises(SystemExit) as end:
        entry("doctor", lambda cfg: 2)
    assert end.value.code == 2


def test_help_comes_from_the_docstring():
    run = sys.modules["policy.doctor"].run
    assert "Exit status" in help_text("doctor", run, configs=CONFIGS)


@pytest.mark.parametrize(
    "wrong", ["starts=abc", "starts=1.5", "starts=", "seed=x", "seed=-1", "keep=best", "device=tpu"]
)
def test_a_setting_of_the_wrong_kind_is_one_line_and_leaves_no_folder(
    monkeypatch, capsys, tmp_path, wrong
):
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, "collect", "env=pillar", wrong) == 1
    error = capsys.readouterr().err
    assert error.startswith("cadence collect: error: ")
    assert wrong.split("=")[0] in error
    assert "Traceback" not in error
    assert not (tmp_path / "outputs").exists()


def test_help_tells_the_settings_of_a_part_that_is_chosen(monkeypatch, capsys):
    assert run_cli(monkeypatch, "import", "format=robomimic", "--help") == 0
    printed = capsys.readouterr().out
    assert "Settings of format=robomimic (change one with format.key=value)" in printed
    assert "\n  mask: null" in printed
    assert "_target_" not in printed
    assert "${" not in printed.split("Settings of format")[1]
    assert run_cli(monkeypatch, "import", "format=../import", "--help") == 0
    assert "Settings of" not in capsys.readouterr().out


def test_a_path_may_hold_any_characters(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("a b (1), [2].hdf5", "a=b.hdf5", "it's.hdf5", "'quoted by, hand.hdf5'"):
        arguments = [f"src={name}", "store=s (1).zarr"]
        assert run_cli(monkeypatch, "import", "format=robomimic", *arguments) == 1
        assert f"error: {name.strip(chr(39))} is no readable HDF5 file" in capsys.readouterr().err


def test_a_mistyped_setting_gets_a_suggestion(monkeypatch, capsys):
    assert run_cli(monkeypatch, "collect", "env=pillar", "strats=2") == 2
    assert "did you mean starts" in capsys.readouterr().err


def test_out_that_is_a_file_names_the_mend(monkeypatch, capsys, tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert run_cli(monkeypatch, "collect", "env=pillar", "starts=1", f"out={file}") == 1
    assert "choose another place" in capsys.readouterr().err


def test_a_defect_keeps_its_traceback(monkeypatch):
    """After hours of work, a defect that left one line behind could not be found."""

    def broken(cfg: object) -> None:
        raise TypeError("no such thing")

    monkeypatch.setattr(sys, "argv", ["cadence"])
    with pytest.raises(TypeError, match="no such thing"):
        entry("doctor", broken)


def test_doctor_takes_one_path(monkeypatch, capsys):
    assert run_cli(monkeypatch, "doctor", "a", "b") == 2
    assert "give one path" in capsys.readouterr().err


def test_doctor_takes_a_path_with_any_characters(monkeypatch, capsys, tmp_path):
    path = tmp_path / "it's (a, store) $x"
    assert run_cli(monkeypatch, "doctor", str(path)) == 2
    assert f"{path} does not exist" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["train", "doctor"])
def test_a_reader_that_leaves_ends_the_verb_quietly(monkeypatch, capsys, verb):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        assert run_cli(monkeypatch, verb, "--help") == 128 + signal.SIGPIPE
        nobody.flush()  # Nor does it fail when the interpreter ends.
    assert capsys.readouterr().err == ""


def test_another_pipe_that_breaks_is_an_error(monkeypatch, capsys):
    def broken(cfg):
        raise BrokenPipeError("the worker left")

    monkeypatch.setattr(sys, "argv", ["cadence"])
    with pytest.raises(SystemExit) as end:
        entry("bench", broken)
    assert end.value.code == 1
    assert "the worker left" in capsys.readouterr().err
