"""How a zarr array lies in files, and what undoes its codecs.

Only what our stores and those of Diffusion Policy are made of is known here: arrays cut along their
first dimension alone, compressed as bytes.
"""

import gzip
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from google_crc32c import value as crc32c
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec
from zarr.core.metadata.v2 import ArrayV2Metadata
from zarr.storage import LocalStore

from data.codec import CHECKSUM_BYTES, JpegCodec, decode_jpeg

Decoder = Callable[[bytes], bytes]
ToNumbers = Callable[[bytes, tuple[int, ...]], np.ndarray]  # bytes, shape of a chunk -> the chunk


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

    def decoded(self, content: bytes) -> bytes:
        """What `to_numbers` takes, of stored bytes; ValueError where they are damaged."""
        for decode in self.decoders:
            try:
                content = decode(content)
            except MemoryError:
                raise
            except Exception as error:  # Any codec may be named, each has errors of its own.
                raise ValueError(str(error) or type(error).__name__) from error
        return content


def layout_of(array: zarr.Array) -> Layout | None:
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
        return without_checksum
    if isinstance(codec, BloscCodec):
        return codec._blosc_codec.decode
    if isinstance(codec, ZstdCodec):
        return codec._zstd_codec.decode
    if isinstance(codec, GzipCodec):
        return gzip.decompress
    return None


def without_checksum(content: bytes) -> bytes:
    """Bytes without the checksum at their end; ValueError where it is wrong."""
    body, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if len(content) < CHECKSUM_BYTES or crc32c(body) != int.from_bytes(checksum, "little"):
        raise ValueError("the checksum is wrong")
    return body
