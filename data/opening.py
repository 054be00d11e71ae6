"""Finds a store, and what its numbers are to mean, before anything of it is read."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import zarr

from data.layout import Source, StoreError, check_array, open_group, own_contract, stored_array
from data.location import location
from data.snapshot import Snapshot
from data.types import Contract


@dataclass(frozen=True)
class Found:
    """A store that was found.

    Args:
        path: folder or location.
        group: of zarr.
        contract: what is read of it, and as what.
        own: its own contract, None for a foreign store.
        sources: field -> where it is kept.
    """

    path: Path | str
    group: zarr.Group
    contract: Contract
    own: Contract | None
    sources: dict[str, Source]

    def check_writable(self) -> None:
        """Raise StoreError for a foreign store."""
        if self.own is None:
            raise StoreError(
                f"{self.path} has no contract of its own and can only be read: record into a new "
                f"store"
            )

    def for_writing(self) -> Self:
        """The same with all fields of the store, opened for writing."""
        assert self.own is not None
        sources = {name: Source(name) for name in self.own.fields}
        group = open_group(self.path, "a")
        return replace(self, group=group, contract=self.own, sources=sources)


def find_store(
    path: Path | str, contract: Contract | None, sources: Mapping[str, Source] | None
) -> Found:
    """The store at a path, to read; see `EpisodeStore.open`."""
    group = open_group(path, "r")
    own = own_contract(path, group)
    chosen = own if contract is None else contract
    if chosen is None:
        raise StoreError(
            f"{path} has no contract in its attributes: say what its numbers mean by giving one "
            f"(store=NAME with a contract, as configs/store/push_t_human.yaml has it)"
        )
    if own is not None:
        chosen.check(own, this="the given contract", that=f"store {path}")
    if unknown := set(sources or {}) - set(chosen.fields):
        raise StoreError(
            f"sources name the fields {sorted(unknown)}, the contract has {sorted(chosen.fields)}"
        )
    kept = {name: Source(name) for name in chosen.fields}
    if own is None:
        kept |= sources or {}
    return Found(path, group, chosen, own, kept)


def fitting_arrays(
    group: zarr.Group,
    contract: Contract,
    sources: Mapping[str, Source],
    snapshot: Snapshot,
    *,
    is_own: bool,
) -> dict[str, zarr.Array]:
    """Field -> array, each of which holds what the contract says.

    Raises:
        StoreError: one does not.
    """
    arrays = {
        name: stored_array(snapshot.path, group, f"data/{sources[name].key}")
        for name in contract.fields
    }
    for name, field in contract.fields.items():
        check_array(
            arrays[name],
            field,
            name=name,
            n_steps=snapshot.n_rows,
            is_own=is_own,
            source=sources[name],
        )
    return arrays


def folder(path: str | Path, what: str) -> Path:
    """A path as a folder of this machine's.

    Raises:
        StoreError: it is a location that can only be read.
    """
    place = location(path)
    if isinstance(place, str):
        raise StoreError(f"{place} can only be read, not {what}: give a folder")
    return place


def remove_partial_files(path: Path) -> None:
    """Delete what was being written beside the files when a writer was killed."""
    for leftover in path.rglob("*.partial"):
        leftover.unlink(missing_ok=True)
