"""Reads a field of a store in blocks, in the contract's dtype, every number checked.

Shape legend: `n` steps.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from data.commit import ChunkCheck
from data.layout import Source, StoreError, in_dtype
from data.shards import ChunkReader
from data.types import Field

BLOCK_BYTES = 64 * 1024**2  # Memory of a pass over a field, as stored.


@dataclass(frozen=True)
class FieldReader:
    """One field of a store, at one moment of its life.

    Args:
        path: of the store, for messages.
        name: of the field.
        field: what its numbers mean.
        array: that holds them.
        source: which part of the array is the field.
        place: a step of the array in words, for messages.
        check: whether a chunk is the one that was written; None: nobody knows.
    """

    path: Path | str
    name: str
    field: Field
    array: zarr.Array
    source: Source
    place: Callable[[int], str]
    check: ChunkCheck | None = None

    @property
    def block_steps(self) -> int:
        """Steps of as many whole chunks as fit in BLOCK_BYTES."""
        chunk_bytes = self.array.dtype.itemsize * int(np.prod(self.array.chunks))
        return self.array.chunks[0] * max(1, BLOCK_BYTES // max(1, chunk_bytes))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """[n, ...] the given ascending steps, read in blocks.

        Raises:
            StoreError: NaN or infinity, a number the dtype cannot hold, a damaged file.
        """
        # Zarr reads all steps between the first and the last one, so few at a time.
        block_steps = self.block_steps if self._chunks else self.array.chunks[0]
        edges = np.flatnonzero(np.diff(rows // block_steps)) + 1
        if len(rows) and not len(edges):
            return self.steps(rows)
        values = np.empty((len(rows), *self.field.shape), self.field.dtype)
        for first, stop in itertools.pairwise([0, *edges.tolist(), len(rows)]):
            if first < stop:
                values[first:stop] = self.steps(rows[first:stop])
        return values

    def steps(self, steps: np.ndarray) -> np.ndarray:
        """[n, ...] the given ascending steps at once, checked; the rest is not looked at."""
        try:
            stored = self.source.take(self._stored(steps))
        except StoreError:
            raise
        except (ValueError, OSError) as error:
            raise StoreError(
                f"{self.path}: data/{self.name} is damaged in steps {steps[0]}..{steps[-1]} "
                f"({error}): restore the file from a copy or record the episodes again"
            ) from error
        if stored.dtype.kind == "f":
            self._refuse(steps, np.isfinite(stored), "is not a finite number (NaN or infinite)")
        dtype = np.dtype(self.field.dtype)
        if stored.dtype == dtype:
            return stored
        values, fits = in_dtype(stored, dtype)
        if not fits.all():
            held = f"{stored.dtype} numbers of {stored.min():g}..{stored.max():g}"
            self._refuse(steps, fits, f"({held}) does not fit the contract's dtype {dtype}")
        return values

    @functools.cached_property
    def _chunks(self) -> ChunkReader | None:
        """The fast way, where the files are on a local disk and of a known kind."""
        return ChunkReader.of(self.array, is_sparse=self.check is None, check=self.check)

    def _stored(self, steps: np.ndarray) -> np.ndarray:
        """[n, ...] the given ascending steps as they are stored."""
        if self._chunks is not None:
            return self._chunks.rows(steps)
        if self.check is None:
            return self._by_zarr(int(steps[0]), int(steps[-1]) + 1)[steps - steps[0]]
        try:
            return self._by_zarr_checked(steps, self.check)
        except ValueError:
            # A writer may have replaced the file between the look at its index and at a chunk.
            return self._by_zarr_checked(steps, self.check)

    def _by_zarr(self, first: int, stop: int) -> np.ndarray:
        """[n, ...] some steps; ValueError where they are damaged or cannot be reached."""
        try:
            return np.asarray(self.array[first:stop])
        except MemoryError:
            raise
        except Exception as error:  # Codecs and remote file systems raise errors of their own.
            raise ValueError(str(error) or type(error).__name__) from error

    def _by_zarr_checked(self, steps: np.ndarray, check: ChunkCheck) -> np.ndarray:
        """[n, ...] the given ascending steps, each chunk they are in looked at."""
        chunk = self.array.chunks[0]
        first, last = int(steps[0]) // chunk, int(steps[-1]) // chunk
        start = first * chunk
        rows = self._by_zarr(start, min((last + 1) * chunk, check.n_steps))
        for number in range(first, last + 1):
            check(number, rows[number * chunk - start : (number + 1) * chunk - start], None)
        return rows[steps - start]

    def _refuse(self, steps: np.ndarray, is_good: np.ndarray, problem: str) -> None:
        if is_good.all():
            return
        step = int(steps[np.argwhere(~is_good)[0][0]])
        raise StoreError(
            f"{self.path}: data/{self.name} {problem} at {self.place(step)}: "
            f"leave that episode out or record it again"
        )
