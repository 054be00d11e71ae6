"""Random corruptions of files, and what a reader makes of each.

A reader may refuse a damaged data set with an error that names the fault, or read it right where
the damage does not matter; it may neither give wrong numbers nor end in an error of a library.

    python -m data.fuzz            # 10,000 corruptions of a small store of ours
"""

import argparse
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.corrupt import corrupt
from data.importers.importer import ImporterError
from data.store import EpisodeStore, StoreError
from data.types import Contract, ContractError, Field

REFUSALS = (StoreError, ContractError, ImporterError)  # what says clearly what is wrong
PATIENCE = 20.0  # [s] after which an attempt counts as hanging
Corruption = Callable[[Path, np.random.Generator], str]


@dataclass
class FuzzReport:
    """What became of the attempts to read corrupted copies.

    Args:
        refused: attempts that ended in an error of ours.
        right: attempts that read what the original holds.
        wrong: attempts that read something else without noticing.
        crashed: attempts that ended in another error, or did not end.
        offenders: what was done in the first attempts that read wrong or crashed, and the outcome.
    """

    refused: int = 0
    right: int = 0
    wrong: int = 0
    crashed: int = 0
    offenders: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Number of attempts."""
        return self.refused + self.right + self.wrong + self.crashed

    @property
    def is_clean(self) -> bool:
        """Whether every attempt was refused or right."""
        return not self.wrong and not self.crashed

    def __str__(self) -> str:
        counts = (
            f"{self.n} corruptions: {self.refused} refused, {self.right} read right, "
            f"{self.wrong} read wrong, {self.crashed} crashed"
        )
        return "\n".join([counts, *self.offenders])


def fuzz(
    make_copy: Callable[[Path], Path],
    attempt: Callable[[Path], bool],
    *,
    n: int,
    seed: int,
    folder: Path | None = None,
    corruption: Corruption | None = None,
    refusals: tuple[type[Exception], ...] = REFUSALS,
    n_shown: int = 10,
) -> FuzzReport:
    """Corrupt a fresh copy of a data set, try to read it, and so on.

    Args:
        make_copy: puts an undamaged copy into an empty folder and returns its path.
        attempt: reads all of the copy at a path; returns whether all that it read is right.
        n: number of corruptions.
        seed: of all randomness; corruption i depends on it and on i alone.
        folder: where the copies are made, None for one of the system's.
        corruption: what damages a copy, None for `corrupt`.
        refusals: the errors that count as clear.
        n_shown: how many offenders are kept.
    """
    report = FuzzReport()
    for index in range(n):
        with tempfile.TemporaryDirectory(dir=folder) as home:
            path = make_copy(Path(home))
            done = (corruption or corrupt)(path, np.random.default_rng([seed, index]))
            outcome = _outcome(attempt, path, refusals)
        kind = outcome.split(":")[0]
        setattr(report, kind, getattr(report, kind) + 1)
        if kind in ("wrong", "crashed") and len(report.offenders) < n_shown:
            report.offenders.append(f"[seed {seed}, {index}] {done} -> {outcome}")
    return report


def _outcome(attempt: Callable[[Path], bool], path: Path, refusals: tuple) -> str:
    """One of the counts of a report, and what happened."""
    try:
        with _time_limit(PATIENCE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of zarr, about files that it does not know.
            return "right" if attempt(path) else "wrong: it read other numbers"
    except refusals as error:
        return f"refused: {error}"
    except Exception as error:
        return f"crashed: {type(error).__name__}: {error}"


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread after that long."""

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError(f"it did not end within {seconds} s")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def small_store(path: Path) -> EpisodeStore:
    """A store with several shards of a field, an edit and unfinished chunks."""
    contract = Contract(
        observation={
            "state": Field((3,), unit="m"),
            "camera": Field((128, 128, 3), "uint8"),
            "count": Field((1,), "int64"),
        },
        action=Field((3,), unit="m"),
        control_dt=0.1,
        task="reach",
    )
    store = EpisodeStore.create(path, contract, shard_bytes=2**20)
    generator = np.random.default_rng(0)
    for index in range(6):
        length = 3 + 40 * (index % 2)
        store.append(
            {
                "state": generator.normal(size=(length, 3)).astype(np.float32),
                "camera": np.full((length, 128, 128, 3), index, np.uint8),
                "count": np.zeros((length, 1), np.int64),  # As a lost file would read.
                "action": generator.normal(size=(length, 3)).astype(np.float32),
            },
            seed=index,
            success=index != 3,
        )
    store.edit(hide=[2], metadata={0: {"seed": 0, "success": False}})
    store.close()
    return store


def content(path: Path) -> tuple:
    """All that a store says."""
    store = EpisodeStore.open(path)
    fields = store.contract.fields
    numbers = tuple(store.read(name).tobytes() for name in fields)
    return store.contract, store.episode_ends.tolist(), store.episode_metadata, numbers


def fuzz_store(*, n: int, seed: int, folder: Path | None = None) -> FuzzReport:
    """Corruptions of `small_store`; see `fuzz`."""
    with tempfile.TemporaryDirectory(dir=folder) as home:
        original = Path(home) / "original.zarr"
        small_store(original)
        expected = content(original)
        return fuzz(
            lambda place: Path(shutil.copytree(original, place / "store.zarr")),
            lambda path: content(path) == expected,
            n=n,
            seed=seed,
            folder=folder,
        )


def main() -> None:
    """Corrupt a small store many times and print what became of it."""
    parser = argparse.ArgumentParser(description="corrupt a small store, and read it")
    parser.add_argument("--n", type=int, default=10_000, help="corruptions (10,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where copies are made, best in memory")
    arguments = parser.parse_args()
    report = fuzz_store(n=arguments.n, seed=arguments.seed, folder=arguments.folder)
    print(report)
    raise SystemExit(0 if report.is_clean else 1)


if __name__ == "__main__":
    main()
