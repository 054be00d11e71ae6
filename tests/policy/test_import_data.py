"""`cadence import`: what a user types, what is asked, resumption, and what is written."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from data.codec import Jpeg
from data.importers.apart import Apart, Reader
from data.importers.samples import episodes, write_diffusion_policy, write_npz_folder
from data.importers.samples import write_robomimic as robomimic
from data.store import EpisodeStore
from policy import cli, import_data
from policy.entry import CONFIGS, compose_config
from policy.import_data import free_settings, read_formats

PUSH_T = Path(__file__).resolve().parents[2] / "../shared/data/pusht_cchi_v7_replay.zarr"
TOLD = [
    "fields.state.unit=m",
    "fields.action.unit=[m,m]",
    "fields.action.kind=absolute",
    "fields.action.rotation=none",
    "control_dt=0.1",
]


def run(*arguments: object) -> Path:
    """The verb as from the command line, without its handling of errors."""
    overrides = free_settings([str(argument) for argument in arguments])
    try:
        return import_data.run(compose_config("import", overrides))
    except InstantiationException as error:  # The command line shows its cause alone.
        raise error.__cause__ or error from None


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    """One process that reads for all tests, as its start takes longer than they do."""
    made = Reader()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def _one_reader(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_data, "Apart", partial(Apart, reader=reader))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_diffusion_policy(tmp_path, episodes())


def test_a_data_set_becomes_a_store(source, tmp_path, capsys):
    store = tmp_path / "out" / "store.zarr"
    assert run("format=diffusion_policy", f"src={source}", f"store={store}", *TOLD) == store
    found = EpisodeStore.open(store)
    expected = np.concatenate([episode["camera"] for episode in episodes()])
    np.testing.assert_array_equal(found.read("camera"), expected)
    assert (found.contract.action.unit, found.contract.control_dt) == (("m", "m"), 0.1)
    said = capsys.readouterr().out
    assert "imported: 3 of 3 episodes" in said
    assert "camera: 8 x 8 x 3 uint8" in said
    assert f"cadence train store.path={store}" in said
    assert f"cadence doctor {store}" in said


def test_a_single_episode_is_told_in_the_singular(tmp_path, capsys):
    source = write_diffusion_policy(tmp_path, episodes(lengths=(1,)))
    run("format=diffusion_policy", f"src={source}", f"store={tmp_path / 's.zarr'}", *TOLD)
    said = capsys.readouterr().out
    assert "replay.zarr: 1 episode\n" in said
    assert "imported: 1 of 1 episode\n" in said
    assert "(1 episode, 1 step)" in said


def test_a_data_set_that_has_grown_is_topped_up(tmp_path, capsys):
    made = episodes()
    store = tmp_path / "store.zarr"
    for n_made in (2, 3):
        shutil.rmtree(tmp_path / "replay.zarr", ignore_errors=True)
        source = write_diffusion_policy(tmp_path, made[:n_made])
        run("format=diffusion_policy", f"src={source}", f"store={store}", *TOLD)
    assert "has changed since 2 of its episodes were imported" in capsys.readouterr().out
    expected = np.concatenate([episode["state"] for episode in made])
    np.testing.assert_array_equal(EpisodeStore.open(store).read("state"), expected)
    shutil.rmtree(tmp_path / "replay.zarr")
    write_diffusion_policy(tmp_path, [*made[1:], made[0]])
    with pytest.raises(ValueError, match=r"holds number 0 of .*replay.zarr as it is imported no"):
        run("format=diffusion_policy", f"src={source}", f"store={store}", *TOLD)


def test_importing_again_goes_on_where_it_ended(source, tmp_path, capsys):
    store = tmp_path / "store.zarr"
    arguments = ["format=diffusion_policy", f"src={source}", f"store.path={store}", *TOLD]
    for _ in range(2):
        run(*arguments)
    assert EpisodeStore.open(store).n_episodes == 3
    assert "imported: 0 of 3 episodes; there before: 3" in capsys.readouterr().out


def test_ctrl_c_says_how_to_go_on(source, tmp_path, capsys, monkeypatch):
    store = tmp_path / "store.zarr"
    append, calls = EpisodeStore.append, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        append(self, *args, **kwargs)

    monkeypatch.setattr(EpisodeStore, "append", interrupted)
    arguments = ["format=diffusion_policy", f"src={source}", f"store={store}", *TOLD]
    with pytest.raises(KeyboardInterrupt):
        run(*arguments)
    assert "go on with the same command" in capsys.readouterr().out
    assert EpisodeStore.open(store).n_episodes == 1
    run(*arguments)
    assert [e["source_number"] for e in EpisodeStore.open(store).episode_metadata] == [0, 1, 2]


def test_rotations_become_six_numbers(tmp_path):
    path = tmp_path / "episodes"
    path.mkdir()
    pose = np.array([[1, 2, 3, 0, 0, np.pi / 2, 1.0]] * 2)
    np.savez(path / "0.npz", state=np.zeros((2, 1)), action=pose)
    run(
        "format=folder",
        f"src={path}",
        f"store={tmp_path / 's.zarr'}",
        "fields.state.unit=m",
        "fields.action.unit=[m,m,m,rad,rad,rad,1]",
        "fields.action.kind=absolute",
        "fields.action.rotation=axis_angle",
        "to_6d.action=[3]",
        "control_dt=0.1",
    )
    store = EpisodeStore.open(tmp_path / "s.zarr")
    assert store.contract.action.rotation == "rotation_6d"
    expected = [1, 2, 3, 0, 1, 0, -1, 0, 0, 1]
    np.testing.assert_allclose(store.read("action")[0], expected, atol=1e-6)


def test_columns_of_a_csv_may_have_any_names(tmp_path):
    path = tmp_path / "episodes"
    path.mkdir()
    (path / "0.csv").write_text("x,y,v\n1,2,3\n4,5,6\n")
    columns = ["format.columns.state=[x,y]", "format.columns.action=[v]", "take=[state]"]
    told = [setting for setting in TOLD if "action.unit" not in setting]
    arguments = [f"src={path}", f"store={tmp_path / 's.zarr'}", *told, "fields.action.unit=m"]
    run("format=folder", *arguments, *columns)
    assert EpisodeStore.open(tmp_path / "s.zarr").read("state").tolist() == [[1, 2], [4, 5]]


def test_bad_episodes_are_left_out_by_name_where_that_is_wanted(tmp_path, capsys):
    path = write_npz_folder(tmp_path, episodes(lengths=(3,) * 14))
    for index in range(12):
        np.savez(path / f"episode_{index}.npz", state=np.zeros((2, 2)), action=np.zeros((3, 2)))
    arguments = ["format=folder", f"src={path}", f"store={tmp_path / 's.zarr'}", *TOLD]
    with pytest.raises(ValueError, match=r"no array camera|steps, they need the same number"):
        run(*arguments)
    shutil.copy(path / "episode_13.npz", path / "episode_0.npz")
    with pytest.raises(ValueError, match=r"episode_1.npz lacks camera.*\(bad=leave_out"):
        run(*arguments)
    run(*arguments, "bad=leave_out")
    said = capsys.readouterr().out
    assert "left out: 11\n  episode 1: " in said
    assert "episode_1.npz lacks camera" in said
    assert "and 1 more" in said
    assert EpisodeStore.open(tmp_path / "s.zarr").n_episodes == 3


def test_if_nothing_can_be_imported_no_store_is_made(tmp_path):
    path = tmp_path / "episodes"
    path.mkdir()
    np.savez(path / "0.npz", state=np.full((2, 1), np.nan), action=np.zeros((2, 2)))
    store = tmp_path / "s.zarr"
    with pytest.raises(ValueError, match=r"no episode could be imported, .*s.zarr was not made"):
        run("format=folder", f"src={path}", f"store={store}", *TOLD, "bad=leave_out")
    assert not store.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], r"please give format=\.\.\., one of d4rl, diffusion_policy, .* or .* known="),
        (["format=folder", "src=''"], "src is empty: give src=PATH"),
        (["format=folder", "store=''"], "store is empty: give store=PATH"),
        (["format=lerobot_v3"], "this format is written by cadence export, imported are d4rl"),
        (["format=diffusion_policy"], r"fields.action.unit=\.\.\. .* control_dt=\.\.\."),
        (["format=diffusion_policy", "fields.state=m"], "fields.state is 'm', it must be fields"),
        (["format=diffusion_policy", "control_dt=fast"], "control_dt is 'fast'"),
        (["format=diffusion_policy", "control_dt=true"], "control_dt is True"),
        (["format=diffusion_policy", "control_dt=-1"], "control_dt is -1 s, it must be positive"),
        (["format=diffusion_policy", "control_dt=nan"], "control_dt is nan s"),
        (["format=diffusion_policy", "bad=skip"], "bad is 'skip', choose refuse or leave_out"),
        (["format=diffusion_policy", "fields=3"], "fields is 3, it must be settings"),
        (["format=diffusion_policy", *TOLD, "to_6d=3"], "to_6d is 3, it must be settings"),
        (["format=diffusion_policy", *TOLD, "to_6d.pose=[1]"], "to_6d names .'pose'."),
        (["format=diffusion_policy", *TOLD, "take=[stat]"], "has no array stat; it has action"),
        (["format=diffusion_policy", *TOLD, "take=3"], r"take is 3, it must be take=\[ARRAY"),
        (
            ["format=diffusion_policy", *TOLD, "fields.state.low=3"],
            r"fields.state.low is 3, it must be numbers: \[0,1\]",
        ),
        (["format=lerobot", "format.tolerance_s=x"], "format.tolerance_s is 'x', it must be a num"),
        (["format=lerobot", "format.leave_out=3"], r"format.leave_out is 3, it must be a list"),
        (["format=lerobot", "format.verify=3"], "format.verify is 3, it must be true or false"),
        (["format=folder", "format.columns=3"], "format.columns is 3, it must be settings"),
        (["format=robomimic"], "is no readable HDF5 file: it is a folder"),
        (["format=dppo"], "is no zip archive"),
        (["format=folder"], "holds no npz or csv files"),
        (["format=minari"], "holds no main_data.hdf5"),
        (["format=d4rl"], "it is a folder"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(source, tmp_path, arguments, complaint):
    if arguments == ["format=lerobot_v3"] and not (CONFIGS / "format/lerobot_v3.yaml").exists():
        pytest.skip("there is no format that is only written")
    store = tmp_path / "store.zarr"
    with pytest.raises(ValueError, match=complaint):
        run(f"src={source}", f"store={store}", *arguments)
    assert not store.exists()


def test_a_format_that_does_not_exist_is_refused_by_name(source, tmp_path):
    with pytest.raises(HydraException, match=r"(?s)format/robomimik.*robomimic"):
        run("format=robomimik", f"src={source}", f"store={tmp_path / 'store.zarr'}")


def test_a_setting_that_a_format_does_not_use_is_refused(source, tmp_path):
    cfg = compose_config(
        "import",
        free_settings(["format=diffusion_policy", f"src={source}", "store=x", "take=[state]"]),
    )
    OmegaConf.set_struct(cfg, False)
    del cfg.format["take"]
    with pytest.raises(ValueError, match="this format takes it from the data set"):
        import_data.open_importer(cfg)


def test_another_meaning_of_a_store_that_is_there(source, tmp_path):
    store = tmp_path / "store.zarr"
    arguments = ["format=diffusion_policy", f"src={source}", f"store={store}"]
    run(*arguments, *TOLD)
    with pytest.raises(ValueError, match=r"control_dt is 0.2 s in what is imported, but 0.1 s in"):
        run(*arguments, *TOLD[:-1], "control_dt=0.2")


def test_free_settings_are_as_hydra_takes_them():
    assert free_settings(["store=a b", "fields.x.unit=m", "take.a=b", "to_6d.a=[1]", "src=x"]) == [
        "store.path=a b",
        "++fields.x.unit=m",
        "++take.a=b",
        "++to_6d.a=[1]",
        "src=x",
    ]
    assert free_settings(["format.columns.x=[a]", "take=[a]"]) == [
        "++format.columns.x=[a]",
        "take=[a]",
    ]


def test_formats_that_are_read():
    assert {"d4rl", "diffusion_policy", "dppo", "folder", "minari", "robomimic"} <= set(
        read_formats()
    )


@pytest.mark.parametrize("known", [path.stem for path in (CONFIGS / "known").glob("*.yaml")])
def test_known_answers_are_those_of_the_store_they_are_of(known):
    """The contract that `known` gives is the one that configs/store spells out."""
    if not PUSH_T.exists():
        pytest.skip("the published data set is not on this machine")
    cfg = compose_config("import", free_settings([f"known={known}", f"src={PUSH_T}", "store=x"]))
    name = known.replace("push_t", "push_t_human")
    store = instantiate(compose_config("doctor", [f"store={name}", f"path={PUSH_T}"]).store)
    assert import_data.open_importer(cfg).contract == store.contract


def test_help_lists_what_is_imported(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cadence", "--help"])
    with pytest.raises(SystemExit) as end:
        import_data.main()
    assert end.value.code == 0
    listed = next(line for line in capsys.readouterr().out.splitlines() if "  format=" in line)
    assert "robomimic" in listed
    assert "lerobot_v3" not in listed


def test_a_crash_of_the_library_is_an_error_with_the_file_and_the_signal(source, tmp_path):
    """What opens the data set ends its process, as a damaged file may."""
    arguments = ["format=diffusion_policy", f"src={source}", f"store={tmp_path / 's.zarr'}"]
    cfg = compose_config("import", free_settings(arguments))
    OmegaConf.set_struct(cfg, False)
    cfg.format = {"_target_": "data.importers.samples.os.abort"}
    with pytest.raises(ValueError, match=rf"{source}: what reads it .* crashed \(SIGABRT\)"):
        import_data.run(cfg)
    assert not (tmp_path / "s.zarr").exists()


def test_the_command_line(tmp_path, monkeypatch, capsys):
    path, store = robomimic(tmp_path, episodes()), tmp_path / "store.zarr"
    arguments = ["import", "format=robomimic", f"src={path}", f"store={store}", "take=[eef_pos]"]
    monkeypatch.setattr(sys, "argv", ["cadence", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    asked = "please give fields.eef_pos.unit=... fields.action.unit=..."
    assert asked in capsys.readouterr().err
    told = ["fields.eef_pos.unit=m", "fields.action.unit=1", "fields.action.rotation=none"]
    command = [sys.executable, "-m", "policy.cli", *arguments, *told]
    done = subprocess.run(
        command, cwd=CONFIGS.parent, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, EpisodeStore.open(store).n_episodes) == (0, 3)
    assert EpisodeStore.open(store).contract.action.kind == "delta"
    assert "import" in cli.usage()


INTERRUPTED_AT = 3  # episodes that are there
WAITING = f"""
import signal, time
from data.store import EpisodeStore
from policy import cli
append, calls = EpisodeStore.append, []
def waiting(self, *args, **kwargs):
    append(self, *args, **kwargs)
    calls.append(1)
    if len(calls) == {INTERRUPTED_AT}:
        print("waiting", flush=True)
        time.sleep(100)
EpisodeStore.append = waiting
signal.signal(signal.SIGINT, signal.default_int_handler)  # What a shell starts behind ignores it.
cli.main()
"""


def test_a_real_ctrl_c_keeps_whole_episodes(tmp_path):
    n = 6
    path = write_npz_folder(tmp_path, episodes(lengths=(2,) * n))
    store = tmp_path / "store.zarr"
    arguments = ["format=folder", f"src={path}", f"store={store}", *TOLD]
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, "import", *arguments],
        cwd=CONFIGS.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        before = list(takewhile(lambda line: not line.endswith("waiting\n"), process.stdout))
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, before
    assert "go on with the same command" in said
    assert EpisodeStore.open(store).n_episodes == INTERRUPTED_AT
    run(*arguments)
    numbers = [e["source_number"] for e in EpisodeStore.open(store).episode_metadata]
    assert numbers == list(range(n))


def test_pictures_may_be_kept_with_loss():
    assert compose_config("import", ["src=a", "store.path=b"]).codec._target_.endswith("Lossless")
    cfg = compose_config("import", ["src=a", "store.path=b", "codec=jpeg", "codec.quality=80"])
    assert instantiate(cfg.codec) == Jpeg(80)
