"""Demonstrations on disk: a zarr group that shows only whole episodes.

Layout, that of Diffusion Policy (so the stores published with it open too)::

    data/<field>           [n_steps, ...]   one array per field of the contract
    meta/episode_ends      [n_episodes]     exclusive cumulative ends [steps]
    meta/episode_metadata  [n_episodes]     one JSON object per episode, see below
    meta/chunk_checksums   [n_chunks]       of every full chunk of the fields (`data.commit`)
    meta/edit-<digest>     attributes       what is hidden and relabelled (`data.edits`)
    attributes             contract, format_version, commit and their digest
    .writer                who writes, while somebody does

How an episode becomes visible. Every single write below replaces one file, which is seen either not
at all or whole, also after `kill -9`. The rows of the fields, the metadata and the checksums are
written first, past the last end where nobody looks, and flushed, so that a power cut takes none of
them (`data.durable`); then the attributes are replaced, which is the commit. Whatever an
interrupted writer left past the last end is overwritten by the next episode.
One process writes at a time (`data.lock`); any number may read meanwhile, each what was committed
when it looked last (`refresh` looks again).

Few files. A random read decodes a chunk, which is small: at most 128 KiB (4 frames of 96 x 96), or
one step. 64 MiB of numbers, at most 1024 chunks, make one file, a shard. An append writes the last
shard anew, its full chunks copied as they are: at most as many bytes more as a shard has on disk,
of frames of a simulator 1 MB. So there is no open tail in another form, to be sealed some day.

Metadata. An episode may say anything, as JSON; these keys mean the same everywhere::

    success   bool   whether the task was accomplished    expert  text   who acts, by program
    operator  text   who acts, a person                   task    text   what was to be done
    seed      int    of the start                         split   text   "train" or "val"

Stores of format_version 1 have neither shards nor checksums, and `episode_ends` is what commits;
they are read and appended to as they are (without a flush), and edited after
`cadence edit STORE do=copy`.
"""

import copy
import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import zarr

from data.append import append_episode, append_plainly, commit_edit
from data.codec import SHARD_BYTES, Codec
from data.create import create_folder
from data.layout import (
    Source,
    StoreError,
    checked_episode,
    metadata_entry,
    open_group,
    stored_array,
)
from data.location import location
from data.lock import WriterLock, acquire
from data.opening import Found, find_store, fitting_arrays, folder, remove_partial_files
from data.reading import FieldReader
from data.snapshot import checked_episodes, episodes_as_rows, identity_of, take_snapshot
from data.types import Contract


class EpisodeStore:
    """Episodes of one contract in a zarr group; use `create` or `open`, and `close` or `with`."""

    def __init__(self, found: Found, lock: WriterLock | None = None):
        self.path, self.contract = found.path, found.contract
        self._own, self._sources, self._lock = found.own, found.sources, lock
        self._look_at(found.group)
        self._release = None if lock is None else lock.bind(self)

    @classmethod
    def create(
        cls,
        path: str | Path,
        contract: Contract,
        *,
        codec: Codec | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> Self:
        """A new, empty store, opened for appending.

        Args:
            path: where nothing is yet.
            contract: meaning of the numbers.
            codec: of images, such as `data.codec.Jpeg(95)`; None keeps them without loss.
            shard_bytes: of numbers in a file: more make fewer files, and slower appends.

        Raises:
            StoreError: the path exists already or cannot be written, or the codec does not fit.
        """
        create_folder(folder(path, "created"), contract, codec=codec, shard_bytes=shard_bytes)
        return cls.open(path, mode="a")

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        contract: Contract | None = None,
        sources: Mapping[str, Source] | None = None,
        mode: Literal["r", "a"] = "r",
    ) -> Self:
        """An existing store, zarr v2 or v3.

        Args:
            path: folder of the zarr group, or a location (`data.location`), to read.
            contract: meaning of the numbers. Needed for a store without a contract of its own;
                otherwise checked against the store's, and its fields are the ones that are read.
            sources: field name -> where a store without a contract of its own keeps it, by default
                under the field's name. A store with one keeps its fields under their names.
            mode: "r" to read, "a" to append and to edit as well, as the only process.

        Raises:
            StoreError: not a zarr group, no contract, a newer format, a missing or misshapen array,
                damage, the source of a field that is not in the contract, somebody else writes.
            ContractError: the store's contract and the given one disagree.
        """
        if mode not in ("r", "a"):
            raise StoreError(f"mode is {mode!r}, choose 'r' or 'a'")
        if mode == "r":
            return cls(find_store(location(path), contract, sources))
        path = folder(path, "written to")
        find_store(path, contract, sources).check_writable()
        lock = acquire(path)
        try:
            with lock.turn:
                remove_partial_files(path)
                # The last writer may just have gone on.
                return cls(find_store(path, contract, sources).for_writing(), lock)
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        """Let others write; reading goes on."""
        if self._release is not None:
            self._release()
        self._lock = self._release = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def refresh(self) -> Self:
        """Look at the disk again, for episodes that were committed since; returns the store."""
        self._look_at(open_group(self.path, "r" if self._lock is None else "a"))
        return self

    def frozen(self) -> Self:
        """The episodes as they are now, to read: it stays so, whatever is appended or edited."""
        view = copy.copy(self)
        view._lock = view._release = view._tails = None
        view._readers = {}
        return view

    def _look_at(self, group: zarr.Group) -> None:
        """What is committed, and does every array fit it."""
        snapshot = take_snapshot(self.path, group, is_own=self._own is not None)
        arrays = fitting_arrays(
            group, self.contract, self._sources, snapshot, is_own=self._own is not None
        )
        self._group, self._snapshot, self._arrays = group, snapshot, arrays
        self._readers: dict[str, FieldReader] = {}
        self._tails: dict[str, np.ndarray] | None = None  # Steps in unfinished chunks, if known.
        self._n_changes = 0 if self._lock is None else self._lock.n_changes

    @property
    def episode_ends(self) -> np.ndarray:
        """[n_episodes] int64, exclusive cumulative ends [steps]; read-only."""
        return self._snapshot.ends

    @property
    def n_episodes(self) -> int:
        """Number of whole episodes that are not hidden."""
        return len(self._snapshot.shown)

    @property
    def n_hidden(self) -> int:
        """Number of episodes that are hidden."""
        return len(self._snapshot.edits.hidden)

    @property
    def n_steps(self) -> int:
        """Number of steps of all episodes that are not hidden."""
        return int(self.episode_ends[-1]) if len(self.episode_ends) else 0

    @property
    def episode_metadata(self) -> list[dict]:
        """What was given to `append` with each episode, or later; empty where there is nothing.

        Raises:
            StoreError: it is damaged.
        """
        return self._snapshot.metadata()

    @property
    def recorded_metadata(self) -> list[dict]:
        """What was given to `append` with each episode, hidden ones too.

        Raises:
            StoreError: it is damaged.
        """
        return list(self._snapshot.recorded(range(len(self._snapshot.all_ends))).values())

    def array(self, key: str) -> zarr.Array:
        """The zarr array that holds a field, hidden episodes too; later rows are of no episode."""
        if key not in self._arrays:
            raise StoreError(f"{self.path} has no field {key!r}; it has {sorted(self._arrays)}")
        return self._arrays[key]

    def read(self, key: str, *, episodes: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """A field of the given episodes (all by default), in the order of the store.

        Returns:
            [n_steps of the episodes, ...] in the contract's dtype, every number finite.

        Raises:
            StoreError: NaN or infinity, a number the contract's dtype cannot hold, a damaged file,
                an episode that does not exist.
        """
        rows = np.arange(self.n_steps) if episodes is None else self.rows_of(episodes)
        return self._reader(key).read(self._snapshot.rows(rows))

    def read_rows(self, key: str, rows: np.ndarray) -> np.ndarray:
        """The given steps of a field, ascending, from as few chunks of the disk as hold them."""
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.n_steps):
            raise StoreError(f"rows {rows.min()}..{rows.max()} of a store of {self.n_steps} steps")
        if (rows[1:] < rows[:-1]).any():
            raise StoreError(f"rows of {self.path} are not in ascending order: sort them")
        return self._reader(key).read(self._snapshot.rows(rows))

    def rows_of(self, episodes: Sequence[int] | np.ndarray) -> np.ndarray:
        """[n] int64 steps of the given episodes, ascending."""
        chosen = checked_episodes(self.path, episodes, self.n_episodes)
        return episodes_as_rows(self.episode_ends, chosen)

    def lengths_of(self, episodes: Sequence[int] | np.ndarray) -> np.ndarray:
        """[n] int64 steps of each of the given episodes."""
        checked_episodes(self.path, episodes, self.n_episodes)
        return np.diff(self.episode_ends, prepend=0)[np.asarray(episodes, np.int64)]

    def append(self, episode: Mapping[str, np.ndarray], /, **metadata: object) -> None:
        """Write one episode; it is visible when this returns, and never in part.

        Args:
            episode: field name -> [L, ...], exactly the fields of the contract.
            **metadata: what is worth knowing of the episode (seed, expert, success), as JSON; for
                keys with a meaning see the top of this file.

        Raises:
            StoreError: the episode does not fit the contract, is not finite, or cannot be written
                (a full disk). Episodes finished before are safe.
        """
        self._check_writable("append")
        rows = checked_episode(episode, self.contract)
        entry = metadata_entry(metadata)

        def write() -> None:
            if self._snapshot.commit is None:
                self._snapshot = append_plainly(self._snapshot, self._arrays, rows, entry)
                return
            if self._tails is None:
                self._tails = self._unfinished()
            self._snapshot, self._tails = append_episode(
                self._snapshot, self._arrays, rows, entry, tails=self._tails
            )

        self._change(
            write,
            f"episode {self.n_episodes} could not be written to {self.path}",
            f"The {self.n_episodes} finished episodes are safe",
        )

    def edit(
        self,
        *,
        hide: Sequence[int] | np.ndarray = (),
        metadata: Mapping[int, Mapping[str, object]] | None = None,
        show_all: bool = False,
    ) -> None:
        """Hide and relabel episodes; it is done when this returns, and never in part.

        Args:
            hide: episodes that are shown no more; later ones move up.
            metadata: episode -> all of its metadata from now on.
            show_all: show all that was hidden again, before anything else.

        Raises:
            StoreError: an episode that does not exist, a store that cannot be edited.
        """
        self._check_writable("edit")
        if self._snapshot.commit is None:
            raise StoreError(
                f"{self.path} has format_version 1 and cannot be edited: copy it into a new store, "
                f"cadence edit {self.path} do=copy out=NEW.zarr"
            )
        texts = {episode: metadata_entry(entry) for episode, entry in (metadata or {}).items()}

        def write() -> None:
            self._snapshot = commit_edit(
                self._snapshot,
                hide=hide,
                metadata={int(n): json.loads(text) for n, text in texts.items()},
                show_all=show_all,
            )

        self._change(write, f"{self.path} could not be edited", "Nothing of it has changed")

    def digest(self) -> str:
        """SHA-256 of what the contract's fields hold: names, shapes, episode ends, numbers."""
        digest = hashlib.sha256(np.ascontiguousarray(self.episode_ends, "<i8").tobytes())
        for name, field in sorted(self.contract.fields.items()):
            digest.update(f"{name} {field.dtype} {field.shape}".encode())
            block_steps = self._reader(name).block_steps
            for first in range(0, self.n_steps, block_steps):
                rows = np.arange(first, min(first + block_steps, self.n_steps))
                digest.update(np.ascontiguousarray(self.read_rows(name, rows)).data)
        return digest.hexdigest()

    def identity(self) -> str:
        """SHA-256 that another content would not have, without looking at the numbers.

        Two stores with the same content may differ in it. Of a store without checksums it is that
        of the names, sizes and times of its files.
        """
        return identity_of(self._snapshot, self.contract, self._sources)

    def _check_writable(self, what: str) -> None:
        if self._lock is None:
            raise StoreError(f"{self.path} is open for reading: open it with mode='a' to {what}")
        self._lock.check()

    def _change(self, write: Callable[[], None], failure: str, rest: str) -> None:
        """Let `write` change the store; where it fails, look at what became of it."""
        assert self._lock is not None
        with self._lock.turn:
            if self._n_changes != self._lock.n_changes:  # Made through another object like this.
                self.refresh()
            self._lock.n_changes += 1
            try:
                write()
            except OSError as error:
                self.refresh()
                reason = error.strerror or str(error)
                fix = _fix(self.path, error)
                raise StoreError(f"{failure}: {reason}. {rest}: {fix} and try again") from error
            except BaseException:
                self.refresh()  # The interrupted write may or may not have been the commit.
                raise
            self._n_changes, self._readers = self._lock.n_changes, {}

    def _unfinished(self) -> dict[str, np.ndarray]:
        """Field -> the steps in its last, unfinished chunk."""
        n_rows = self._snapshot.n_rows
        first = {name: n_rows - n_rows % array.chunks[0] for name, array in self._arrays.items()}
        return {name: self._reader(name).read(np.arange(first[name], n_rows)) for name in first}

    def _reader(self, key: str) -> FieldReader:
        """What reads a field; kept, because it keeps files open."""
        array = self.array(key)
        if key not in self._readers:
            if not self._readers:
                self._checks = self._snapshot.checks(self._stored_arrays())
            self._readers[key] = FieldReader(
                self.path,
                key,
                field=self.contract.fields[key],
                array=array,
                source=self._sources[key],
                place=self._snapshot.place,
                check=self._checks.get(key),
            )
        return self._readers[key]

    def _stored_arrays(self) -> dict[str, zarr.Array]:
        """Field -> array, of all fields of a store of ours."""
        names = [] if self._own is None else self._own.fields
        return {
            name: self._arrays[name]
            if name in self._arrays
            else stored_array(self.path, self._group, f"data/{name}")
            for name in names
        }


def _fix(path: Path | str, error: OSError) -> str:
    """What to do about a store that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"free some space ({shutil.disk_usage(path).free / 1e6:.0f} MB are left)"
    return "check the disk"
