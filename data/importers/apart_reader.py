"""The process that reads a foreign data set for another one; see `data.importers.apart`.

Requests come as pickles on the standard input: ("open", a pickled function that opens a data set),
("first", number) and ("next", None). Each is answered, in a pipe of its own, by a line of JSON and
the numbers of the arrays that it announces. The process ends with its input, that is with the one
it reads for.
"""

import json
import os
import pickle
import resource
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np

from data.importers.importer import ImportedEpisode, Importer

Answer = tuple[dict[str, Any], dict[str, np.ndarray]]


class Desk:
    """Answers requests, one after the other."""

    def __init__(self):
        self._importer: Importer | None = None
        self._episodes: Iterator[ImportedEpisode] = iter(())

    def answer(self, kind: str, value: Any) -> Answer:
        """What is asked for: a data set is opened, or the next of its episodes read.

        Args:
            kind: "open", "first" or "next".
            value: what opens it, or the number of the first episode.
        """
        if kind == "open":
            self._importer, self._episodes = None, iter(())
            opened: Importer = pickle.loads(value)()
            self._importer = opened
            return _described(opened), {}
        if kind == "first":
            assert self._importer is not None
            self._episodes = self._importer.episodes(value)
        episode = next(self._episodes, None)
        if episode is None:
            return {}, {}
        return {"metadata": episode.metadata}, episode.fields


def _described(importer: Importer) -> dict[str, Any]:
    """What is known of a data set before its episodes are read."""
    return {
        "path": str(importer.path),
        "contract": importer.contract.to_json(),
        "n_episodes": importer.n_episodes,
        "left_out": dict(getattr(importer, "left_out", {})),
    }


def failure(error: Exception) -> dict[str, Any]:
    """An error as an answer: its kinds, its words and where it came from."""
    return {
        "error": [kind.__name__ for kind in type(error).__mro__],
        "text": str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error),
        "origin": origin(error),
        "traceback": "".join(traceback.format_exception(error)),
    }


def origin(error: BaseException) -> str:
    """Kind of the error that came first, and the module it was raised in: "OSError in h5py.h5d".

    Args:
        error: that came last.
    """
    while (
        earlier := error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    ) is not None:
        error = earlier
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = "?" if frame is None else frame.tb_frame.f_globals.get("__name__", "?")
    return f"{type(error).__name__} in {module}"


def packed(desk: Desk, kind: str, value: Any) -> list[bytes | memoryview]:
    """An answer, or the error in its place, as it is written."""
    try:
        said, arrays = desk.answer(kind, value)
        arrays = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        numbers = [values.reshape(-1).view(np.uint8).data for values in arrays.values()]
        shapes = [[name, v.dtype.str, list(v.shape)] for name, v in arrays.items()]
        return [json.dumps({**said, "arrays": shapes}).encode() + b"\n", *numbers]
    except Exception as error:
        return [json.dumps(failure(error)).encode() + b"\n"]


def main(patience: float, descriptor: int) -> None:
    """Answer until there are no more requests.

    Args:
        patience: time of computing [s] after which an answer is given up and the process ends.
        descriptor: where answers are written; a library may print, and not get among them.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # A crash is told of; it leaves no file.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # A terminal may stop who prints from behind.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    os.set_inheritable(descriptor, False)  # A program that a library starts may stay longer.
    requests, answers = sys.stdin.buffer, os.fdopen(descriptor, "wb")
    desk = Desk()
    try:
        while True:
            kind, value = pickle.load(requests)
            # Ends a loop within a library, which Python cannot; a slow disk takes no such time.
            signal.setitimer(signal.ITIMER_PROF, patience)
            parts = packed(desk, kind, value)
            signal.setitimer(signal.ITIMER_PROF, 0)
            answers.writelines(parts)
            answers.flush()
            del parts  # One episode is held, not two.
    except (EOFError, BrokenPipeError):
        pass
    os._exit(0)  # Libraries that close what is damaged may hang.
