"""Changes to stores: hide, show and relabel episodes in place; copy, merge and split into new ones.

What changes a store in place writes a list, not the episodes, and can be taken back; the episodes
go when a copy is made without what is hidden. What writes a new store reads one episode at a time,
builds aside and renames at the end: it is there as a whole or not at all.
"""

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.codec import Codec
from data.create import check_free
from data.dataset import split_episodes
from data.durable import flush_folder
from data.joint_contract import joint_contract
from data.opening import folder
from data.snapshot import checked_episodes
from data.store import EpisodeStore, StoreError
from data.types import Contract

Progress = Callable[[int], object]  # called after an episode with its number of steps
SPLITS = ("train", "val")
GATHERED = 5.0  # [s] that an episode waits for others, to be written together


def hide(store: EpisodeStore, episodes: Sequence[int] | np.ndarray) -> None:
    """Show these episodes no more; `show_all` takes it back."""
    store.edit(hide=episodes)


def keep(store: EpisodeStore, episodes: Sequence[int] | np.ndarray) -> None:
    """Show only these episodes of those that are shown."""
    kept = checked_episodes(store.path, episodes, store.n_episodes)
    hide(store, np.setdiff1d(np.arange(store.n_episodes), kept))


def show_all(store: EpisodeStore) -> None:
    """Show all episodes that were hidden."""
    store.edit(show_all=True)


def relabel(
    store: EpisodeStore,
    episodes: Sequence[int] | np.ndarray,
    labels: Mapping[str, object],
) -> None:
    """Set entries of the metadata of episodes; None removes an entry.

    Raises:
        StoreError: an episode that does not exist, a label that is not JSON.
    """
    known, changed = store.episode_metadata, {}
    for episode in checked_episodes(store.path, episodes, len(known)).tolist():
        entries = {**known[episode], **labels}
        changed[episode] = {key: value for key, value in entries.items() if value is not None}
    store.edit(metadata=changed)


def copy(
    store: EpisodeStore,
    path: str | Path,
    *,
    episodes: Sequence[int] | np.ndarray | None = None,
    codec: Codec | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a new store with the given episodes (all that are shown by default).

    Args:
        store: of any layout; the new one has the newest, without what is hidden.
        path: of the new store.
        episodes: which ones.
        codec: of its images.
        progress: called after every episode.

    Raises:
        StoreError: the path exists, or an episode does not, or cannot be read.
    """
    with _new_store(path, store.contract, codec) as target:
        add(target, store, episodes=episodes, progress=progress)


def merge(
    stores: Sequence[EpisodeStore],
    path: str | Path,
    *,
    codec: Codec | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a new store with the episodes of all stores, one store after the other.

    Raises:
        ContractError: two stores do not mean the same numbers.
        StoreError: no stores, the path exists, or an episode cannot be read.
    """
    if not stores:
        raise StoreError("a merge of zero stores: give at least one path")
    with _new_store(path, joint_contract(stores), codec) as target:
        for store in stores:
            add(target, store, progress=progress)


def add(
    target: EpisodeStore,
    source: EpisodeStore,
    *,
    episodes: Sequence[int] | np.ndarray | None = None,
    progress: Progress | None = None,
) -> None:
    """Append episodes (all by default) of one store to another, visible every few seconds.

    An episode whose metadata does not say its task is given that of its store.

    Raises:
        ContractError: the stores do not mean the same numbers.
        StoreError: an episode cannot be read or written.
    """
    check_other(target, source)
    wanted = np.arange(source.n_episodes) if episodes is None else episodes
    chosen = checked_episodes(source.path, wanted, source.n_episodes)
    metadata, task = source.episode_metadata, source.contract.task
    with target.together(seconds=GATHERED):
        for episode in chosen.tolist():
            rows = {name: source.read(name, episodes=[episode]) for name in target.contract.fields}
            entries = dict(metadata[episode])
            if task and task != target.contract.task:
                entries.setdefault("task", task)
            target.append(rows, **entries)
            if progress is not None:
                progress(len(rows["action"]))


def check_other(target: EpisodeStore, source: EpisodeStore) -> None:
    """Whether the episodes of one store may be appended to another.

    Raises:
        ContractError: the stores do not mean the same numbers.
        StoreError: they are the same.
    """
    if Path(source.path).resolve() == Path(target.path).resolve():
        raise StoreError(f"{target.path} cannot be appended to itself: name another store")
    joint_contract([target, source])


def split(
    store: EpisodeStore,
    fraction: float,
    place: str | Path,
    *,
    seed: int = 0,
    codec: Codec | None = None,
    progress: Progress | None = None,
) -> tuple[Path, Path]:
    """Write a store to train on and one to validate with; returns their paths.

    Args:
        store: whose episodes are divided.
        fraction: of the episodes to validate with, 0..1.
        place: folder of the new stores, train.zarr and val.zarr.
        seed: of the choice, which is that of training.
        codec: of their images.
        progress: called after every episode.

    Raises:
        StoreError: one of the stores exists, or an episode cannot be read.
        ValueError: a fraction outside 0..1, or that leaves nothing to validate with.
    """
    parts = divided(store, fraction, seed)
    home = folder(place, "created")
    paths = [home / f"{name}.zarr" for name in SPLITS]
    # Both are built before either is there.
    with ExitStack() as stack:
        targets = [stack.enter_context(_new_store(p, store.contract, codec)) for p in paths]
        for target, episodes in zip(targets, parts, strict=True):
            add(target, store, episodes=episodes, progress=progress)
    return paths[0], paths[1]


def label_split(store: EpisodeStore, fraction: float, *, seed: int = 0) -> None:
    """Write into each episode's metadata which part it is of: `split` is "train" or "val".

    Raises:
        StoreError: the store cannot be edited.
        ValueError: a fraction outside 0..1, or that leaves nothing to validate with.
    """
    known, changed = store.episode_metadata, {}
    for name, episodes in zip(SPLITS, divided(store, fraction, seed), strict=True):
        changed |= {episode: {**known[episode], "split": name} for episode in episodes.tolist()}
    store.edit(metadata=changed)


def divided(store: EpisodeStore, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Episodes to train on and to validate with; ValueError where one of them would be none."""
    train, val = split_episodes(store.n_episodes, fraction, seed=seed)
    if not len(val):
        raise ValueError(
            f"{fraction:g} of {store.n_episodes} episodes leaves none to validate with: "
            f"raise fraction, or record more"
        )
    return train, val


@contextmanager
def _new_store(path: str | Path, contract: Contract, codec: Codec | None) -> Iterator[EpisodeStore]:
    """A store that is at `path` once all is written, and nowhere if something fails."""
    path = folder(path, "created")
    check_free(path)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.unfinished")
    try:
        created = EpisodeStore.create(draft, replace(contract, statistics=""), codec=codec)
        with created as store, store.together():
            yield store
        draft.rename(path)  # All of it is on the disk already.
        flush_folder(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
