"""Demonstrations on disk: a zarr group that shows only whole episodes.

Layout, that of Diffusion Policy (so the stores published with it open too)::

    data/<field>           [n_steps, ...]   one array per field of the contract
    meta/episode_ends      [n_episodes]     exclusive cumulative ends [steps]
    meta/episode_metadata  [n_episodes]     one JSON object per episode, such as its seed
    attributes             contract, format_version

How an episode becomes visible. Zarr replaces every file atomically, so each single write below is
seen either not at all or whole, also after `kill -9`. The rows of the fields and the metadata are
written first, past the last end where nobody looks; then `episode_ends` grows by one, which reads
as 0 and is ignored; then that 0 is overwritten by the end, which is the commit. Whatever an
interrupted writer left past the last end is overwritten by the next episode. One writer at a time.
"""

import errno
import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import zarr

from data.layout import (
    Source,
    StoreError,
    check_array,
    checked_episode,
    committed_ends,
    frozen,
    metadata_entry,
    open_group,
    own_contract,
    stored_array,
    write_empty,
    write_rows,
)
from data.reading import FieldReader
from data.types import Contract


class EpisodeStore:
    """Episodes of one contract in a zarr group; use `create` or `open`."""

    def __init__(
        self,
        path: Path,
        group: zarr.Group,
        contract: Contract,
        *,
        is_own: bool,
        is_writable: bool,
        sources: Mapping[str, Source] | None = None,
    ):
        self.path = path
        self._sources = {name: Source(name) for name in contract.fields} | dict(sources or {})
        self.contract = contract
        self._group = group
        self._is_own = is_own
        self._is_writable = is_writable
        self._reload()

    @classmethod
    def create(cls, path: str | Path, contract: Contract) -> Self:
        """A new, empty store, opened for appending.

        Raises:
            StoreError: the path exists already or cannot be written.
        """
        path = Path(path)
        if path.exists():
            raise StoreError(
                f"{path} exists already: append with EpisodeStore.open(path, mode='a'), "
                f"or choose another path"
            )
        # Built aside and renamed, so that an interrupted creation leaves no half of a store.
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            draft.mkdir(parents=True)
            write_empty(draft, contract)
            draft.rename(path)
        except OSError as error:
            raise StoreError(
                f"{path} cannot be created: {error.strerror or error}: choose another place"
            ) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
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
            path: folder of the zarr group.
            contract: meaning of the numbers. Needed for a store without a contract of its own;
                otherwise checked against the store's, and its fields are the ones that are read.
            sources: field name -> where a store without a contract of its own keeps it, by default
                under the field's name. A store with one keeps its fields under their names.
            mode: "r" to read, "a" to append as well.

        Raises:
            StoreError: not a zarr group, no contract, a newer format, a missing or misshapen array,
                the source of a field that is not in the contract.
            ContractError: the store's contract and the given one disagree.
        """
        path = Path(path)
        if mode not in ("r", "a"):
            raise StoreError(f"mode is {mode!r}, choose 'r' or 'a'")
        group = open_group(path, mode)
        own = own_contract(path, group)
        if own is None and contract is None:
            raise StoreError(
                f"{path} has no contract in its attributes: say what its numbers mean by giving "
                f"one (store=NAME with a contract, as configs/store/push_t_human.yaml has it)"
            )
        if own is None and mode == "a":
            raise StoreError(
                f"{path} has no contract of its own and can only be read: record into a new store"
            )
        if own is not None and contract is not None:
            contract.check(own, this="the given contract", that=f"store {path}")
        chosen = own if own is not None and (contract is None or mode == "a") else contract
        assert chosen is not None
        if unknown := set(sources or {}) - set(chosen.fields):
            raise StoreError(
                f"sources name the fields {sorted(unknown)}, the contract has "
                f"{sorted(chosen.fields)}"
            )
        if mode == "a":
            _remove_partial_files(path)
        return cls(
            path,
            group,
            chosen,
            is_own=own is not None,
            is_writable=mode == "a",
            sources=sources if own is None else None,
        )

    def _reload(self) -> None:
        """Look at the disk: what is committed, and does every array fit it."""
        self._ends_array = stored_array(self.path, self._group, "meta/episode_ends")
        self._ends = committed_ends(self.path, self._ends_array, is_own=self._is_own)
        self._arrays = {
            name: stored_array(self.path, self._group, f"data/{self._sources[name].key}")
            for name in self.contract.fields
        }
        for name, field in self.contract.fields.items():
            check_array(
                self._arrays[name],
                field,
                name=name,
                n_steps=self.n_steps,
                is_own=self._is_own,
                source=self._sources[name],
            )
        self._metadata_array = None
        if self._is_writable or "meta/episode_metadata" in self._group:
            self._metadata_array = stored_array(self.path, self._group, "meta/episode_metadata")

    @property
    def episode_ends(self) -> np.ndarray:
        """[n_episodes] int64, exclusive cumulative ends [steps]; read-only."""
        return self._ends

    @property
    def n_episodes(self) -> int:
        """Number of whole episodes."""
        return len(self._ends)

    @property
    def n_steps(self) -> int:
        """Number of steps of all whole episodes."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def episode_metadata(self) -> list[dict]:
        """What was given to `append` with each episode; empty objects where there is none."""
        if self._metadata_array is None:
            return [{} for _ in range(self.n_episodes)]
        entries = np.asarray(self._metadata_array[: self.n_episodes])
        try:
            return [json.loads(str(entry)) for entry in entries]
        except ValueError as error:
            raise StoreError(
                f"{self.path}: meta/episode_metadata is not JSON ({error}): "
                f"restore it from a copy, or record into a new store"
            ) from error

    def array(self, key: str) -> zarr.Array:
        """The zarr array that holds a field; rows from `n_steps` on belong to no episode."""
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
        reader = self._reader(key)
        return reader.blocks(rows, reader.block_steps)

    def read_rows(self, key: str, rows: np.ndarray) -> np.ndarray:
        """The given steps of a field, ascending, from few chunks of the disk (slow)."""
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.n_steps):
            raise StoreError(f"rows {rows.min()}..{rows.max()} of a store of {self.n_steps} steps")
        return self._reader(key).blocks(rows, self.array(key).chunks[0])

    def rows_of(self, episodes: Sequence[int] | np.ndarray) -> np.ndarray:
        """[n] int64 steps of the given episodes, ascending."""
        episodes = np.unique(np.asarray(episodes, np.int64))
        if len(episodes) and not (episodes[0] >= 0 and episodes[-1] < self.n_episodes):
            raise StoreError(
                f"episodes {episodes[0]}..{episodes[-1]} of {self.path}, "
                f"which has {self.n_episodes}: choose 0..{self.n_episodes - 1}"
            )
        lengths = np.diff(self._ends, prepend=0)
        episode_of_row = np.repeat(np.arange(self.n_episodes), lengths)
        return np.flatnonzero(np.isin(episode_of_row, episodes))

    def lengths_of(self, episodes: Sequence[int] | np.ndarray) -> np.ndarray:
        """[n] int64 steps of each of the given episodes."""
        return np.diff(self._ends, prepend=0)[np.asarray(episodes, np.int64)]

    def append(self, episode: Mapping[str, np.ndarray], **metadata: object) -> None:
        """Write one episode; it is visible when this returns, and never in part.

        Args:
            episode: field name -> [L, ...], exactly the fields of the contract.
            **metadata: what is worth knowing of the episode (seed, expert, success), as JSON.

        Raises:
            StoreError: the episode does not fit the contract, is not finite, or cannot be written
                (a full disk). Episodes finished before are safe.
        """
        if not self._is_writable:
            raise StoreError(f"{self.path} is open for reading: open it with mode='a' to append")
        rows = checked_episode(episode, self.contract)
        entry = metadata_entry(metadata)
        try:
            self._write(rows, entry)
        except OSError as error:
            self._reload()
            raise StoreError(self._write_failure(error)) from error
        except BaseException:
            self._reload()  # The interrupted write may or may not have been the commit.
            raise

    def _write(self, rows: dict[str, np.ndarray], entry: str) -> None:
        start, end = self.n_steps, self.n_steps + len(rows["action"])
        for name, values in rows.items():
            write_rows(self._arrays[name], start, values)
        assert self._metadata_array is not None
        write_rows(self._metadata_array, self.n_episodes, np.array([entry], dtype=object))
        write_rows(self._ends_array, self.n_episodes, np.array([end]))
        self._ends = frozen(np.append(self._ends, end))

    def _write_failure(self, error: OSError) -> str:
        reason = error.strerror or str(error)
        free_mb = shutil.disk_usage(self.path).free / 1e6
        fix = (
            f"free some space ({free_mb:.0f} MB are left)"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "check the disk"
        )
        return (
            f"episode {self.n_episodes} could not be written to {self.path}: {reason}. "
            f"The {self.n_episodes} finished episodes are safe: {fix} and record again"
        )

    def digest(self) -> str:
        """SHA-256 of what the contract's fields hold: names, shapes, episode ends, numbers."""
        digest = hashlib.sha256(np.ascontiguousarray(self._ends, "<i8").tobytes())
        for name, field in sorted(self.contract.fields.items()):
            digest.update(f"{name} {field.dtype} {field.shape}".encode())
            reader = self._reader(name)
            for first in range(0, self.n_steps, reader.block_steps):
                stop = min(first + reader.block_steps, self.n_steps)
                values = reader.steps(np.arange(first, stop))
                digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    def _reader(self, key: str) -> FieldReader:
        array = self.array(key)
        return FieldReader(
            self.path,
            key,
            field=self.contract.fields[key],
            array=array,
            source=self._sources[key],
            episode_ends=self._ends,
        )


def _remove_partial_files(path: Path) -> None:
    """Delete what zarr was writing beside its files when a writer was killed."""
    for leftover in path.rglob("*.partial"):
        leftover.unlink(missing_ok=True)
