"""Several stores as one to learn from, each with a weight, and each told apart by its task.

The mixture has the episodes of all stores, the first store's first, and is read like a store. The
stores may differ in the range of their numbers, but not in what the numbers mean. Weights say which
share of an epoch's windows comes from each store (`data.visits`); statistics and the validation
loss take each step once.

Numbers are scaled by statistics of all stores together, or, where tasks are told, by those of each
task (`data.normalize`): beside numbers a thousand times as large, those of another task would all
look alike.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np

from data.dataset import split_episodes
from data.demonstrations import Demonstrations
from data.joint_contract import TASK, joint_contract, scaled_per_task, telling
from data.snapshot import checked_episodes
from data.store import EpisodeStore, StoreError
from data.types import Horizons
from data.visits import Visits
from data.windows import window_table

Statistics = Literal["joint", "task"]


class Mixture:
    """Episodes of several stores, read as one.

    Args:
        stores: at least one.
        weights: of each store's windows in an epoch; None: as many as it has.
        tell_task: whether a step says which task its episode is of, as the one-hot field `task`.
            An episode's task is that of its metadata, or else of its store's contract; tasks are
            numbered as they appear. A single one is not told.
        statistics: whether all numbers are scaled alike ("joint"), or by the statistics of the task
            that is told ("task").

    Raises:
        ContractError: two stores do not mean the same numbers, or have the field `task` already.
        StoreError: no stores, one without episodes, or one that does not say its task.
        ValueError: not one positive weight for each store, no such kind of statistics, or those of
            each task where not several are told.
    """

    def __init__(
        self,
        stores: Sequence[EpisodeStore],
        *,
        weights: Sequence[float] | None = None,
        tell_task: bool = False,
        statistics: Statistics = "joint",
    ):
        if not stores:
            raise StoreError("a mixture of zero stores: give at least one path")
        for store in stores:
            if not store.n_episodes:
                raise StoreError(f"{store.path}: zero episodes to learn from, record some first")
        if weights is not None:
            _check_weights(weights, len(stores))
        if statistics not in get_args(Statistics):
            raise ValueError(f"statistics is {statistics!r}, choose joint or task")
        self.stores = tuple(store.frozen() for store in stores)
        self.weights = None if weights is None else tuple(weights)
        self.contract = joint_contract(stores)
        self.tasks: tuple[str, ...] = ()
        lengths = [store.lengths_of(np.arange(store.n_episodes)) for store in stores]
        self.episode_ends = np.cumsum(np.concatenate(lengths))
        names = [name for store in stores for name in _tasks(store)] if tell_task else []
        if len(set(names)) > 1:
            self.tasks = tuple(dict.fromkeys(names))
            self._task_of_episode = np.array([self.tasks.index(name) for name in names], np.int64)
            self.contract = telling(self.contract, self.tasks)
        if statistics == "task":
            self.contract = scaled_per_task(self.contract, names)

    @classmethod
    def open(
        cls,
        paths: Sequence[str | Path],
        *,
        weights: Sequence[float] | None = None,
        tell_task: bool = False,
        statistics: Statistics = "joint",
    ) -> Self:
        """The mixture of the stores in these folders; for the rest see the class."""
        if isinstance(paths, str | Path):
            raise ValueError(f"paths is {str(paths)!r}, it must be a list: 'store.paths=[{paths}]'")
        stores = [EpisodeStore.open(path) for path in paths]
        return cls(stores, weights=weights, tell_task=tell_task, statistics=statistics)

    def frozen(self) -> Self:
        """Itself: what is appended to the stores or edited later does not show in it."""
        return self

    @property
    def path(self) -> str:
        """Where the stores are, for messages."""
        return " + ".join(str(store.path) for store in self.stores)

    @property
    def n_episodes(self) -> int:
        """Number of episodes of all stores."""
        return len(self.episode_ends)

    @property
    def n_steps(self) -> int:
        """Number of steps of all stores."""
        return int(self.episode_ends[-1])

    def rows_of(self, episodes: Sequence[int] | np.ndarray) -> np.ndarray:
        """[n] int64 steps of the given episodes, ascending."""
        before = np.cumsum([0, *(store.n_steps for store in self.stores)])
        parts = [
            store.rows_of(own) + first
            for (store, own), first in zip(self._by_store(episodes), before, strict=False)
        ]
        return np.concatenate(parts)

    def lengths_of(self, episodes: Sequence[int] | np.ndarray) -> np.ndarray:
        """[n] int64 steps of each of the given episodes."""
        checked_episodes(self.path, episodes, self.n_episodes)
        return np.diff(self.episode_ends, prepend=0)[np.asarray(episodes, np.int64)]

    def read(self, key: str, *, episodes: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """A field of the given episodes (all by default), for the rest see `EpisodeStore.read`."""
        wanted = np.arange(self.n_episodes) if episodes is None else episodes
        chosen = checked_episodes(self.path, wanted, self.n_episodes)
        if self.tasks and key == TASK:
            return self._one_hot(self.rows_of(chosen))
        field = self.contract.fields[key]
        values = np.empty((len(self.rows_of(chosen)), *field.shape), field.dtype)
        first = 0
        for store, own in self._by_store(chosen):  # One store's share is twice in memory, not all.
            part = store.read(key, episodes=own)
            values[first : first + len(part)] = part
            first += len(part)
        return values

    def read_rows(self, key: str, rows: np.ndarray) -> np.ndarray:
        """The given steps of a field, ascending, from few chunks of the disk (slow)."""
        if self.tasks and key == TASK:
            return self._one_hot(rows)
        if len(rows) and not (rows[0] >= 0 and rows[-1] < self.n_steps):
            raise StoreError(f"rows {rows[0]}..{rows[-1]} of {self.path}, of {self.n_steps} steps")
        parts = _split(rows, [store.n_steps for store in self.stores])
        return np.concatenate(
            [s.read_rows(key, own) for s, own in zip(self.stores, parts, strict=True)]
        )

    def digest(self, *, notes: str | Path | None = None) -> str:
        """SHA-256 of what all stores hold, their order and the tasks that are told.

        Args:
            notes: as of `EpisodeStore.digest`, for each store.
        """
        digest = self._told()
        for store in self.stores:
            digest.update(store.digest(notes=notes).encode())
        return digest.hexdigest()

    def identity(self) -> str:
        """What changes with the content, without reading it; see `EpisodeStore.identity`."""
        digest = self._told()
        for store in self.stores:
            digest.update(store.identity().encode())
        return digest.hexdigest()

    def _told(self) -> "hashlib._Hash":
        """SHA-256, so far of the tasks that are told, which a store's own digest knows not of."""
        digest = hashlib.sha256(str(self.tasks).encode())
        if self.tasks:
            digest.update(self._task_of_episode.astype("<i8").tobytes())
        return digest

    def split(self, fraction: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Episodes to train on and to hold out, each store split by `split_episodes`."""
        before = np.cumsum([0, *(store.n_episodes for store in self.stores)])
        pairs = [split_episodes(store.n_episodes, fraction, seed=seed) for store in self.stores]
        learn = [own + first for (own, _), first in zip(pairs, before, strict=False)]
        hold = [own + first for (_, own), first in zip(pairs, before, strict=False)]
        return np.concatenate(learn), np.concatenate(hold)

    def visits(self, episodes: np.ndarray, horizons: Horizons) -> Visits | None:
        """Which windows of the given episodes an epoch visits; None: each once.

        Raises:
            StoreError: a store has no window.
        """
        if self.weights is None:
            return None
        counts = []
        for store, own in self._by_store(episodes):
            counts.append(len(window_table(np.cumsum(store.lengths_of(own)), horizons)))
            if not counts[-1]:
                raise StoreError(
                    f"{store.path} has a weight but no episode of {horizons.action} steps: lower "
                    f"horizons.action, or leave it out"
                )
        return Visits.weighted(counts, self.weights)

    def _by_store(
        self, episodes: Sequence[int] | np.ndarray
    ) -> list[tuple[EpisodeStore, np.ndarray]]:
        """Each store with those of the given episodes that are its own, by its own count."""
        sizes = [store.n_episodes for store in self.stores]
        chosen = checked_episodes(self.path, episodes, self.n_episodes)
        parts = _split(chosen, sizes)
        return list(zip(self.stores, parts, strict=True))

    def _one_hot(self, rows: np.ndarray) -> np.ndarray:
        """[n, n_tasks] the task of each step."""
        episode = np.searchsorted(self.episode_ends, rows, side="right")
        return np.eye(len(self.tasks), dtype=np.float32)[self._task_of_episode[episode]]


def split(
    demonstrations: Demonstrations, fraction: float, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Episodes to train on and to hold out, of each store of a mixture."""
    if isinstance(demonstrations, Mixture):
        return demonstrations.split(fraction, seed=seed)
    return split_episodes(demonstrations.n_episodes, fraction, seed=seed)


def visits_of(
    demonstrations: Demonstrations, episodes: np.ndarray, horizons: Horizons
) -> Visits | None:
    """Which windows an epoch visits, where that is not each once."""
    if isinstance(demonstrations, Mixture):
        return demonstrations.visits(episodes, horizons)
    return None


def _tasks(store: EpisodeStore) -> list[str]:
    """The task of each episode.

    Raises:
        StoreError: an episode's is unknown.
    """
    tasks = [str(entry.get("task") or store.contract.task) for entry in store.episode_metadata]
    if not all(tasks):
        raise StoreError(
            f"{store.path}: neither the contract nor the metadata of episode {tasks.index('')} "
            f"says what the task is: set tell_task=false, or write the task into the contract"
        )
    return tasks


def _check_weights(weights: Sequence[float], n_stores: int) -> None:
    if not isinstance(weights, Sequence) or not all(_is_number(weight) for weight in weights):
        raise ValueError(
            f"weights is {weights!r}, it must be a list of {n_stores} numbers, one for each store, "
            f"or null: as many as it has"
        )
    if len(weights) != n_stores:
        raise ValueError(f"there are {len(weights)} weights for {n_stores} stores, give one each")
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"weights are {list(weights)}, each must be positive: leave a store out")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _split(numbers: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Of ascending numbers that count through all stores those of each, by its own count."""
    edges = np.cumsum([0, *sizes])
    cuts = np.searchsorted(numbers, edges)
    return [
        numbers[start:stop] - edge for start, stop, edge in zip(cuts, cuts[1:], edges, strict=False)
    ]
