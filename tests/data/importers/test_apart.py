"""Data sets read in another process: what comes back, crashes, interruptions, and its end."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from read_apart import Given, Large, N, OfObjects

from data.importers.apart import Apart, FromReader, Reader
from data.importers.importer import ImportedEpisode, ImporterError
from data.importers.intake import take_in
from data.importers.samples import SAMPLES, episodes
from data.store import EpisodeStore
from data.types import ContractError


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    """One process for the tests that do not end it."""
    made = Reader()
    yield made
    made.stop()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "src").write_text("a data set")
    return tmp_path / "src"


def apart(path: Path, reader: Reader | None = None, **settings: object) -> Apart:
    return Apart(partial(Given, path, **settings), path, reader=reader)  # pyright: ignore[reportArgumentType]


def numbers(given: Iterator[ImportedEpisode]) -> list[int]:
    """Numbers of episodes by their name, their values and their length, which must agree."""
    found = []
    for episode in given:
        values = episode.fields["action"]
        assert values.dtype == np.float32
        assert episode.metadata["name"] == f"e{values[0, 0]:.0f}"
        assert (values == len(values) - 1).all()
        found.append(len(values) - 1)
    return found


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.filterwarnings("ignore")
def test_every_format_reads_apart_as_it_does_here(name, tmp_path, reader):
    source = SAMPLES[name].write(tmp_path, episodes())
    here = SAMPLES[name].open(source)
    there = Apart(partial(SAMPLES[name].open, source), source, reader=reader)
    assert (there.contract, there.n_episodes) == (here.contract, here.n_episodes)
    assert there.path == here.path
    for mine, theirs in zip(here.episodes(1), there.episodes(1), strict=True):
        assert mine.metadata == theirs.metadata
        assert list(mine.fields) == list(theirs.fields)
        for key, values in mine.fields.items():
            np.testing.assert_array_equal(values, theirs.fields[key], strict=True)


def test_episodes_are_read_in_one_other_process(path, reader):
    given = apart(path, reader)
    assert given.left_out == {"pose": "not taken"}
    processes = {episode.metadata["pid"] for episode in given.episodes()}
    assert len(processes) == 1
    assert os.getpid() not in processes
    assert numbers(given.episodes()) == [0, 1, 2, 3, 4]
    assert numbers(given.episodes(3)) == [3, 4]
    assert numbers(given.episodes(N)) == []


def test_iterations_take_turns(path, reader):
    one, other = apart(path, reader), apart(path, reader)
    first, second, third = one.episodes(), one.episodes(2), other.episodes(1)
    taken = [next(each) for each in (first, second, third, first, third, second, first)]
    assert numbers(iter(taken)) == [0, 2, 1, 1, 2, 3, 2]
    assert numbers(first) == [3, 4]


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("importer", ImporterError, "^it is broken$"),
        ("contract", ContractError, "please give fields.action.unit"),
        ("missing", ImportError, "needs h5py: pip install h5py"),
        ("file", OSError, "Permission denied: 'x.hdf5'"),
        ("fault", RuntimeError, "KeyError: a fault of ours"),
    ],
)
def test_errors_are_passed_on_as_themselves_with_what_came_first(path, reader, what, kind, message):
    with pytest.raises(kind, match=message) as opening:
        apart(path, reader, on_opening=what)
    reading = apart(path, reader, at=1, what=what).episodes()
    assert next(reading).metadata["name"] == "e0"
    with pytest.raises(kind, match=message) as later:
        next(reading)
    for caught in (opening, later):
        cause = caught.value.__cause__
        assert isinstance(cause, FromReader)
        assert cause.origin == "KeyError in read_apart"
        assert "line" in str(cause)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("SIGSEGV", r"it crashed \(SIGSEGV\); the file is damaged, fetch it again"),
        ("SIGABRT", r"it crashed \(SIGABRT\); the file is damaged"),
        ("SIGKILL", r"it was killed \(SIGKILL\); try again, with more free memory"),
        ("exit", r"exit status 3; look at what it printed, or fetch the file again"),
    ],
)
def test_a_crash_is_an_error_that_names_file_signal_and_fix(path, what, said):
    with pytest.raises(
        ImporterError, match=f"{path}: what reads it has ended at opening it: {said}"
    ):
        apart(path, on_opening=what)
    given = apart(path, at=2, what=what)
    with pytest.raises(ImporterError, match=f"{path}: .* at episode 2: {said}"):
        numbers(given.episodes())
    assert numbers(given.episodes(3)) == [3, 4]  # by a new process
    given.close()


def test_a_program_that_outlives_the_crash_does_not_keep_it_from_being_seen(path):
    ended = path.with_name("ended")
    program = f"(sleep 8; touch {ended}) >&2 &"
    code = f"import os; os.system({program!r}); os.kill(os.getpid(), 11)"
    with pytest.raises(ImporterError, match="SIGSEGV"):
        Apart(partial(exec, code), path)  # pyright: ignore[reportArgumentType]
    assert not ended.exists()


def test_a_crash_leaves_out_one_episode(path, tmp_path):
    crashing = apart(path, at=2, what="SIGSEGV")
    outcome = take_in(crashing, tmp_path / "store.zarr", leave_out_bad=True)
    assert (outcome.n_added, len(outcome.left_out)) == (4, 1)
    assert "SIGSEGV" in outcome.left_out[0]
    with pytest.raises(ImporterError, match=r"SIGSEGV.*\(bad=leave_out"):
        take_in(crashing, tmp_path / "store.zarr")
    assert take_in(apart(path), tmp_path / "store.zarr").n_added == 1
    stored = [
        entry["source_number"]
        for entry in EpisodeStore.open(tmp_path / "store.zarr").episode_metadata
    ]
    assert stored == [0, 1, 3, 4, 2]


def test_a_real_crash_of_a_library(path):
    """Memory is touched that is nobody's, which Python cannot catch."""
    code = "import ctypes; ctypes.string_at(0)"
    with pytest.raises(ImporterError, match="SIGSEGV"):
        Apart(partial(exec, code), path)  # pyright: ignore[reportArgumentType]


def test_a_loop_that_python_cannot_end_is_ended(path):
    impatient = Reader(patience=1.5)
    given = apart(path, impatient, at=1, what="loop")
    reading = given.episodes()
    next(reading)
    said = r"it computed for 1.5 s and got nowhere \(SIGPROF\); the file is damaged"
    with pytest.raises(ImporterError, match=f"at episode 1: {said}"):
        next(reading)
    assert numbers(given.episodes(2)) == [2, 3, 4]
    impatient.stop()


def test_waiting_is_no_computing(path):
    impatient = Reader(patience=1.5)
    assert numbers(apart(path, impatient, at=1, what="wait").episodes()) == [0, 1, 2, 3, 4]
    impatient.stop()


def test_interrupting_the_wait_ends_the_process(path):
    given = apart(path, at=1, what="hang")
    reading = given.episodes()
    process = next(reading).metadata["pid"]

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def wait() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        next(reading)

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            wait()
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert not is_alive(process)
    assert numbers(given.episodes(2)) == [2, 3, 4]


def is_alive(process: object) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_the_process_ends_with_who_reads(path):
    given = apart(path)
    process = next(given.episodes()).metadata["pid"]
    assert is_alive(process)
    del given
    assert not is_alive(process)


def test_the_process_ends_with_its_parent_even_if_that_is_killed(path):
    code = f"""
        import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}
        from pathlib import Path
        from functools import partial
        from data.importers.apart import Apart
        from read_apart import Given
        path = Path({str(path)!r})
        given = Apart(partial(Given, path), path)
        print(next(given.episodes()).metadata["pid"], flush=True)
        input()
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[3],
    )
    assert parent.stdout is not None
    process = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(process)


def test_ctrl_c_at_the_terminal_is_not_for_the_process(path, reader):
    process = next(apart(path, reader).episodes()).metadata["pid"]
    assert isinstance(process, int)
    assert os.getpgid(process) != os.getpgid(0)


def test_what_a_library_prints_does_not_get_among_the_answers(path, capfd):
    given = apart(path, at=1, what="print", on_opening="print")
    assert numbers(given.episodes()) == [0, 1, 2, 3, 4]
    given.close()
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("noise of a library") == 2


def test_what_is_printed_while_the_process_starts_does_not_get_among_the_answers(
    path, tmp_path, monkeypatch, capfd
):
    (tmp_path / "sitecustomize.py").write_text('print("welcome", flush=True)')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert numbers(apart(path).episodes()) == [0, 1, 2, 3, 4]
    out, err = capfd.readouterr()
    assert (out, "welcome" in err) == ("", True)


def test_a_place_of_modules_that_python_skips_is_no_error(path, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [tmp_path, *sys.path])
    assert numbers(apart(path).episodes()) == [0, 1, 2, 3, 4]


def test_a_terminal_that_stops_who_prints_from_behind_does_not_stop_the_process(path, reader):
    assert numbers(apart(path, reader, at=1, what="SIGTTOU").episodes()) == [0, 1, 2, 3, 4]


def test_arrays_that_are_no_numbers_are_a_fault(path, reader):
    with pytest.raises(RuntimeError, match=r"^TypeError: "):
        next(Apart(partial(OfObjects, path), path, reader=reader).episodes())
    assert numbers(apart(path, reader).episodes(3)) == [3, 4]


class Interrupting:
    """A stream, of which a call is interrupted before or after it is made."""

    def __init__(self, stream: Any, call: str, *, is_made: bool):
        self._stream, self._call, self._is_made = stream, call, is_made

    def __getattr__(self, name: str) -> Any:
        if name != self._call:
            return getattr(self._stream, name)

        def interrupted(*values: object) -> None:
            if self._is_made:
                getattr(self._stream, name)(*values)
            raise KeyboardInterrupt

        return interrupted


@pytest.mark.parametrize(
    ("call", "is_made"), [("write", False), ("flush", True), ("readline", True), ("readinto", True)]
)
def test_after_an_interruption_no_answer_is_taken_for_another(path, call, is_made):
    reader = Reader()
    given = apart(path, reader)
    reading = given.episodes()
    next(reading)
    assert reader._process is not None
    if call.startswith("read"):
        reader._answers = Interrupting(reader._answers, call, is_made=is_made)  # pyright: ignore
    else:
        reader._process.stdin = Interrupting(reader._process.stdin, call, is_made=is_made)  # pyright: ignore
    with pytest.raises(KeyboardInterrupt):
        next(reading)
    assert numbers(given.episodes()) == [0, 1, 2, 3, 4]
    reader.stop()


def test_large_and_empty_arrays_come_whole(path, reader):
    given = Apart(partial(Large, path), path, reader=reader)
    (episode,) = given.episodes()
    assert episode.fields["empty"].shape == (0, 3)
    np.testing.assert_array_equal(episode.fields["large"], Large.values(), strict=True)
    assert episode.fields["large"].flags.c_contiguous


def test_warnings_are_as_in_this_process(path, capfd, monkeypatch):
    def warned(options: list[str]) -> bool:
        monkeypatch.setattr(sys, "warnoptions", options)
        with pytest.raises(RuntimeError):
            Apart(partial(warnings.warn, "look out"), path)  # pyright: ignore[reportArgumentType]
        return "look out" in capfd.readouterr().err

    assert warned([])
    assert not warned(["ignore"])
