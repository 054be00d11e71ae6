"""Random rows straight from the chunks of a zarr array on a local disk.

Zarr's own reading costs milliseconds of Python for each chunk that it touches, which is nothing for
a pass over an array and all of the time of a random read. Here a row costs one read of its chunk
and the decoding of that: the index of a shard is read once, and checksums are looked at.

Only what our stores and those of Diffusion Policy are made of is read here: arrays cut along their
first dimension alone, compressed as bytes. `ChunkReader.of` returns None for any other, which then
is zarr's to read.

Shape legend: `n` rows.
"""

import contextlib
import gzip
import itertools
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from google_crc32c import value as crc32c
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec
from zarr.core.metadata.v2 import ArrayV2Metadata
from zarr.storage import LocalStore

from data.codec import JpegCodec, decode_jpeg

try:
    import resource
except ImportError:  # Not a system with such limits.
    resource = None

Decoder = Callable[[bytes], bytes]
ToNumbers = Callable[[bytes, tuple[int, ...]], np.ndarray]  # bytes, shape of a chunk -> the chunk
# number of a chunk, the chunk, its bytes in the file: raises where they are not those of the place
Check = Callable[[int, np.ndarray, bytes], None]
EMPTY = 2**64 - 1  # Offset and length of a chunk that a shard does not hold (zarr v3, sharding).
CHECKSUM = 4  # bytes
MOST_OPEN = 512  # shards


class Shard:
    """An open shard: where it keeps which chunk.

    A writer replaces whole files, so what is open stays what it was.
    """

    def __init__(self, file: Path, n_chunks: int, *, at_end: bool):
        self._descriptor = os.open(file, os.O_RDONLY)  # Closed with the last reference.
        self._size = os.fstat(self._descriptor).st_size
        n_bytes = n_chunks * 16
        start = self._size - n_bytes - CHECKSUM if at_end else 0
        if start < 0:
            raise ValueError(f"{file.name} is too short for the index of a shard")
        index = _checked(self.read(start, n_bytes + CHECKSUM))
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


@dataclass(frozen=True)
class Layout:
    """How an array lies in files.

    Args:
        file_of: number of an outer chunk (a shard, or a chunk without shards) -> its file.
        chunk_rows: rows of a chunk.
        chunks_per_shard: 0: there are no shards.
        index_at_end: whether a shard's index is at its end.
        decoders: from stored bytes to those that `to_numbers` takes, in this order.
        to_numbers: from bytes to a chunk.
    """

    file_of: Callable[[int], Path]
    chunk_rows: int
    chunks_per_shard: int
    index_at_end: bool
    decoders: Sequence[Decoder]
    to_numbers: ToNumbers


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
        layout = _layout(array)
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
        content = stored
        for decode in self._layout.decoders:
            content = decode(content)
        chunk = self._layout.to_numbers(content, shape)
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


def _layout(array: zarr.Array) -> Layout | None:
    """How the array lies in files; None where it is none that is read here."""
    place, metadata = array.store_path, array.metadata
    if not isinstance(place.store, LocalStore) or array.ndim < 1:
        return None
    # The trailing dimensions are whole, so that a row is in one chunk.
    if array.chunks[1:] != array.shape[1:] or array.dtype.kind not in "iufb":
        return None
    folder, zeros = place.store.root / place.path, (0,) * (array.ndim - 1)

    def file_of(number: int) -> Path:
        return folder / metadata.encode_chunk_key((number, *zeros))

    if isinstance(metadata, ArrayV2Metadata):
        if metadata.filters or metadata.order != "C":
            return None
        decoders = [metadata.compressor.decode] if metadata.compressor else []
        return Layout(file_of, array.chunks[0], 0, True, decoders, _as(array.dtype))
    codecs, n_chunks, at_end = metadata.codecs, 0, True
    if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec):
        sharding = codecs[0]
        kinds = [type(codec) for codec in sharding.index_codecs]
        if array.shards is None or array.shards[1:] != array.shape[1:]:
            return None
        if kinds != [BytesCodec, Crc32cCodec]:
            return None
        codecs, n_chunks = sharding.codecs, array.shards[0] // array.chunks[0]
        at_end = sharding.index_location.value == "end"
    to_numbers = _to_numbers(codecs[0], array.dtype)
    decoders = [_decoder(codec) for codec in reversed(codecs[1:])]
    known = [decoder for decoder in decoders if decoder is not None]
    if to_numbers is None or len(known) < len(decoders):
        return None
    return Layout(file_of, array.chunks[0], n_chunks, at_end, known, to_numbers)


def _to_numbers(codec: object, dtype: np.dtype) -> ToNumbers | None:
    """What undoes the first codec of zarr v3; None for one that is not known here."""
    if isinstance(codec, JpegCodec):
        return decode_jpeg
    if isinstance(codec, BytesCodec):
        is_big = codec.endian is not None and codec.endian.value == "big"
        return _as(dtype.newbyteorder(">" if is_big else "<"))
    return None


def _as(dtype: np.dtype) -> ToNumbers:
    """What reads bytes as numbers of a dtype."""

    def to_numbers(content: bytes, shape: tuple[int, ...]) -> np.ndarray:
        values = np.frombuffer(content, dtype)
        if values.size != math.prod(shape):
            raise ValueError(f"{values.size} numbers are in a chunk of shape {shape}")
        return values.reshape(shape)

    return to_numbers


def _decoder(codec: object) -> Decoder | None:
    """What undoes a codec of zarr v3; None for one that is not known here."""
    if isinstance(codec, Crc32cCodec):
        return _checked
    if isinstance(codec, BloscCodec):
        return codec._blosc_codec.decode
    if isinstance(codec, ZstdCodec):
        return codec._zstd_codec.decode
    if isinstance(codec, GzipCodec):
        return gzip.decompress
    return None


def _checked(content: bytes) -> bytes:
    """Bytes without the checksum at their end; ValueError where it is wrong."""
    body, checksum = content[:-CHECKSUM], content[-CHECKSUM:]
    if len(content) < CHECKSUM or crc32c(body) != int.from_bytes(checksum, "little"):
        raise ValueError("the checksum is wrong")
    return body
