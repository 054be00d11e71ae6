"""Windows of demonstrations as batches, from the fastest place that holds them (`data.place`).

Shape legend: `B` windows, `To Tp` observed and predicted steps, `Da` action size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from data.blocks import Blocks, Steps, load, step_bytes
from data.demonstrations import Demonstrations
from data.frame_cache import FrameCache, cache_disk
from data.frames import Frames
from data.goals import Hindsight
from data.memory import free_memory
from data.place import Choice, Reading, choose_place
from data.prefetch import Prefetch
from data.snapshot import checked_episodes
from data.store import StoreError
from data.types import Batch, Horizons
from data.windows import action_rows, gather, observed_rows, window_table

HOST = torch.device("cpu")


class WindowDataset:
    """All windows of some episodes.

    Args:
        store: where the episodes are: an `EpisodeStore`, or a `Mixture` of several.
        horizons: shape of a window.
        episodes: which episodes, all by default.
        device: where batches are wanted.
        goals: what a later step of an episode gives as the goal of an earlier one; None: no goals.
        reading: how the episodes are read; None: as `Reading` has it.

    Raises:
        StoreError: no episodes, no windows, or a field that cannot be read (NaN, wrong numbers).
        ContractError: the goals do not fit the store.
        PlaceError: the place that `reading` names is too small.
    """

    def __init__(
        self,
        store: Demonstrations,
        horizons: Horizons,
        *,
        episodes: Sequence[int] | np.ndarray | None = None,
        device: torch.device | str = "cpu",
        goals: Hindsight | None = None,
        reading: Reading | None = None,
    ):
        wanted = np.arange(store.n_episodes) if episodes is None else episodes
        chosen = checked_episodes(store.path, wanted, store.n_episodes)
        if not len(chosen):
            raise StoreError(f"{store.path}: zero episodes to learn from, record some first")
        # Rows below are counted in the episodes that there are now.
        self.store = store = store.frozen()
        self.horizons, self.device = horizons, torch.device(device)
        self.goals, self.reading = goals, Reading() if reading is None else reading
        self.contract = store.contract if goals is None else goals.contract(store.contract)
        self.episodes = chosen
        self._rows = store.rows_of(chosen)
        lengths = np.diff(store.episode_ends, prepend=0)[chosen]
        table = window_table(np.cumsum(lengths), horizons)
        if not len(table):
            raise StoreError(
                f"{store.path}: none of {len(chosen)} episodes has {horizons.action} steps "
                f"(the longest has {lengths.max()}): lower horizons.action or record longer ones"
            )
        self.short_episodes = table.short_episodes
        choice = self._choose()
        self.place = choice.place
        self._home = self.device if self.place == "device" else HOST
        self._table = table.to(self._home)
        self._fields = {
            name: load(store, name, chosen, self._home)
            for name in store.contract.fields
            if name in choice.resident
        }
        self._frames: dict[str, Frames] = {}
        if self.place == "cache":
            self._frames = {
                name: FrameCache.of(str(self.reading.cache), store, name).open()
                for name in store.contract.fields
                if name not in choice.resident
            }
        self.report = (
            f"{len(table)} windows of {len(chosen)} episodes ({len(self._rows)} steps), "
            f"{self.short_episodes} episodes shorter than {horizons.action} steps left out; "
            f"batches come from {choice.reason}"
        )

    def _choose(self) -> Choice:
        fields = self.store.contract.fields
        return choose_place(
            {name: len(self._rows) * step_bytes(field) for name, field in fields.items()},
            pictures={name for name, field in fields.items() if field.is_image},
            reading=self.reading,
            device_free=free_memory(self.device),
            host_free=free_memory(HOST),
            disk=lambda names: cache_disk(str(self.reading.cache), self.store, names),
        )

    def __len__(self) -> int:
        return len(self._table)

    def arrays(self) -> dict[str, Steps]:
        """Field name -> [n_steps, ...] of these episodes, a goal being what was; no images.

        What is not in memory is read in blocks.
        """
        arrays: dict[str, Steps] = {}
        for name, field in self.store.contract.fields.items():
            if field.is_image:
                continue
            if name in self._fields:
                arrays[name] = self._fields[name].cpu().numpy()
            else:
                arrays[name] = Blocks(self.store, name, self._rows)
        if self.goals is not None and (steps := arrays.get(self.goals.source)) is not None:
            if isinstance(steps, Blocks):
                goal: Steps = replace(steps, change=self.goals.take)
            else:
                goal = self.goals.take(self._fields[self.goals.source]).cpu().numpy()
            arrays[self.goals.field] = goal
        return arrays

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The windows of the given indices [B] in 0..len-1, in physical units, on the device.

        Args:
            indices: [B].
            generator: of the goals' times, if there are goals; None: torch's own.
        """
        return moved(self._gathered(indices, generator), self.device)

    def batches(self, asked: Iterator[tuple[Tensor, torch.Generator | None]]) -> Prefetch[Batch]:
        """What `batch` returns for each pair of arguments, in order, to be used in a `with`.

        Where batches do not come from the device's own memory, the next ones are prepared meanwhile
        by threads; they are the same.
        """
        is_resident = self._home == self.device and len(self._fields) == len(
            self.store.contract.fields
        )
        return Prefetch(
            (partial(self._prepared, indices, generator) for indices, generator in asked),
            ahead=0 if is_resident else self.reading.ahead,
            threads=self.reading.threads,
            finish=partial(moved, device=self.device),
        )

    def _prepared(self, indices: Tensor, generator: torch.Generator | None) -> Batch:
        """A batch in memory from which a GPU copies while the host goes on."""
        batch = self._gathered(indices, generator)
        if self.device.type != "cuda" or self._home.type == "cuda":
            return batch
        return Batch(
            observation={name: x.pin_memory() for name, x in batch.observation.items()},
            action=batch.action.pin_memory(),
            is_pad=batch.is_pad.pin_memory(),
        )

    def _gathered(self, indices: Tensor, generator: torch.Generator | None) -> Batch:
        """A batch where the fields are."""
        if self._home.type == "cuda" and indices.device == HOST:
            indices = indices.pin_memory()  # is copied without waiting
        windows = self._table.select(indices.to(self._home, non_blocking=True))
        observed = observed_rows(windows, self.horizons.obs)
        acted, is_pad = action_rows(windows, self.horizons.pred, past=self.horizons.past)
        observation = {
            name: self._gather(name, observed) for name in self.store.contract.observation
        }
        if self.goals is not None:
            rows = self.goals.rows(windows, generator)[:, None]
            goal = self.goals.take(self._gather(self.goals.source, rows))
            # One goal at all observed steps, as an environment would give it.
            repeats = (-1, self.horizons.obs, *goal.shape[2:])
            observation[self.goals.field] = goal.expand(repeats)
        return Batch(observation, self._gather("action", acted), is_pad)

    def _gather(self, name: str, rows: Tensor) -> Tensor:
        """[B, T, ...] the steps of a field at rows [B, T] of these episodes."""
        if name in self._fields:
            return gather(self._fields[name], rows)
        if name in self._frames:
            return self._frames[name].gather(torch.from_numpy(self._rows[rows.numpy()]))
        unique, inverse = np.unique(self._rows[rows.numpy()], return_inverse=True)
        steps = self.store.read_rows(name, unique)
        return torch.from_numpy(steps[inverse.reshape(rows.shape)])


def moved(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device; from pinned memory without waiting for the copy."""
    return Batch(
        observation={k: x.to(device, non_blocking=True) for k, x in batch.observation.items()},
        action=batch.action.to(device, non_blocking=True),
        is_pad=batch.is_pad.to(device, non_blocking=True),
    )


def split_episodes(
    n_episodes: int, holdout_fraction: float, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Episodes to train on and episodes to hold out, both ascending; at least one to train on.

    A fraction above zero holds out at least one episode where there are two.

    Raises:
        ValueError: no episodes, or a fraction outside 0..1 (1 excluded).
    """
    if n_episodes < 1:
        raise ValueError(f"{n_episodes} episodes cannot be split, record some first")
    if not 0 <= holdout_fraction < 1:
        raise ValueError(f"holdout_fraction is {holdout_fraction}, it must be in [0, 1)")
    n_holdout = round(n_episodes * holdout_fraction)
    if holdout_fraction > 0:
        n_holdout = min(max(n_holdout, 1), n_episodes - 1)
    order = np.random.default_rng(seed).permutation(n_episodes)
    return np.sort(order[n_holdout:]), np.sort(order[:n_holdout])
