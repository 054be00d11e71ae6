"""What is written for an episode or an edit of a store, in the order that keeps it whole.

Everything but the last write of each is not seen by anybody; the last one is the commit.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import zarr

from data.codec import codec_of
from data.commit import Commit, attributes_with
from data.durable import files_of, flush
from data.edits import PREFIX, Edits, remove_old_edits
from data.layout import StoreError, frozen, stored_array, write_rows
from data.shard_files import append_rows
from data.snapshot import Snapshot, checked_episodes


def append_episode(
    snapshot: Snapshot,
    arrays: Mapping[str, zarr.Array],
    rows: Mapping[str, np.ndarray],
    entry: str,
    *,
    tails: Mapping[str, np.ndarray],
) -> tuple[Snapshot, dict[str, np.ndarray]]:
    """Write an episode into a store of the newest layout.

    Args:
        snapshot: of the store.
        arrays: field -> array.
        rows: field -> [L, ...] in the contract's dtype.
        entry: the episode's metadata, as JSON.
        tails: field -> the steps in its unfinished chunk.

    Returns:
        The store with the episode, and the steps in unfinished chunks then.

    Raises:
        OSError: a file cannot be written.
        StoreError: what is there already is damaged.
    """
    commit, group = snapshot.commit, snapshot.group
    assert commit is not None
    filled, tail_sums, new_tails = [], {}, {}
    for name in sorted(rows):
        array = arrays[name]
        try:
            sums, tail_sums[name] = append_rows(
                array, codec_of(array), rows[name], n_steps=commit.n_steps, tail=tails[name]
            )
        except ValueError as error:
            raise StoreError(f"{snapshot.path}: data/{name} cannot grow: {error}") from error
        filled += sums
        joined = np.concatenate([tails[name], rows[name]])
        new_tails[name] = joined[
            len(joined) - (commit.n_steps + len(rows[name])) % array.chunks[0] :
        ]
    new = commit.followed_by(
        n_steps=len(rows["action"]), entry=entry, filled=filled, tails=tail_sums
    )
    if filled:
        checksums = stored_array(snapshot.path, group, "meta/chunk_checksums")
        write_rows(checksums, commit.n_checksums, np.array(filled, np.uint32))
    ends = _write_episode(snapshot, entry, new.n_steps)
    flush(Path(snapshot.path), _files_between(snapshot, arrays, new))
    _commit(snapshot, new)
    return dataclasses.replace(snapshot, all_ends=ends, commit=new), new_tails


def append_plainly(
    snapshot: Snapshot, arrays: Mapping[str, zarr.Array], rows: Mapping[str, np.ndarray], entry: str
) -> Snapshot:
    """Write an episode into a store of format_version 1; returns the store with it.

    There `episode_ends` grows by one, which reads as 0 and is ignored; then that 0 is overwritten
    by the end, which is the commit.
    """
    start = snapshot.n_rows
    for name, values in rows.items():
        write_rows(arrays[name], start, values)
    ends = _write_episode(snapshot, entry, start + len(rows["action"]))
    return dataclasses.replace(snapshot, all_ends=ends)


def commit_edit(
    snapshot: Snapshot,
    *,
    hide: Sequence[int] | np.ndarray,
    metadata: Mapping[int, dict],
    show_all: bool = False,
) -> Snapshot:
    """Let edits apply from now on; see `EpisodeStore.edit`."""
    commit, old, group = snapshot.commit, snapshot.edits, snapshot.group
    assert commit is not None
    shown = np.arange(commit.n_episodes) if show_all else snapshot.shown
    chosen = checked_episodes(snapshot.path, hide, len(shown))
    checked_episodes(snapshot.path, list(metadata), len(shown))
    hidden = (frozenset() if show_all else old.hidden) | set(shown[chosen].tolist())
    relabelled = {int(shown[n]): entry for n, entry in metadata.items()}
    edits = Edits(frozenset(hidden), {**old.metadata, **relabelled})
    new = dataclasses.replace(commit, edit=edits.write(group))
    if new.edit:
        root = Path(snapshot.path)
        flush(root, [root / "meta" / f"{PREFIX}{new.edit}" / "zarr.json"])
    _commit(snapshot, new)
    # Those of before are kept for who looked at the attributes just now.
    remove_old_edits(snapshot.path, commit.edit, new.edit)
    return dataclasses.replace(snapshot, commit=new, edits=edits)


def _files_between(
    snapshot: Snapshot, arrays: Mapping[str, zarr.Array], new: Commit
) -> Iterator[Path]:
    """The files that are changed by an episode, but for the commit itself."""
    old = snapshot.commit
    assert old is not None
    for array in arrays.values():
        yield from files_of(array, old.n_steps, new.n_steps)
    for name, first, stop in (
        ("episode_metadata", old.n_episodes, new.n_episodes),
        ("episode_ends", old.n_episodes, new.n_episodes),
        ("chunk_checksums", old.n_checksums, new.n_checksums),
    ):
        array = stored_array(snapshot.path, snapshot.group, f"meta/{name}")
        yield from files_of(array, first, stop)


def _commit(snapshot: Snapshot, new: Commit) -> None:
    """Let a record count from now on, also after a power cut."""
    attributes, root = snapshot.group.attrs, Path(snapshot.path)
    attributes.put(attributes_with(attributes.asdict(), new))
    flush(root, [root / "zarr.json"])


def _write_episode(snapshot: Snapshot, entry: str, end: int) -> np.ndarray:
    """Write metadata and end of the next episode; returns all ends."""
    n = len(snapshot.all_ends)
    entries = stored_array(snapshot.path, snapshot.group, "meta/episode_metadata")
    write_rows(entries, n, np.array([entry], dtype=object))
    ends = stored_array(snapshot.path, snapshot.group, "meta/episode_ends")
    write_rows(ends, n, np.array([end]))
    return frozen(np.append(snapshot.all_ends, end))
