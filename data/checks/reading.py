"""Gives the episodes of demonstrations to checks: several at once from the disk, few in memory.

Shape legend: `L` steps of an episode.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data.checks.episode import Episode
from data.layout import StoreError
from data.store import EpisodeStore

BLOCK_BYTES = 32 * 1024**2  # of the fields that are read at once
WIDEST = 128  # pixels; of larger pictures every second, third, ... pixel measures how much changes


@dataclass
class Complaints:
    """What could not be read.

    Args:
        first: field name -> the first complaint about it.
        episodes: field name -> episodes concerned.
    """

    first: dict[str, str] = field(default_factory=dict)
    episodes: dict[str, list[int]] = field(default_factory=dict)

    def add(self, name: str, episode: int, error: StoreError) -> None:
        """One more."""
        self.first.setdefault(name, str(error))
        self.episodes.setdefault(name, []).append(episode)

    @property
    def concerned(self) -> set[int]:
        """All episodes with a complaint."""
        return {index for episodes in self.episodes.values() for index in episodes}


class Reader:
    """Reads episodes of a store; the unreadable ones are left out and complained of.

    Args:
        store: opened for reading.
        metadata: of each episode.
        names: of the fields without pictures; None: all of the contract.
    """

    def __init__(
        self, store: EpisodeStore, metadata: Sequence[Mapping], names: Sequence[str] | None = None
    ):
        fields = store.contract.fields
        self._store = store
        self._metadata = [each if isinstance(each, Mapping) else {} for each in metadata]
        self.names = [
            name for name in (fields if names is None else names) if not fields[name].is_image
        ]
        self.cameras = [name for name, meaning in fields.items() if meaning.is_image]
        self._starts = np.concatenate([[0], store.episode_ends[:-1]]).astype(np.int64)
        self.complaints = Complaints()

    def episodes(self) -> Iterator[Episode]:
        """All episodes that can be read, in order, without their pictures."""
        for first, stop in self._blocks():
            yield from self._block(first, stop)

    def episode(self, index: int) -> Episode:
        """One episode without its pictures."""
        (episode,) = self._block(index, index + 1)
        return episode

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Episodes (first, stop) that fit in BLOCK_BYTES together, or one."""
        step = 8 * sum(self._store.contract.fields[name].size for name in self.names)
        ends, n, first = self._store.episode_ends, self._store.n_episodes, 0
        while first < n:
            limit = self._starts[first] + BLOCK_BYTES // max(step, 1)
            stop = max(first + 1, int(np.searchsorted(ends, limit, side="right")))
            yield first, stop
            first = stop

    def _block(self, first: int, stop: int) -> Iterator[Episode]:
        begin, end = int(self._starts[first]), int(self._store.episode_ends[stop - 1])
        try:
            fields = {name: self._rows(name, begin, end) for name in self.names}
        except StoreError as error:
            if stop - first > 1:
                for index in range(first, stop):
                    yield from self._block(index, index + 1)
            else:
                self._complain(first, error)
            return
        for index in range(first, stop):
            part = slice(self._starts[index] - begin, self._store.episode_ends[index] - begin)
            yield Episode(
                index,
                {name: values[part] for name, values in fields.items()},
                self._metadata[index],
            )

    def _complain(self, index: int, error: StoreError) -> None:
        begin, end = int(self._starts[index]), int(self._store.episode_ends[index])
        for name in self.names:
            try:
                self._rows(name, begin, end)
            except StoreError as error:
                self.complaints.add(name, index, error)

    def _rows(self, name: str, begin: int, end: int) -> np.ndarray:
        """[n, D] float64."""
        rows = self._store.read_rows(name, np.arange(begin, end))
        return rows.reshape(end - begin, -1).astype(np.float64)

    def motion(self, index: int) -> dict[str, np.ndarray]:
        """Camera -> [L] how much each picture of an episode differs from the one before."""
        found = {}
        for name in self.cameras:
            try:
                found[name] = self._motion(name, index)
            except StoreError as error:
                self.complaints.add(name, index, error)
        return found

    def _motion(self, name: str, index: int) -> np.ndarray:
        begin, end = int(self._starts[index]), int(self._store.episode_ends[index])
        size = max(1, self._store.contract.fields[name].size)
        at_once = max(2, BLOCK_BYTES // size)
        motion, last = np.zeros(end - begin), None
        for first in range(begin, end, at_once):
            stop = min(first + at_once, end)
            pictures = self._store.read_rows(name, np.arange(first, stop))
            if last is None:
                pictures_before, here = pictures[:-1], slice(1, stop - begin)
                pictures_now = pictures[1:]
            else:
                pictures_before = np.concatenate([last, pictures[:-1]])
                pictures_now, here = pictures, slice(first - begin, stop - begin)
            motion[here] = _differences(pictures_before, pictures_now)
            last = pictures[-1:].copy()
        return motion


def _differences(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """[n] mean size of the change of each picture, 0 only where no pixel changed."""
    stride = -(-max(now.shape[1:3]) // WIDEST)
    differs = (before != now).reshape(len(now), -1).any(axis=1)
    a, b = before[:, ::stride, ::stride], now[:, ::stride, ::stride]
    change = np.maximum(a, b) - np.minimum(a, b)  # of unsigned numbers, without a wider copy
    mean = change.reshape(len(now), -1).mean(axis=1, dtype=np.float32)
    return np.where(differs, np.maximum(mean, 1e-6), 0)
