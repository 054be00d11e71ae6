"""What is written for episodes or an edit of a store, in the order that keeps it whole.

Everything but the last write of each is not seen by anybody; the last one is the commit.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from data.codec import codec_of
from data.commit import Commit, attributes_with, filled_by_episode
from data.durable import files_of, flush
from data.edits import PREFIX, Edits, remove_old_edits
from data.layout import StoreError, frozen, stored_array, write_rows
from data.shard_files import append_rows
from data.snapshot import Snapshot, checked_episodes


@dataclass(frozen=True)
class Episode:
    """What is appended.

    Args:
        fields: field -> [L, ...] in the contract's dtype.
        entry: its metadata, as JSON.
    """

    fields: Mapping[str, np.ndarray]
    entry: str

    @property
    def n_steps(self) -> int:
        """Its length."""
        return len(self.fields["action"])


def append_episodes(
    snapshot: Snapshot,
    arrays: Mapping[str, zarr.Array],
    episodes: Sequence[Episode],
    *,
    tails: Mapping[str, np.ndarray],
) -> tuple[Snapshot, dict[str, np.ndarray]]:
    """Write episodes into a store of the newest layout, with one commit.

    The files are the same as if they had been written one by one.

    Args:
        snapshot: of the store.
        arrays: field -> array.
        episodes: at least one.
        tails: field -> the steps in its unfinished chunk.

    Returns:
        The store with the episodes, and the steps in unfinished chunks then.

    Raises:
        OSError: a file cannot be written.
        StoreError: what is there already is damaged.
    """
    commit, group = snapshot.commit, snapshot.group
    assert commit is not None
    sums, tail_sums, new_tails = {}, {}, {}
    for name in sorted(arrays):
        array = arrays[name]
        parts = [episode.fields[name] for episode in episodes]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)  # One may be huge.
        try:
            sums[name], tail_sums[name] = append_rows(
                array, codec_of(array), rows, n_steps=commit.n_steps, tail=tails[name]
            )
        except ValueError as error:
            raise StoreError(f"{snapshot.path}: data/{name} cannot grow: {error}") from error
        n_left = (commit.n_steps + len(rows)) % array.chunks[0]
        last = np.concatenate([tails[name], rows[max(0, len(rows) - n_left) :]])
        new_tails[name] = last[len(last) - n_left :].copy()  # Not a view, of all of it.
    ends = commit.n_steps + np.cumsum([episode.n_steps for episode in episodes])
    chunk_steps = {name: arrays[name].chunks[0] for name in arrays}
    filled = filled_by_episode(sums, commit.n_steps, ends, chunk_steps)
    new = commit
    for episode, own in zip(episodes, filled, strict=True):
        new = new.followed_by(
            n_steps=episode.n_steps, entry=episode.entry, filled=own, tails=tail_sums
        )
    if new.n_checksums > commit.n_checksums:
        checksums = stored_array(snapshot.path, group, "meta/chunk_checksums")
        log = np.array([one for own in filled for one in own], np.uint32)
        write_rows(checksums, commit.n_checksums, log)
    all_ends = _write_episodes(snapshot, [episode.entry for episode in episodes], ends)
    flush(Path(snapshot.path), _files_between(snapshot, arrays, new))
    _commit(snapshot, new)
    return dataclasses.replace(snapshot, all_ends=all_ends, commit=new), new_tails


def append_plainly(
    snapshot: Snapshot, arrays: Mapping[str, zarr.Array], episode: Episode
) -> Snapshot:
    """Write an episode into a store of format_version 1; returns the store with it.

    There `episode_ends` grows by one, which reads as 0 and is ignored; then that 0 is overwritten
    by the end, which is the commit.
    """
    start = snapshot.n_rows
    for name, values in episode.fields.items():
        write_rows(arrays[name], start, values)
    ends = _write_episodes(snapshot, [episode.entry], np.array([start + episode.n_steps]))
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
    """The files that episodes change, but for the commit itself."""
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


def _write_episodes(snapshot: Snapshot, entries: Sequence[str], ends: np.ndarray) -> np.ndarray:
    """Write metadata and ends of the next episodes; returns all ends."""
    n = len(snapshot.all_ends)
    array = stored_array(snapshot.path, snapshot.group, "meta/episode_metadata")
    write_rows(array, n, np.array(entries, dtype=object))
    write_rows(stored_array(snapshot.path, snapshot.group, "meta/episode_ends"), n, ends)
    return frozen(np.append(snapshot.all_ends, ends))
