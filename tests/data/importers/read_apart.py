"""What tests of data sets read apart read there; of few imports, for each process imports it."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.importers.importer import ImportedEpisode, ImporterError
from data.types import Contract, ContractError, Field

CONTRACT = Contract({"state": Field((1,), unit="m")}, Field((1,), unit="m"), 0.1)
N = 5


class Given:
    """Episodes whose numbers are theirs; at one of them something happens."""

    n_episodes = N
    contract = CONTRACT

    def __init__(self, path: Path, *, at: int = -1, what: str = "", on_opening: str = ""):
        self.path, self.at, self.what = Path(path), at, what
        self.left_out = {"pose": "not taken"}
        happen(on_opening)

    def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
        for number in range(first, N):
            if number == self.at:
                happen(self.what)
            values = np.full((number + 1, 1), number, np.float32)
            yield ImportedEpisode(
                {"state": values, "action": values}, {"name": f"e{number}", "pid": os.getpid()}
            )


def happen(what: str) -> None:
    """Do what a test is about, in the process that reads."""
    errors = {
        "importer": ImporterError("it is broken"),
        "contract": ContractError("please give fields.action.unit=..."),
        "missing": ModuleNotFoundError("needs h5py: pip install h5py"),
        "file": PermissionError(13, "Permission denied", "x.hdf5"),
        "fault": KeyError("a fault of ours"),
    }
    if what in errors:
        try:
            {}["nothing"]  # What came first.
        except KeyError as error:
            raise errors[what] from error
    if what.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, what))
    if what == "exit":
        os._exit(3)
    if what == "hang":
        signal.pause()
    if what == "wait":
        time.sleep(2)
    if what == "loop":
        re.match("(a*)*b", "a" * 60)  # It looks at 2**60 ways, and at no signal.
    if what == "print":
        print("noise of a library", flush=True)
        os.write(1, b"and of one in C\n")


class OfObjects(Given):
    """An episode of what is no number."""

    def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
        yield ImportedEpisode({"state": np.array([[None]])}, {})


class Large(Given):
    """An episode of more than the pipe holds, in an order that memory does not have."""

    n_episodes = 1

    @staticmethod
    def values() -> np.ndarray:
        return np.arange(3 * 2**20, dtype=np.int64).reshape(3, -1).T

    def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
        yield ImportedEpisode({"large": self.values(), "empty": np.zeros((0, 3))}, {})
