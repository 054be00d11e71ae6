"""Episodes of a foreign data set into a store, one at a time, resumed where it was interrupted.

Each episode is stored with the identity of its source and its number there. Importing again goes on
with the numbers that are missing (those of hidden episodes are not); a store that holds anything
else is refused. The identity is a digest of the names, sizes and beginnings of the source's files,
so it costs no pass over them. Other settings give other episodes the same numbers, so the last
episode that is there is read again and must be what is stored. A file that is changed elsewhere in
its middle but not in its size is taken for the same.

A source of the same name and another identity may have grown since: all of its episodes that are
there are read again, and if they are what is stored, the new ones are added.

Shape legend: `L` steps of an episode.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.codec import Codec
from data.importers.importer import ImportedEpisode, Importer, ImporterError
from data.store import EpisodeStore, StoreError
from data.types import ContractError

HEAD_BYTES = 64 * 1024
GATHERED = 5.0  # [s] that an episode waits for others, to be written together
N_HEADS = 64  # files whose beginnings are part of the identity
# How far an episode may be from itself when it is imported again: arithmetic of another version of
# a library, and pictures that a codec may have changed.
RELATIVE, ABSOLUTE, GREY_LEVELS = 1e-4, 1e-6, 8.0


@dataclass(frozen=True)
class Intake:
    """What became of the episodes of a data set.

    Args:
        n_total: episodes of the data set.
        n_there: of these, in the store before, hidden ones too.
        n_added: of these, added now.
        n_steps: steps of those added.
        left_out: why episodes were left out, each with its number.
        is_interrupted: whether Ctrl-C ended the import.
    """

    n_total: int
    n_there: int
    n_added: int
    n_steps: int
    left_out: tuple[str, ...] = ()
    is_interrupted: bool = False


def take_in(
    importer: Importer,
    path: str | Path,
    *,
    leave_out_bad: bool = False,
    codec: Codec | None = None,
    progress: Callable[[Intake], object] | None = None,
    say: Callable[[str], object] | None = None,
) -> Intake:
    """Import all episodes that the store at `path` lacks; it is made with the first.

    Ctrl-C ends the import early; the report says so. Finished episodes stay, whatever happens; a
    kill takes those of the last seconds, which are imported again.

    Args:
        importer: of the data set.
        path: of the store, which may exist.
        leave_out_bad: whether an episode that cannot be imported is left out, or is an error.
        codec: of the images of a new store; None keeps them without loss.
        progress: called after every episode with the report so far.
        say: called with what takes long before an episode is imported, in words.

    Raises:
        ImporterError: an episode cannot be imported.
        StoreError: the store holds something else, or episodes that other settings made, lies in
            the data set, or cannot be written.
        ContractError: the store's numbers mean something else.
    """
    path, source = Path(path), identity(importer.path)
    if path.resolve().is_relative_to(importer.path.resolve()):
        raise StoreError(
            f"{path} lies in {importer.path}, which is imported and must not change: choose "
            f"another store=PATH"
        )
    store = _open(path, importer, source) if path.exists() else None
    there = _numbers(store)
    if store is not None:
        has_changed = bool(there) and source not in _sources(store)
        if has_changed and say is not None:
            say(
                f"{importer.path} has changed since {len(there)} of its episodes were imported: "
                f"they are read again, to see that they are the same"
            )
        _check_stored(store, importer, is_all=has_changed)
    left_out: list[str] = []
    n_added = n_steps = 0
    episodes: Iterator[ImportedEpisode] | None = None

    def report(is_interrupted: bool = False) -> Intake:
        return Intake(
            n_total=importer.n_episodes,
            n_there=len(there),
            n_added=n_added,
            n_steps=n_steps,
            left_out=tuple(left_out),
            is_interrupted=is_interrupted,
        )

    try:
        with ExitStack() as gathering:
            if store is not None:
                gathering.enter_context(store.together(seconds=GATHERED))
            for number in range(importer.n_episodes):
                if number in there:
                    episodes = None  # What is read next comes later in the source.
                    continue
                try:
                    episodes = importer.episodes(number) if episodes is None else episodes
                    episode = _next(episodes, importer, number)
                    if store is None:
                        store = EpisodeStore.create(path, importer.contract, codec=codec)
                        gathering.enter_context(store.together(seconds=GATHERED))
                    _append(store, episode, source, number, importer)
                except ImporterError as error:
                    if not leave_out_bad:
                        raise ImporterError(
                            f"{error} (bad=leave_out leaves out such episodes)"
                        ) from error
                    left_out.append(f"episode {number}: {error}")
                    episodes = None
                else:
                    n_added += 1
                    n_steps += len(episode.fields["action"])
                if progress is not None:
                    progress(report())
    except KeyboardInterrupt:
        # The store knows best whether the interrupted episode is in it.
        n_added = 0 if store is None else len(_numbers(EpisodeStore.open(path)) - there)
        return report(is_interrupted=True)
    return report()


def identity(path: Path) -> str:
    """What tells a data set from others: its name, and a digest of its files.

    Raises:
        ImporterError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for index, file in enumerate(files):
            name = file.relative_to(path).as_posix()
            digest.update(f"{name} {file.stat().st_size}\n".encode(errors="replace"))
            if index < N_HEADS:
                with file.open("rb") as stream:
                    digest.update(stream.read(HEAD_BYTES))
    except OSError as error:
        raise ImporterError(f"{path} cannot be read: {error.strerror or error}") from error
    return f"{path.name} {digest.hexdigest()[:16]}"


def _next(episodes: Iterator[ImportedEpisode], importer: Importer, number: int) -> ImportedEpisode:
    try:
        return next(episodes)
    except StopIteration:
        raise ImporterError(
            f"{importer.path} ends before episode {number} of {importer.n_episodes}: it is damaged"
        ) from None


def _append(
    store: EpisodeStore, episode: ImportedEpisode, source: str, number: int, importer: Importer
) -> None:
    own = {"source": source, "source_number": number}
    if clash := sorted({*own, "episode", "self"} & set(episode.metadata)):
        raise ImporterError(
            f"{importer.path}: episode {number} comes with a value called {clash[0]!r}, a name "
            f"that is used here: rename it"
        )
    store.append(episode.fields, **episode.metadata, **own)


def _open(path: Path, importer: Importer, source: str) -> EpisodeStore:
    """The store to go on with, if it holds this data set and nothing else."""
    store = EpisodeStore.open(path, mode="a")
    importer.contract.check(store.contract, this="what is imported", that=f"the store {path}")
    if set(store.contract.fields) != set(importer.contract.fields):
        raise ContractError(
            f"{path} holds the fields {sorted(store.contract.fields)}, imported are "
            f"{sorted(importer.contract.fields)}: import into another store=PATH"
        )
    others = sorted(other for other in _sources(store) if _name(other) != _name(source))
    if others:
        raise StoreError(
            f"{path} holds {', '.join(others[:3])}, this is {source}: import into another "
            f"store=PATH, and merge them later with cadence edit"
        )
    return store


def _sources(store: EpisodeStore) -> set[str]:
    """Identities of the data sets that a store holds episodes of."""
    return {str(entry.get("source", "episodes of no import")) for entry in store.recorded_metadata}


def _name(source: str) -> str:
    """Name of a data set, without the digest that its identity ends with."""
    return source.rpartition(" ")[0]


def _numbers(store: EpisodeStore | None) -> set[int]:
    """Numbers in the source of the episodes that a store holds, hidden ones too."""
    if store is None:
        return set()
    return {
        number
        for entry in store.recorded_metadata
        if isinstance(number := entry.get("source_number"), int)
    }


def _check_stored(store: EpisodeStore, importer: Importer, *, is_all: bool) -> None:
    """Raise StoreError unless the episodes of a store are what would be imported now.

    It tells other settings (a mask, another array, numbers that are scaled) and a changed source.

    Args:
        store: whose episodes are looked at; hidden ones are not.
        importer: of the data set they came from.
        is_all: whether all are looked at, and not only the last one.
    """
    known = {
        number: place
        for place, entry in enumerate(store.episode_metadata)
        if isinstance(number := entry.get("source_number"), int)
    }
    numbers = sorted(known)
    episodes: Iterator[ImportedEpisode] = iter(())
    next_number = -1
    for number in numbers if is_all else numbers[-1:]:
        if number >= importer.n_episodes:
            raise _other(store, importer, number, f"the last is number {importer.n_episodes - 1}")
        if number != next_number:
            episodes = importer.episodes(number)
        episode, next_number = _next(episodes, importer, number), number + 1
        wrong = [
            name
            for name, values in episode.fields.items()
            if not _is_alike(store.read(name, episodes=[known[number]]), values, is_all=is_all)
        ]
        if wrong:
            raise _other(store, importer, number, f"its {', '.join(wrong)} would be another now")


def _other(store: EpisodeStore, importer: Importer, number: int, fault: str) -> StoreError:
    return StoreError(
        f"{store.path} holds number {number} of {importer.path} as it is imported no more "
        f"({fault}): give the settings of the first import, or import into another store=PATH"
    )


def _is_alike(stored: np.ndarray, imported: np.ndarray, *, is_all: bool) -> bool:
    """Whether two arrays [L, ...] are the same but for rounding, or for what a codec may lose.

    Args:
        stored: as it was imported.
        imported: now.
        is_all: whether all pictures are compared, and not only the first and the last.
    """
    if stored.shape != imported.shape:
        return False
    is_image = stored.dtype == np.uint8 and stored.ndim == 4
    if not is_image:
        return np.allclose(stored, imported, rtol=RELATIVE, atol=ABSOLUTE)
    steps = range(len(stored)) if is_all else (0, -1)
    return all(
        np.abs(stored[step].astype(np.float32) - imported[step]).mean() <= GREY_LEVELS
        for step in steps
    )
