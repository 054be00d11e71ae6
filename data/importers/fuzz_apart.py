"""How fuzzing reads: in another process, as `cadence import` does, with an account of the causes.

A damaged file may crash that process; that is an error that names the fault, as any other. But an
error that hides a fault of our own code, told as one of the data set, is not.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from data.fuzz import REFUSALS
from data.importers.apart import Apart, FromReader, Reader
from data.importers.importer import Importer

# What a sound program does not meet, whatever it reads.
PATIENCE_S = 3.0  # of computing; an attempt takes some hundredths
FAULTS = ("AssertionError", "AttributeError", "IndexError", "KeyError", "NameError", "TypeError")
FAULTS += ("NotImplementedError", "RecursionError", "UnboundLocalError", "ZeroDivisionError")


def opened(make: Callable[[Path], Importer], path: Path, reader: Reader) -> Importer:
    """A data set, opened in another process as `cadence import` does it.

    Args:
        make: opens it; it can be pickled.
        path: of the data set.
        reader: the process.
    """
    return Apart(partial(_quietly, make, path), path, reader=reader)


def _quietly(make: Callable[[Path], Importer], path: Path) -> Importer:
    """Open a data set and hide the warnings of libraries, such as zarr's of files it skips."""
    warnings.simplefilter("ignore")
    return make(path)


def counted(attempt: Callable[[Path], bool], causes: Counter[str]) -> Callable[[Path], bool]:
    """An attempt whose errors are counted by what led to them.

    Args:
        attempt: reads a copy; returns whether what it read is right.
        causes: the counts, which are added to.

    Returns:
        It raises AssertionError for an error that hides a fault of our own code.
    """

    def wrapped(path: Path) -> bool:
        try:
            return attempt(path)
        except REFUSALS as error:
            cause = error.__cause__
            origin = cause.origin if isinstance(cause, FromReader) else type(error).__name__
            causes[origin] += 1
            if is_own_fault(origin):
                raise AssertionError(f"a fault of ours ({origin}), told as: {error}") from error
            raise

    return wrapped


def account(causes: Counter[str]) -> str:
    """A table of causes, the most frequent ones first."""
    return "\n".join(f"  {n:6} {cause}" for cause, n in causes.most_common())


def is_own_fault(origin: str) -> bool:
    """Whether an error of this kind and place is one that our code should not make."""
    kind, _, place = origin.partition(" in ")
    return kind in FAULTS and place.startswith("data.")
