"""The fields of a store at one moment of its life: their arrays, and what reads them."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import zarr

from data.commit import ChunkCheck
from data.layout import StoreError, stored_array
from data.opening import Found, fitting_arrays
from data.reading import FieldReader
from data.snapshot import Snapshot, take_snapshot


@dataclass(frozen=True)
class Fields:
    """What a store shows.

    Args:
        found: the store, and what its numbers are to mean.
        snapshot: what is visible.
        arrays: field -> array.
    """

    found: Found
    snapshot: Snapshot
    arrays: Mapping[str, zarr.Array]
    _readers: dict[str, FieldReader] = field(default_factory=dict, init=False, compare=False)

    @classmethod
    def of(cls, found: Found, group: zarr.Group) -> Self:
        """What is committed now, if every array fits it.

        Args:
            found: the store.
            group: of it, as it is now.

        Raises:
            StoreError: a part is missing or damaged.
        """
        is_own = found.own is not None
        snapshot = take_snapshot(found.path, group, is_own=is_own)
        arrays = fitting_arrays(group, found.contract, found.sources, snapshot, is_own=is_own)
        return cls(found, snapshot, arrays)

    def after(self, snapshot: Snapshot) -> Self:
        """The same arrays, of which something else is visible."""
        return replace(self, snapshot=snapshot)

    def reopened(self) -> Self:
        """The same, with no file that was opened before."""
        return replace(self)

    @property
    def path(self) -> Path | str:
        """Of the store, for messages."""
        return self.found.path

    def array(self, key: str) -> zarr.Array:
        """The array of a field; StoreError where there is no such field."""
        if key not in self.arrays:
            raise StoreError(f"{self.path} has no field {key!r}; it has {sorted(self.arrays)}")
        return self.arrays[key]

    def reader(self, key: str) -> FieldReader:
        """What reads a field; kept, because it keeps files open."""
        array = self.array(key)
        if key not in self._readers:
            self._readers[key] = FieldReader(
                self.path,
                key,
                field=self.found.contract.fields[key],
                array=array,
                source=self.found.sources[key],
                place=self.snapshot.place,
                check=self._checks.get(key),
            )
        return self._readers[key]

    def read(self, key: str, steps: np.ndarray) -> np.ndarray:
        """[n, ...] the given shown steps of a field, ascending; see `FieldReader.read`."""
        return self.reader(key).read(self.snapshot.rows(steps))

    def unfinished(self) -> dict[str, np.ndarray]:
        """Field -> the steps in its last, unfinished chunk."""
        n_rows = self.snapshot.n_rows
        first = {name: n_rows - n_rows % array.chunks[0] for name, array in self.arrays.items()}
        return {name: self.reader(name).read(np.arange(first[name], n_rows)) for name in first}

    @functools.cached_property
    def _checks(self) -> dict[str, ChunkCheck]:
        """Field -> what is asked of its chunks, of all fields of a store of ours."""
        names = [] if self.found.own is None else self.found.own.fields
        group = self.snapshot.group
        arrays = {
            name: self.arrays[name]
            if name in self.arrays
            else stored_array(self.path, group, f"data/{name}")
            for name in names
        }
        return self.snapshot.checks(arrays)
