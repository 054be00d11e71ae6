"""The record by which a store commits: what is visible, and checksums of all that is.

It is an entry of the group's attributes, so it is replaced as one file: before that nothing of a
new episode is visible, after it everything is. Each number that can be read is covered, and bound
to its place, by it::

    attributes (digest) -> commit -> ends, metadata: checksums of what the two arrays hold
                                  -> checksums: that of meta/chunk_checksums
                                     -> one of each full chunk of each field
                                  -> tails: those of the steps in each field's unfinished chunk
                                  -> edit: digest of what is hidden and relabelled

A chunk's checksum is that of its numbers. Where the codec loses some, other versions of a decoder
may give other numbers, and it is that of its bytes.

`meta/chunk_checksums` has, episode after episode, field after field in alphabetical order, those of
the chunks which the episode has filled.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from data.codec import CHECKSUM_BYTES, checksum
from data.layout import StoreError


@dataclass(frozen=True)
class Commit:
    """What is visible of a store.

    Args:
        n_episodes: whole episodes, hidden ones included.
        n_steps: of these.
        ends: CRC-32C of their ends, as little-endian int64.
        metadata: CRC-32C of their metadata, each followed by a zero byte.
        n_checksums: of full chunks.
        checksums: CRC-32C of these, as little-endian uint32.
        tails: field -> CRC-32C of the numbers in its unfinished chunk, 0 where there is none.
        edit: SHA-256 of the edits that apply, "" for none.
    """

    n_episodes: int = 0
    n_steps: int = 0
    ends: int = 0
    metadata: int = 0
    n_checksums: int = 0
    checksums: int = 0
    tails: Mapping[str, int] = dataclasses.field(default_factory=dict)
    edit: str = ""

    def followed_by(
        self, *, n_steps: int, entry: str, filled: Sequence[int], tails: Mapping[str, int]
    ) -> Self:
        """The record with another episode.

        Args:
            n_steps: of the episode.
            entry: its metadata.
            filled: checksums of the chunks that it fills.
            tails: those of the unfinished chunks after it.
        """
        end = self.n_steps + n_steps
        return dataclasses.replace(
            self,
            n_episodes=self.n_episodes + 1,
            n_steps=end,
            ends=ends_checksum([end], self.ends),
            metadata=metadata_checksum([entry], self.metadata),
            n_checksums=self.n_checksums + len(filled),
            checksums=checksum(np.asarray(filled, "<u4").tobytes(), self.checksums),
            tails=dict(tails),
        )

    @classmethod
    def from_attributes(cls, where: object, attributes: Mapping[str, Any]) -> Self:
        """The record in a group's attributes.

        Raises:
            StoreError: it is missing, or the attributes are not those that were written.
        """
        if attributes.get("digest") != digest_of(_covered(attributes)):
            raise StoreError(
                f"{where}: the attributes in zarr.json are damaged (their digest is another one): "
                f"restore the file from a copy"
            )
        return cls(**attributes["commit"])  # The digest vouches for its form.


def attributes_with(attributes: Mapping[str, Any], commit: Commit) -> dict[str, Any]:
    """Attributes of a group with this commit and the digest of those that a store needs."""
    changed = {**attributes, "commit": dataclasses.asdict(commit)}
    return {**changed, "digest": digest_of(_covered(changed))}


def _covered(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that a store needs; others, such as somebody's notes, are left alone."""
    return {key: attributes.get(key) for key in ("format_version", "contract", "commit")}


def digest_of(document: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON document, however its file is laid out."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def ends_checksum(ends: Sequence[int] | np.ndarray, start: int = 0) -> int:
    """CRC-32C of episode ends, going on from that of earlier ones."""
    return checksum(np.asarray(ends, "<i8").tobytes(), start)


def metadata_checksum(entries: Sequence[str], start: int = 0) -> int:
    """CRC-32C of entries of metadata, going on from that of earlier ones."""
    return checksum("".join(f"{entry}\0" for entry in entries).encode(), start)


def rows_checksum(rows: np.ndarray) -> int:
    """CRC-32C of the numbers of some steps, as little-endian bytes."""
    little = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    return checksum(little.reshape(-1).view(np.uint8))


@dataclass(frozen=True)
class ChunkCheck:
    """Whether a chunk of a field is what was committed at its place.

    Args:
        where: store and field, for messages.
        n_steps: that are committed.
        chunk_steps: steps of a chunk.
        filled: [n] checksums of the full chunks.
        tail: checksum of the steps in the unfinished chunk.
        is_of_bytes: whether checksums are those of stored bytes, not of numbers.
    """

    where: str
    n_steps: int
    chunk_steps: int
    filled: np.ndarray
    tail: int
    is_of_bytes: bool

    def __call__(self, number: int, chunk: np.ndarray, encoded: bytes | None) -> None:
        """Raise ValueError where chunk `number` [chunk_steps, ...] is another than was written.

        Args:
            number: of the chunk, through all shards.
            chunk: its numbers, those past the last committed step included.
            encoded: its bytes, None where they are not known.
        """
        if self.is_of_bytes:
            if encoded is None:  # Its own checksum was looked at, only its place was not.
                return
            found = int.from_bytes(encoded[-CHECKSUM_BYTES:], "little")
        else:
            found = rows_checksum(chunk[: self.n_steps - number * self.chunk_steps])
        expected = self.filled[number] if number < len(self.filled) else self.tail
        if found != int(expected):
            raise ValueError(f"chunk {number} is not the one that was written there")


def filled_by_field(
    log: np.ndarray, ends: np.ndarray, chunk_steps: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Field -> checksums of its full chunks, of those of all fields in the order of writing.

    Args:
        log: [n_checksums] of all fields.
        ends: [n_episodes] exclusive cumulative ends [steps].
        chunk_steps: field -> steps of a chunk.

    Raises:
        ValueError: there are not as many as the episodes have filled chunks.
    """
    names = sorted(chunk_steps)
    full = np.stack([ends // chunk_steps[name] for name in names], axis=1)
    counts = np.diff(full, axis=0, prepend=0)  # [n_episodes, n_fields]
    if counts.sum() != len(log):
        raise ValueError(f"{len(log)} chunks have a checksum, {counts.sum()} are full")
    # Each checksum's field, which is enough: those of a field are in order.
    field = np.repeat(np.tile(np.arange(len(names)), len(ends)), counts.reshape(-1))
    return {name: log[field == number] for number, name in enumerate(names)}


def filled_by_episode(
    sums: Mapping[str, Sequence[int]],
    n_steps: int,
    ends: np.ndarray,
    chunk_steps: Mapping[str, int],
) -> list[list[int]]:
    """Of each new episode the checksums of the chunks that it fills, in the order of writing.

    Args:
        sums: field -> checksums of all chunks that the new episodes fill.
        n_steps: before the new episodes.
        ends: [n] exclusive cumulative ends of the new episodes [steps].
        chunk_steps: field -> steps of a chunk.
    """
    filled: list[list[int]] = [[] for _ in ends]
    for name in sorted(sums):
        full = np.append(n_steps, ends) // chunk_steps[name] - n_steps // chunk_steps[name]
        for own, first, stop in zip(filled, full, full[1:], strict=False):
            own += sums[name][first:stop]
    return filled
