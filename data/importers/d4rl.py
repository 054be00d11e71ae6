"""D4RL's HDF5: flat `observations` and `actions`, cut into episodes by `terminals` and `timeouts`.

An episode ends with the step whose flag is set. What follows the last flag was cut off while it was
recorded; it is kept, and its metadata say so. Files without `timeouts` need `max_steps`, the length
at which the environment ended an episode (1000 for the locomotion tasks); 0: none.

Shape legend: `N` steps of all episodes.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.importers.arrays import Selection
from data.importers.hdf5 import dataset, leaves, names, open_hdf5, rows, spec_of, subgroup
from data.importers.importer import ImportedEpisode, ImporterError
from data.types import Contract

if TYPE_CHECKING:
    import h5py

BLOCK = 2**20  # flags read at once
NO_FIELDS = ("actions", "rewards", "terminals", "timeouts", "next_observations")


class D4RL:
    """A D4RL file, opened for reading.

    Args:
        path: of the .hdf5 file.
        fields: field name -> entries of `Field` that the user tells.
        take: which arrays become fields; None: `observations`, as the field "state".
        control_dt: time between two steps [s], which the format does not say.
        task: what is done, in words.
        max_steps: of an episode, for files without `timeouts`; 0: no limit.

    Raises:
        ImporterError: the file cannot be read.
        ContractError: something must be told.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fields: Mapping[str, Mapping] | None = None,
        take: Mapping[str, object] | Sequence[str] | None = None,
        control_dt: float | None = None,
        task: str = "",
        max_steps: int | None = None,
    ):
        self.path = Path(path)
        if max_steps is not None and (type(max_steps) is not int or max_steps < 0):
            raise ImporterError(
                f"max_steps is {max_steps!r}, it must be a number of steps, or 0 for no limit"
            )
        with open_hdf5(self.path) as file:
            arrays = {
                name: spec_of(array, path=self.path) for name, array in _arrays(file, self.path)
            }
            for name in ("observations", "actions", "terminals"):
                if name not in arrays:
                    there = ", ".join(sorted(arrays)) or "nothing"
                    raise ImporterError(
                        f"{self.path} has no {name}, it has {there}: D4RL files hold "
                        f"observations, actions and terminals"
                    )
            n_steps = arrays["actions"][0]
            fitting = {name: spec for name, (n, spec) in arrays.items() if n == n_steps}
            lengths = {name: n for name, (n, _) in arrays.items() if name in NO_FIELDS}
            lengths["observations"] = arrays["observations"][0]
            if len(set(lengths.values())) != 1:
                raise ImporterError(f"{self.path}: its arrays have {lengths} steps, not the same")
            is_limited = "timeouts" in arrays
            also = [] if is_limited or max_steps is not None else ["format.max_steps=..."]
            self._selection = Selection.of(
                self.path,
                {name: spec for name, spec in fitting.items() if name not in NO_FIELDS[1:]},
                take=take if take else {"state": "observations"},
                told=fields,
                control_dt=control_dt,
                task=task,
                action="actions",
                also=also,
            )
            self._starts, self._ended = self._episodes_of(
                file, is_limited, n_steps, 0 if is_limited else max_steps or 0
            )

    @property
    def contract(self) -> Contract:
        """Meaning of the fields."""
        return self._selection.contract

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self._ended)

    def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
        """Episodes from number `first` on, in the order of the file."""
        with open_hdf5(self.path) as file:
            arrays = {k: a for k, a in _arrays(file, self.path) if k in self._selection.keys}
            for index in range(first, self.n_episodes):
                start, stop = self._starts[index], self._starts[index + 1]
                where = f"{self.path}: episode {index}"
                self._selection.check_size(stop - start, where=where)
                fields = self._selection.episode(
                    lambda key, start=start, stop=stop: rows(
                        arrays[key], start, stop, path=self.path
                    ),
                    where=where,
                )
                name = f"steps_{start}_{stop - 1}"
                yield ImportedEpisode(fields, {"name": name, "ended": self._ended[index]})

    def _episodes_of(
        self, file: "h5py.File", is_limited: bool, n_steps: int, max_steps: int
    ) -> tuple[list[int], list[str]]:
        """First steps of all episodes, and one past the last; how each ended."""
        starts, ended = [0], []

        def close(stop: int, why: str) -> None:
            if max_steps:
                while stop - starts[-1] > max_steps:
                    starts.append(starts[-1] + max_steps)
                    ended.append("timeout")
            is_full = max_steps and stop - starts[-1] == max_steps
            starts.append(stop)
            ended.append("timeout" if why == "cut" and is_full else why)

        for first in range(0, n_steps, BLOCK):
            stop = min(first + BLOCK, n_steps)
            terminals = self._flags(file, "terminals", first, stop)
            timeouts = self._flags(file, "timeouts", first, stop) if is_limited else None
            ends = terminals if timeouts is None else terminals | timeouts
            for step in np.flatnonzero(ends).tolist():
                close(first + step + 1, "terminal" if terminals[step] else "timeout")
        if starts[-1] < n_steps:
            close(n_steps, "cut")
        if not ended:
            raise ImporterError(f"{self.path} holds no steps")
        return starts, ended

    def _flags(self, file: "h5py.File", name: str, first: int, stop: int) -> np.ndarray:
        values = rows(dataset(file, name, path=self.path), first, stop, path=self.path)
        values = values.reshape(stop - first, -1)
        if values.shape[1] != 1 or not np.isin(values, (0, 1)).all():
            raise ImporterError(f"{self.path}: {name} must be one 0 or 1 for each step")
        return values[:, 0].astype(bool)


def _arrays(file: "h5py.File", path: Path) -> Iterator[tuple[str, "h5py.Dataset"]]:
    """Arrays of a row per step: those at the top, and those of `infos`, as infos_NAME."""
    for name in names(file, path=path):
        if name == "metadata":
            continue
        if name == "infos":
            found = leaves(subgroup(file, name, path=path), path=path)
            yield from ((f"infos_{key}", array) for key, array in found.items() if array.shape)
        else:
            array = dataset(file, name, path=path)
            if array.shape:
                yield name, array
