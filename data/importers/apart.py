"""Foreign data sets, read in a process of their own.

A damaged file may crash the C library that reads it, or have it loop for ever (a zeroed heap does
that to HDF5), which nothing in Python can catch. Read apart, that ends a process which does nothing
else, and becomes an ImporterError with the file, the signal and the fix.

`cadence import` reads every format so, not only those whose libraries were seen to crash: numpy's
and zarr's decoders are C as well, and one way is tested once. It costs the start of a process
and a copy of the numbers through a pipe; a part of that is gained by reading ahead while the last
episode is stored. An episode is asked for when the one before it has come, so that the other
process holds one at most.

What comes back is JSON and plain numbers, never a pickle: a file that takes the reader over gains
nothing here. It is a plain subprocess, since those of multiprocessing import the main module again.
"""

import contextlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.importers.importer import ImportedEpisode, Importer, ImporterError
from data.types import Contract, ContractError

ERRORS = {kind.__name__: kind for kind in (ImporterError, ContractError, ImportError, OSError)}
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from data.importers.apart_reader import main; main(float(sys.argv[2]), int(sys.argv[3]))"
)
PATIENCE_S = 600.0  # of computing at one answer, of all threads; an episode takes far less
BUFFER_BYTES = 2**20
STDERR = 2  # the descriptor


class FromReader(Exception):
    """What went wrong in the other process, as the cause of the error that is raised here.

    Args:
        origin: kind of the first error and the module it came from, or the signal of a crash.
        told: traceback of the other process.
    """

    def __init__(self, origin: str, told: str):
        super().__init__(f"{origin}\n{told}".rstrip())
        self.origin = origin


class Reader:
    """A process that reads for this one; started when it is needed, and again after a crash.

    Whatever interrupts the wait for an answer ends the process, as does the end of this one.

    Args:
        patience: time of computing that an answer may take [s].
    """

    def __init__(self, patience: float = PATIENCE_S):
        self._patience = patience
        self.opened: object = None  # mark of the data set that is open there
        self.turn: object = None  # mark of the iteration whose episodes are read
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: io.BufferedReader[Any] | None = None
        self._end = lambda: None
        self._is_owed = False  # whether an answer has not been taken yet

    def ask(self, kind: str, value: object = None) -> None:
        """Send a request; `answer` must be called before the next one."""
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        request = pickle.dumps((kind, value))
        try:
            self._is_owed = True
            with contextlib.suppress(BrokenPipeError):  # `answer` finds it dead.
                self._process.stdin.write(request)
                self._process.stdin.flush()
        except BaseException:  # Whether it was asked is not known.
            self.stop()
            raise

    def answer(self, *, path: Path, doing: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What comes back, with its arrays.

        Args:
            path: of the data set, for messages.
            doing: what was asked for, for messages.

        Raises:
            ImporterError: the process has crashed, or says that the data set is broken.
            ContractError: it says that something must be told.
            ImportError: it lacks a library.
            OSError: a file cannot be read.
            RuntimeError: anything else, which is a fault of this program.
        """
        assert self._process is not None
        assert self._answers is not None
        try:
            try:
                said, arrays = _received(self._answers)
                self._is_owed = False
            except EOFError:
                name, words = self._death(self._process.wait())
                raise ImporterError(
                    f"{path}: what reads it has ended at {doing}: {words}"
                ) from FromReader(name, "")
        except BaseException:
            self.stop()
            raise
        if "error" in said:
            raise _raised(said)
        return said, arrays

    def settle(self) -> None:
        """Take the answer that nobody waits for any more."""
        if self._is_owed:
            with contextlib.suppress(Exception):
                self.answer(path=Path(), doing="")

    def stop(self) -> None:
        """End the process."""
        self._end()
        self._process = self._answers = None
        self.opened = self.turn = None
        self._is_owed = False

    def _death(self, status: int) -> tuple[str, str]:
        """How the process ended, by its status: name of the signal, and what to say and do."""
        if status >= 0:
            said = f"exit status {status}; look at what it printed, or fetch the file again"
            return f"exit status {status}", said
        name = signal.Signals(-status).name
        if -status == signal.SIGPROF:
            computed = f"it computed for {self._patience:g} s and got nowhere ({name})"
            return name, f"{computed}; the file is damaged, fetch it again"
        if -status in (signal.SIGKILL, signal.SIGTERM):
            return name, f"it was killed ({name}); try again, with more free memory if that was why"
        return name, f"it crashed ({name}); the file is damaged, fetch it again"

    def _start(self) -> None:
        options = [f"-W{option}" for option in sys.warnoptions]
        # A pipe of its own, since whatever starts or is imported there may print.
        from_it, into_it = os.pipe()
        answers = io.BufferedReader(io.FileIO(from_it), BUFFER_BYTES)
        places = [place for place in sys.path if isinstance(place, str)]  # Python skips others.
        settings = [json.dumps(places), str(self._patience), str(into_it)]
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", *options, "-c", START, *settings],
                stdin=subprocess.PIPE,
                stdout=STDERR,
                pass_fds=(into_it,),
                process_group=0,  # Ctrl-C is for this process, which then ends that one.
            )
        finally:
            os.close(into_it)
        self._process, self._answers = process, answers
        self._end = weakref.finalize(self, _end, process, answers)


class Apart:
    """A foreign data set that is read in a process of its own; see the module's docstring.

    Iterations may take turns; each takes up the reading where it was.

    Args:
        make: opens the data set; it is pickled, so a class or a `functools.partial` of one.
        path: of the data set, for messages.
        reader: the process that reads; None for a new one.

    Raises:
        ImporterError: the data set cannot be read, or crashes what reads it.
        ContractError: something must be told.
        ImportError: a library is missing.
    """

    def __init__(
        self, make: Callable[[], Importer], path: str | Path, *, reader: Reader | None = None
    ):
        self._make, self._given = pickle.dumps(make), Path(path)
        self._mark = object()  # of this data set at the reader
        self._reader = Reader() if reader is None else reader
        said = self._open()
        self.path = Path(said["path"])
        self.contract = Contract.from_json(said["contract"])
        self.n_episodes = int(said["n_episodes"])
        self.left_out: Mapping[str, str] = said["left_out"]

    def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
        """Episodes from number `first` on, the next one being read while one is looked at.

        Raises:
            ImporterError: an episode is broken, or crashes what reads it.
        """
        number, turn = first, object()
        while True:
            if self._reader.turn is not turn:
                self._open()
                self._reader.ask("first", number)
                self._reader.turn = turn
            said, fields = self._reader.answer(path=self.path, doing=f"episode {number}")
            if "metadata" not in said:
                return
            self._reader.ask("next")
            number += 1
            yield ImportedEpisode(fields, said["metadata"])

    def close(self) -> None:
        """End the process that reads; another one is started where more is read."""
        self._reader.stop()

    def _open(self) -> dict[str, Any]:
        """Have the data set open there; what is said of it where it was not."""
        self._reader.settle()
        if self._reader.opened is self._mark:
            return {}
        self._reader.turn = self._reader.opened = None
        self._reader.ask("open", self._make)
        said, _ = self._reader.answer(path=self._given, doing="opening it")
        self._reader.opened = self._mark
        return said


def _end(process: "subprocess.Popen[bytes]", answers: "io.BufferedReader[Any]") -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, answers):
        if stream is not None:
            with contextlib.suppress(OSError):  # of a request that it did not take any more
                stream.close()


def _received(stream: "io.BufferedReader[Any]") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A line of JSON and the arrays that it announces.

    Raises:
        EOFError: the other side has ended.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    said, arrays = json.loads(line), {}
    for name, dtype, shape in said.get("arrays", ()):
        arrays[name] = np.empty(shape, dtype)
        numbers = arrays[name].reshape(-1).view(np.uint8)
        if stream.readinto(numbers) != len(numbers):
            raise EOFError
    return said, arrays


def _raised(said: Mapping[str, Any]) -> Exception:
    """The error that the other process tells of."""
    kinds, text = said["error"], said["text"]
    kind = next((ERRORS[name] for name in kinds if name in ERRORS), None)
    error = RuntimeError(f"{kinds[0]}: {text}") if kind is None else kind(text)
    error.__cause__ = FromReader(said["origin"], said["traceback"])
    return error
