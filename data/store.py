"""Demonstrations on disk: a zarr group that shows only whole episodes.

Layout, that of Diffusion Policy (so the stores published with it open too)::

    data/<field>           [n_steps, ...]   one array per field of the contract
    meta/episode_ends      [n_episodes]     exclusive cumulative ends [steps]
    meta/episode_metadata  [n_episodes]     one JSON object per episode, see below
    meta/chunk_checksums   [n_chunks]       of every full chunk of the fields (`data.commit`)
    meta/edit-<digest>     attributes       what is hidden and relabelled (`data.edits`)
    attributes             contract, format_version, commit and their digest
    .writer                who writes, while somebody does

How an episode becomes visible is told in `data.writing`; what guards it, in `data.commit`.

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

import contextlib
import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import zarr

from data.append import Episode
from data.codec import SHARD_BYTES, Codec
from data.content_digest import content_digest
from data.create import create_folder
from data.fields import Fields
from data.layout import Source, StoreError, checked_episode, metadata_entry, open_group
from data.location import location
from data.lock import WriterLock, acquire
from data.opening import Found, find_store, folder, remove_partial_files
from data.snapshot import checked_episodes, episodes_as_rows, identity_of
from data.types import Contract
from data.writing import Writing


class EpisodeStore:
    """Episodes of one contract in a zarr group; use `create` or `open`, and `close` or `with`."""

    def __init__(self, found: Found, lock: WriterLock | None = None):
        self.path, self.contract = found.path, found.contract
        self._writing = None if lock is None else Writing(found, lock)
        self._look = Fields.of(found, found.group) if self._writing is None else self._writing.now

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
        if self._writing is not None:
            writing = self._writing
            try:
                writing.close()
            except StoreError:
                self._look, self._writing = writing.now, None
                raise
            self._look, self._writing = writing.now, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def refresh(self) -> Self:
        """Look at the disk again, for episodes that were committed since; returns the store."""
        if self._writing is not None:
            self._writing.refresh()
        else:
            self._look = Fields.of(self._look.found, open_group(self.path, "r"))
        return self

    def frozen(self) -> Self:
        """The episodes as they are now, to read: it stays so, whatever is appended or edited."""
        view = copy.copy(self)
        view._look, view._writing = self._now.reopened(), None
        return view

    @property
    def _now(self) -> Fields:
        """What is visible."""
        return self._look if self._writing is None else self._writing.now

    @property
    def episode_ends(self) -> np.ndarray:
        """[n_episodes] int64, exclusive cumulative ends [steps]; read-only."""
        return self._now.snapshot.ends

    @property
    def n_episodes(self) -> int:
        """Number of whole episodes that are not hidden."""
        return len(self._now.snapshot.shown)

    @property
    def n_hidden(self) -> int:
        """Number of episodes that are hidden."""
        return len(self._now.snapshot.edits.hidden)

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
        return self._now.snapshot.metadata()

    @property
    def recorded_metadata(self) -> list[dict]:
        """What was given to `append` with each episode, hidden ones too.

        Raises:
            StoreError: it is damaged.
        """
        return list(self._now.snapshot.recorded(range(len(self._now.snapshot.all_ends))).values())

    def array(self, key: str) -> zarr.Array:
        """The zarr array that holds a field, hidden episodes too; later rows are of no episode."""
        return self._now.array(key)

    def read(self, key: str, *, episodes: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """A field of the given episodes (all by default), in the order of the store.

        Returns:
            [n_steps of the episodes, ...] in the contract's dtype, every number finite.

        Raises:
            StoreError: NaN or infinity, a number the contract's dtype cannot hold, a damaged file,
                an episode that does not exist.
        """
        steps = np.arange(self.n_steps) if episodes is None else self.rows_of(episodes)
        return self._now.read(key, steps)

    def read_rows(self, key: str, rows: np.ndarray) -> np.ndarray:
        """The given steps of a field, ascending, from as few chunks of the disk as hold them."""
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.n_steps):
            raise StoreError(f"rows {rows.min()}..{rows.max()} of a store of {self.n_steps} steps")
        if (rows[1:] < rows[:-1]).any():
            raise StoreError(f"rows of {self.path} are not in ascending order: sort them")
        return self._now.read(key, rows)

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
        writing = self._to_write("append")
        writing.append(Episode(checked_episode(episode, self.contract), metadata_entry(metadata)))

    @contextlib.contextmanager
    def together(self, *, seconds: float = math.inf) -> Iterator[Self]:
        """Let what is appended within become visible together, which is faster for short episodes.

        They are gathered in memory and written at the end of the `with`, whatever ends it, and
        before whenever they are 64 MiB or the oldest has waited. A kill takes what is gathered.

        Args:
            seconds: that an episode waits at most while others are appended.

        Raises:
            StoreError: as of `append`; an episode may have been gathered before that.
        """
        with self._to_write("append").together(seconds):
            yield self

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
        writing = self._to_write("edit")
        texts = {episode: metadata_entry(entry) for episode, entry in (metadata or {}).items()}
        writing.edit(
            hide=hide,
            metadata={int(n): json.loads(text) for n, text in texts.items()},
            show_all=show_all,
        )

    def digest(self, *, notes: str | Path | None = None) -> str:
        """SHA-256 of what the contract's fields hold: names, shapes, episode ends, numbers.

        Args:
            notes: folder where the digest of a large store is noted, so that it need not be read
                again; None: it is read.
        """
        return content_digest(self._now.reopened(), notes)

    def identity(self) -> str:
        """SHA-256 that another content would not have, without looking at the numbers.

        Two stores with the same content may differ in it. Of a store without checksums it is that
        of the names, sizes and times of its files.
        """
        return identity_of(self._now.snapshot, self.contract, self._now.found.sources)

    def _to_write(self, what: str) -> Writing:
        if self._writing is None:
            raise StoreError(f"{self.path} is open for reading: open it with mode='a' to {what}")
        self._writing.check()
        return self._writing
