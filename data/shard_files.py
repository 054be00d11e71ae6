"""Appends steps to a sharded array by replacing one file at a time.

Zarr can do this too, but decodes and encodes a shard's index and every chunk by itself, which takes
longer than all the rest: 28 ms of a core for 137 frames of 96 x 96, here it is 7. Chunks that are
full already are copied as they are; so whoever reads the file that is replaced finds them where
they were.
"""

import itertools
import os
import uuid
from pathlib import Path

import numpy as np
import zarr

from data.codec import CHECKSUM_BYTES, Codec, checksum, with_checksum
from data.commit import rows_checksum
from data.durable import outer_file

EMPTY = 2**64 - 1  # Offset and length of a chunk that a shard does not hold.
PLACE_BYTES = 16  # Of an entry in the index of a shard: offset and length.


def append_rows(
    array: zarr.Array,
    codec: Codec,
    rows: np.ndarray,
    *,
    n_steps: int,
    tail: np.ndarray,
) -> tuple[list[int], int]:
    """Write rows after the first `n_steps` and let the array end after them.

    Args:
        array: on a local disk, as made by `data.codec.create_array`.
        codec: it was made with.
        rows: [L, ...] in the dtype of the array.
        n_steps: that are kept of what is there.
        tail: [n_steps % chunk_steps, ...] those of them that are in an unfinished chunk.

    Returns:
        The checksums of the chunks that were filled, and that of the steps in an unfinished one.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: the last shard is damaged.
    """
    chunk_steps, shard_steps = array.chunks[0], (array.shards or array.chunks)[0]
    first_chunk, per_shard = n_steps // chunk_steps, shard_steps // chunk_steps
    rows = np.concatenate([tail, rows])
    end = first_chunk * chunk_steps + len(rows)
    chunks = [rows[first : first + chunk_steps] for first in range(0, len(rows), chunk_steps)]
    encoded = [codec.encode(_padded(chunk, chunk_steps, array.fill_value)) for chunk in chunks]
    # Shard by shard: (number of the shard, its new chunks).
    numbers = range(first_chunk, first_chunk + len(chunks))
    for shard, group in itertools.groupby(numbers, lambda number: number // per_shard):
        own = list(group)
        file = outer_file(array, shard)
        n_kept = own[0] - shard * per_shard
        kept = kept_chunks(file, n_kept, per_shard) if n_kept else []
        content = shard_bytes(kept + [encoded[n - first_chunk] for n in own], per_shard)
        replace_file(file, content)
    array.resize((end, *array.shape[1:]))
    if codec.is_lossy:
        sums = [int.from_bytes(content[-CHECKSUM_BYTES:], "little") for content in encoded]
    else:
        sums = [rows_checksum(chunk) for chunk in chunks]
    has_tail = end % chunk_steps != 0
    return (sums[:-1], sums[-1]) if has_tail else (sums, 0)


def kept_chunks(file: Path, n_kept: int, per_shard: int) -> list[bytes]:
    """The bytes of the first chunks of a shard.

    Raises:
        OSError: it cannot be read.
        ValueError: its index is damaged, or it lacks one of them.
    """
    content = file.read_bytes()
    index = content[-per_shard * PLACE_BYTES - CHECKSUM_BYTES :]
    if len(content) < per_shard * PLACE_BYTES + CHECKSUM_BYTES or (
        with_checksum(index[:-CHECKSUM_BYTES]) != index
    ):
        raise ValueError(f"the index of {file} is damaged: restore the file from a copy")
    places = np.frombuffer(index[:-CHECKSUM_BYTES], "<u8").reshape(per_shard, 2)
    chunks = []
    for start, length in places[:n_kept].tolist():
        chunk = content[start : start + length]
        body, end = chunk[:-CHECKSUM_BYTES], chunk[-CHECKSUM_BYTES:]
        if checksum(body) != int.from_bytes(end, "little") or len(chunk) != length:
            raise ValueError(f"{file} is damaged: restore the file from a copy")
        chunks.append(chunk)
    return chunks


def shard_bytes(chunks: list[bytes], per_shard: int) -> bytes:
    """A shard: its chunks and after them where they are, with a checksum."""
    places = np.full((per_shard, 2), EMPTY, "<u8")
    lengths = np.array([len(chunk) for chunk in chunks], np.uint64)
    places[: len(chunks), 1] = lengths
    places[: len(chunks), 0] = np.cumsum(lengths) - lengths
    return b"".join([*chunks, with_checksum(places.tobytes())])


def replace_file(file: Path, content: bytes) -> None:
    """Let a file hold other bytes; it has the old ones or the new ones at any time."""
    draft = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(draft, "wb") as stream:
            stream.write(content)
            stream.flush()
            if file.exists():  # Some systems may else lose both where the power goes.
                os.fsync(stream.fileno())
        os.replace(draft, file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _padded(chunk: np.ndarray, n_steps: int, fill: object) -> np.ndarray:
    """A chunk of full length."""
    if len(chunk) == n_steps:
        return chunk
    full = np.full((n_steps, *chunk.shape[1:]), fill, chunk.dtype)
    full[: len(chunk)] = chunk
    return full
