"""What of a store is visible at one moment, and whether a chunk belongs to it.

A store of the newest layout says so itself (`data.commit`). An older one of ours, and a foreign
one, shows the episodes whose ends it has, and has no checksums.

The rows of a field's array are the steps of all episodes; a reader of the store counts only the
steps of those that are shown::

    episodes of the store    0 0 0 1 1 2 2 2 2      1 is hidden
    rows of the arrays       0 1 2 3 4 5 6 7 8
    steps that are shown     0 1 2     3 4 5 6
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import zarr

from data.codec import checksum, codec_of
from data.commit import (
    ChunkCheck,
    Commit,
    digest_of,
    ends_checksum,
    filled_by_field,
    metadata_checksum,
)
from data.edits import Edits, read_edits
from data.layout import (
    PLAIN_VERSION,
    Source,
    StoreError,
    committed_ends,
    frozen,
    stored_array,
    stored_numbers,
    version_of,
)
from data.location import files_in, remote_files
from data.lock import LOCK_FILE
from data.types import Contract


@dataclass(frozen=True)
class Snapshot:
    """The committed episodes.

    Args:
        path: of the store.
        group: as it was when the snapshot was taken.
        all_ends: [n] int64 ends of all episodes, hidden ones too [steps].
        commit: that made them visible; None in a store without checksums.
        edits: that apply.
    """

    path: Path | str
    group: zarr.Group
    all_ends: np.ndarray
    commit: Commit | None
    edits: Edits

    @functools.cached_property
    def shown(self) -> np.ndarray:
        """[n_episodes] int64 number in the store of each episode that is shown."""
        is_shown = np.ones(len(self.all_ends), bool)
        is_shown[list(self.edits.hidden)] = False
        return np.flatnonzero(is_shown)

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """[n_episodes] int64 ends of the shown episodes, hidden steps not counted; read-only."""
        return frozen(np.cumsum(np.diff(self.all_ends, prepend=0)[self.shown]))

    @property
    def n_rows(self) -> int:
        """Rows of all episodes."""
        return int(self.all_ends[-1]) if len(self.all_ends) else 0

    def rows(self, steps: np.ndarray) -> np.ndarray:
        """[n] rows of the arrays, of the given shown steps [n]."""
        if not self.edits.hidden:
            return steps
        shift = self.all_ends[self.shown] - self.ends
        return steps + shift[np.searchsorted(self.ends, steps, side="right")]

    def place(self, row: int) -> str:
        """A row of the arrays in words."""
        return f"step {row}, in episode {np.searchsorted(self.all_ends, row, side='right')}"

    def entries(self) -> list[str]:
        """The metadata of all episodes as they were recorded.

        Raises:
            StoreError: they are missing or damaged.
        """
        n = len(self.all_ends)
        if self.commit is None and "meta/episode_metadata" not in self.group:
            return ["{}"] * n
        array = stored_array(self.path, self.group, "meta/episode_metadata")
        entries = [str(entry) for entry in stored_numbers(self.path, array, n)]
        if self.commit is not None and metadata_checksum(entries) != self.commit.metadata:
            raise _damaged(self.path, "meta/episode_metadata")
        return entries

    def metadata(self) -> list[dict]:
        """The metadata of the shown episodes, with what was relabelled.

        Raises:
            StoreError: they are missing or damaged.
        """
        found = self.recorded(self.shown)
        return [dict(self.edits.metadata.get(n, entry)) for n, entry in found.items()]

    def recorded(self, episodes: Iterable[int]) -> dict[int, dict]:
        """Episode -> its metadata as it was recorded, by numbers that count hidden ones.

        Raises:
            StoreError: they are missing or damaged.
        """
        entries = self.entries()
        try:
            found = {int(n): json.loads(entries[n]) for n in episodes}
            assert all(isinstance(entry, dict) for entry in found.values()), "no object"
        except (ValueError, AssertionError) as error:
            raise StoreError(
                f"{self.path}: meta/episode_metadata is not JSON ({error}): "
                f"restore it from a copy, or record into a new store"
            ) from error
        return found

    def checks(self, arrays: Mapping[str, zarr.Array]) -> dict[str, ChunkCheck]:
        """Field -> what tells whether a chunk is the one that was committed.

        Args:
            arrays: of all fields of the store.

        Raises:
            StoreError: the checksums are missing or damaged.
        """
        if self.commit is None:
            return {}
        array = stored_array(self.path, self.group, "meta/chunk_checksums")
        log = stored_numbers(self.path, array, self.commit.n_checksums)
        chunk_steps = {name: array.chunks[0] for name, array in arrays.items()}
        if checksum(np.asarray(log, "<u4").tobytes()) != self.commit.checksums:
            raise _damaged(self.path, "meta/chunk_checksums")
        try:
            filled = filled_by_field(log, self.all_ends, chunk_steps)
            is_lossy = {name: codec_of(array).is_lossy for name, array in arrays.items()}
        except ValueError as error:
            raise StoreError(
                f"{self.path}: the chunks of its arrays are not those it was written in ({error}): "
                f"restore the zarr.json of each array from a copy"
            ) from error
        return {
            name: ChunkCheck(
                where=f"{self.path}: data/{name}",
                n_steps=self.n_rows,
                chunk_steps=chunk_steps[name],
                filled=filled[name],
                tail=self.commit.tails.get(name, 0),
                is_of_bytes=is_lossy[name],
            )
            for name in arrays
        }


def take_snapshot(path: Path | str, group: zarr.Group, *, is_own: bool) -> Snapshot:
    """What is visible of a store now.

    Raises:
        StoreError: a part is missing or damaged.
    """
    if not is_own or (version_of(group) == PLAIN_VERSION and "commit" not in group.attrs):
        array = stored_array(path, group, "meta/episode_ends")
        ends = committed_ends(path, array, is_own=is_own)
        return Snapshot(path, group, ends, None, Edits())
    commit = Commit.from_attributes(path, group.attrs.asdict())
    array = stored_array(path, group, "meta/episode_ends")
    ends = stored_numbers(path, array, commit.n_episodes).astype(np.int64)
    if ends_checksum(ends) != commit.ends:
        raise _damaged(path, "meta/episode_ends")
    edits = read_edits(path, group, commit.edit, n_episodes=len(ends))
    return Snapshot(path, group, frozen(ends), commit, edits)


def identity_of(snapshot: Snapshot, contract: Contract, sources: Mapping[str, Source]) -> str:
    """SHA-256 that another content would not have, without looking at the numbers."""
    kept = {name: [source.key, source.elements] for name, source in sources.items()}
    digest = hashlib.sha256(json.dumps([contract.to_json(), kept], sort_keys=True).encode())
    if snapshot.commit is not None:
        commit = asdict(snapshot.commit)
        del commit["metadata"], commit["edit"]
        digest.update(digest_of({**commit, "hidden": sorted(snapshot.edits.hidden)}).encode())
    elif isinstance(snapshot.path, Path):
        for file in files_in(snapshot.path):
            if file.name != LOCK_FILE:
                name, status = file.relative_to(snapshot.path).as_posix(), file.stat()
                digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    else:
        for line in remote_files(snapshot.path):
            digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def checked_episodes(
    path: Path | str, episodes: Sequence[int] | np.ndarray, n_episodes: int
) -> np.ndarray:
    """[n] int64 the given episodes, each once, ascending.

    Raises:
        StoreError: they are no whole numbers, or one is not in 0..n_episodes-1.
    """
    numbers = np.asarray(episodes)
    if numbers.ndim != 1 or (len(numbers) and numbers.dtype.kind not in "iu"):
        raise StoreError(
            f"episodes of {path} are given as {numbers.dtype} of shape {numbers.shape}: give their "
            f"numbers as a list of int (of a mask, numpy.flatnonzero)"
        )
    unknown = numbers[(numbers < 0) | (numbers >= n_episodes)]
    if len(unknown):
        choice = f"choose 0..{n_episodes - 1}" if n_episodes else "record some first"
        raise StoreError(f"episode {unknown[0]} of {path}, which has {n_episodes}: {choice}")
    return np.unique(numbers).astype(np.int64)


def episodes_as_rows(ends: np.ndarray, episodes: Sequence[int] | np.ndarray) -> np.ndarray:
    """[n] int64 steps of the given ascending episodes, of their exclusive cumulative ends."""
    starts = np.concatenate([[0], ends])[:-1][episodes].astype(np.int64)
    lengths = ends[episodes] - starts
    # The number of a step in its episode is its number in all less those of earlier episodes.
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + within


def _damaged(path: Path | str, key: str) -> StoreError:
    return StoreError(
        f"{path}: {key} is not what was written (its checksum is another one): "
        f"restore it from a copy"
    )
