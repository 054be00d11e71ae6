"""Reads a field of a store in blocks, in the contract's dtype, every number checked.

Shape legend: `n` steps.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from data.layout import Source, StoreError, in_dtype
from data.types import Field

BLOCK_BYTES = 64 * 1024**2  # Memory of a pass over a field, as stored.


@dataclass(frozen=True)
class FieldReader:
    """One field of a store.

    Args:
        path: of the store, for messages.
        name: of the field.
        field: what its numbers mean.
        array: that holds them.
        source: which part of the array is the field.
        episode_ends: [n_episodes] exclusive cumulative ends [steps], for messages.
    """

    path: Path
    name: str
    field: Field
    array: zarr.Array
    source: Source
    episode_ends: np.ndarray

    @property
    def block_steps(self) -> int:
        """Steps of as many whole chunks as fit in BLOCK_BYTES."""
        chunk_bytes = self.array.dtype.itemsize * int(np.prod(self.array.chunks))
        return self.array.chunks[0] * max(1, BLOCK_BYTES // max(1, chunk_bytes))

    def blocks(self, rows: np.ndarray, block_steps: int) -> np.ndarray:
        """[n, ...] the given ascending steps, read in blocks of that many.

        Raises:
            StoreError: NaN or infinity, a number the dtype cannot hold, a damaged file.
        """
        values = np.empty((len(rows), *self.field.shape), self.field.dtype)
        edges = np.flatnonzero(np.diff(rows // block_steps)) + 1
        for first, stop in itertools.pairwise([0, *edges.tolist(), len(rows)]):
            if first < stop:
                values[first:stop] = self.steps(rows[first:stop])
        return values

    def steps(self, steps: np.ndarray) -> np.ndarray:
        """[n, ...] the given ascending steps at once, checked; the rest is not looked at."""
        first, stop = int(steps[0]), int(steps[-1]) + 1
        try:
            rows = np.asarray(self.array[first:stop])
            stored = self.source.take(rows)[steps - first]
        except (OSError, RuntimeError, ValueError) as error:
            raise StoreError(
                f"{self.path}: data/{self.name} is damaged in steps {first}..{stop - 1} "
                f"({error}): restore the file from a copy or record the episodes again"
            ) from error
        if stored.dtype.kind == "f":
            self._check(steps, np.isfinite(stored), "is not a finite number (NaN or infinite)")
        dtype = np.dtype(self.field.dtype)
        if stored.dtype == dtype:
            return stored
        values, fits = in_dtype(stored, dtype)
        if not fits.all():
            held = f"{stored.dtype} numbers of {stored.min():g}..{stored.max():g}"
            self._check(steps, fits, f"({held}) does not fit the contract's dtype {dtype}")
        return values

    def _check(self, steps: np.ndarray, is_good: np.ndarray, problem: str) -> None:
        if is_good.all():
            return
        step = int(steps[np.argwhere(~is_good)[0][0]])
        episode = int(np.searchsorted(self.episode_ends, step, side="right"))
        raise StoreError(
            f"{self.path}: data/{self.name} {problem} at step {step}, in episode {episode}: "
            f"leave that episode out or record it again"
        )
