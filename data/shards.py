"""Random rows straight from the chunks of a zarr array on a local disk.

Zarr's own reading costs milliseconds of Python for each chunk that it touches, which is nothing for
a pass over an array and all of the time of a random read. Here a row costs one read of its chunk
and the decoding of that: the index of a shard is read once, and checksums are looked at.

Only arrays that `data.chunk_layout` knows are read here. `ChunkReader.of` returns None for any
other, which then is zarr's to read.

Shape legend: `n` rows.
"""

import contextlib
import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

from data.chunk_layout import Layout, layout_of, without_checksum
from data.codec import CHECKSUM_BYTES

try:
    import resource
except ImportError:  # Not a system with such limits.
    resource = None

# number of a chunk, the chunk, its bytes in the file: raises where they are not those of the place
Check = Callable[[int, np.ndarray, bytes], None]
EMPTY = 2**64 - 1  # Offset and length of a chunk that a shard does not hold (zarr v3, sharding).
MOST_OPEN = 512  # shards


class Shard:
    """An open shard: where it keeps which chunk.

    A writer replaces whole files, so what is open stays what it was.
    """

    def __init__(self, file: Path, n_chunks: int, *, at_end: bool):
        self._descriptor = os.open(file, os.O_RDONLY)  # Closed with the last reference.
        self._size = os.fstat(self._descriptor).st_size
        n_bytes = n_chunks * 16
        start = self._size - n_bytes - CHECKSUM_BYTES if at_end else 0
        if start < 0:
            raise ValueError(f"{file.name} is too short for the index of a shard")
        index = without_checksum(self.read(start, n_bytes + CHECKSUM_BYTES))
        self.places = np.frombuffer(index, "<u8").reshape(n_chunks, 2)

    def read(self, start: int, n_bytes: int) -> bytes:
        """A part of the file; ValueError where it ends before."""
        # Looked at before, as memory for what is wanted is taken first.
        content = (
            b"" if start + n_bytes > self._size else os.pread(self._descriptor, n_bytes, start)
        )
        if len(content) != n_bytes:
            raise ValueError(f"{n_bytes} bytes at {start} are wanted of {self._size}")
        return content

    def chunk(self, number: int) -> bytes | None:
        """The stored bytes of a chunk; None: it is not there."""
        start, n_bytes = self.places[number].tolist()
        if start == n_bytes == EMPTY:
            return None
        return self.read(start, n_bytes)

    def announce(self, number: int) -> None:
        """Let the kernel begin to read a chunk."""
        start, n_bytes = self.places[number].tolist()
        if start + n_bytes <= self._size and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, start, n_bytes, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


class ChunkReader:
    """Reads rows of one array; may be used by several threads at once.

    Args:
        array: for its shape and dtype, and what it holds where nothing was written.
        layout: of its files.
        is_sparse: whether a chunk that is not there holds `fill_value`; else it was lost.
        check: what is asked of each chunk.
    """

    def __init__(
        self, array: zarr.Array, layout: Layout, *, is_sparse: bool, check: Check | None = None
    ):
        self._shape, self._dtype = array.shape[1:], array.dtype.newbyteorder("=")
        self._fill = array.fill_value if is_sparse else None
        self._layout, self._check = layout, check
        self._shards: OrderedDict[int, Shard] = OrderedDict()
        self._lock = threading.Lock()
        self._most_open = _most_open()

    @classmethod
    def of(
        cls, array: zarr.Array, *, is_sparse: bool = False, check: Check | None = None
    ) -> "ChunkReader | None":
        """A reader of an array, None for one that zarr has to read.

        Args:
            array: of one or more dimensions.
            is_sparse: whether a chunk that is not there holds `fill_value`, as zarr takes it.
            check: what is asked of each chunk that is decoded, rows past the array's end included.
        """
        layout = layout_of(array)
        return None if layout is None else cls(array, layout, is_sparse=is_sparse, check=check)

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """[n, ...] the given ascending rows, in the dtype they are stored in.

        Raises:
            ValueError: a chunk is damaged or lost, or `check` refuses it.
            OSError: it cannot be read.
        """
        out = np.empty((len(rows), *self._shape), self._dtype)
        chunk = rows // self._layout.chunk_rows
        is_next = np.diff(rows) == 1
        edges = np.flatnonzero(np.diff(chunk)) + 1
        self._announce(chunk[[0, *edges]] if len(rows) else chunk)
        for first, stop in itertools.pairwise([0, *edges.tolist(), len(rows)]):
            if first < stop:
                number = int(chunk[first])
                inside = rows[first:stop] - number * self._layout.chunk_rows
                if is_next[first : stop - 1].all():  # A slice is copied faster.
                    out[first:stop] = self._decoded(number)[inside[0] : inside[-1] + 1]
                else:
                    out[first:stop] = self._decoded(number)[inside]
        return out

    def _announce(self, numbers: np.ndarray) -> None:
        """Let the kernel begin to read chunks, all at once; of shards, which are large files."""
        n = self._layout.chunks_per_shard
        if not n or len(numbers) < 2:
            return
        with contextlib.suppress(OSError, ValueError):  # Reading them will tell.
            for number in numbers.tolist():
                self._shard(number // n).announce(number % n)

    def _decoded(self, number: int) -> np.ndarray:
        """[chunk_rows, ...] a chunk."""
        shape = (self._layout.chunk_rows, *self._shape)
        stored = self._stored(number)
        if stored is None:
            if self._fill is None:
                raise ValueError(f"chunk {number} is not there")
            return np.broadcast_to(np.asarray(self._fill, self._dtype), shape)
        chunk = self._layout.to_numbers(self._layout.decoded(stored), shape)
        if self._check is not None:
            self._check(number, chunk, stored)
        return chunk

    def _stored(self, number: int) -> bytes | None:
        n = self._layout.chunks_per_shard
        try:
            if n:
                return self._shard(number // n).chunk(number % n)
            return self._layout.file_of(number).read_bytes()
        except FileNotFoundError:
            return None

    def _shard(self, number: int) -> Shard:
        with self._lock:
            shard = self._shards.pop(number, None)
        if shard is None:
            file, n = self._layout.file_of(number), self._layout.chunks_per_shard
            shard = Shard(file, n, at_end=self._layout.index_at_end)
        with self._lock:
            self._shards[number] = shard
            if len(self._shards) > self._most_open:
                self._shards.popitem(last=False)
            return shard


def _most_open() -> int:
    """Shards that may be open at once, with regard to others in this process."""
    if resource is None:
        return MOST_OPEN
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:  # Which is -1 on some systems.
        return MOST_OPEN
    return max(1, min(MOST_OPEN, limit // 8))
