"""Windows of demonstrations as batches, from the fastest memory that holds them.

Three places, tried in this order: the device that trains, the host's memory, the disk. The images
stay uint8 and are what the decision is about; everything else is small and always in memory.

Shape legend: `B` windows, `To Tp` observed and predicted steps, `Da` action size.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from data.demonstrations import Demonstrations
from data.goals import Hindsight
from data.store import StoreError
from data.types import Batch, Contract, Horizons
from data.windows import action_rows, gather, observed_rows, window_table

Place = Literal["device", "host", "disk"]


class WindowDataset:
    """All windows of some episodes.

    Args:
        store: where the episodes are: an `EpisodeStore`, or a `Mixture` of several.
        horizons: shape of a window.
        episodes: which episodes, all by default.
        device: where batches are wanted.
        goals: what a later step of an episode gives as the goal of an earlier one; None: no goals.
        memory_fraction: how much of the free memory may be used, 0..1.

    Raises:
        StoreError: no episodes, no windows, or a field that cannot be read (NaN, wrong numbers).
        ContractError: the goals do not fit the store.
    """

    def __init__(
        self,
        store: Demonstrations,
        horizons: Horizons,
        *,
        episodes: Sequence[int] | np.ndarray | None = None,
        device: torch.device | str = "cpu",
        goals: Hindsight | None = None,
        memory_fraction: float = 0.5,
    ):
        chosen = np.arange(store.n_episodes) if episodes is None else np.unique(episodes)
        if not len(chosen):
            raise StoreError(f"{store.path}: zero episodes to learn from, record some first")
        self.store, self.horizons, self.device = store, horizons, torch.device(device)
        self.goals = goals
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
        self.place, reason = choose_place(
            field_bytes(store.contract, len(self._rows)),
            device_free=free_memory(self.device),
            host_free=free_memory(torch.device("cpu")),
            fraction=memory_fraction,
        )
        self._home = self.device if self.place == "device" else torch.device("cpu")
        self._table = table.to(self._home)
        self._fields = {
            name: torch.from_numpy(store.read(name, episodes=chosen)).to(self._home)
            for name, field in store.contract.fields.items()
            if self.place != "disk" or not field.is_image
        }
        self.report = (
            f"{len(table)} windows of {len(chosen)} episodes ({len(self._rows)} steps), "
            f"{self.short_episodes} episodes shorter than {horizons.action} steps left out; "
            f"batches come from {reason}"
        )

    def __len__(self) -> int:
        return len(self._table)

    def arrays(self) -> dict[str, np.ndarray]:
        """Field name -> [n_steps, ...] of these episodes, a goal being what was; no images."""
        fields = self.store.contract.fields
        arrays = {k: v for k, v in self._fields.items() if not fields[k].is_image}
        if self.goals is not None and self.goals.source in arrays:
            arrays[self.goals.field] = self.goals.take(arrays[self.goals.source])
        return {k: v.cpu().numpy() for k, v in arrays.items()}

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The windows of the given indices [B] in 0..len-1, in physical units, on the device.

        Args:
            indices: [B].
            generator: of the goals' times, if there are goals; None: torch's own.
        """
        windows = self._table.select(indices.to(self._home))
        observed = observed_rows(windows, self.horizons.obs)
        acted, is_pad = action_rows(windows, self.horizons.pred, past=self.horizons.past)
        observation = {
            name: self._gather(name, observed).to(self.device)
            for name in self.store.contract.observation
        }
        if self.goals is not None:
            rows = self.goals.rows(windows, generator)[:, None]
            goal = self.goals.take(self._gather(self.goals.source, rows)).to(self.device)
            # One goal at all observed steps, as an environment would give it.
            repeats = (-1, self.horizons.obs, *goal.shape[2:])
            observation[self.goals.field] = goal.expand(repeats)
        return Batch(
            observation=observation,
            action=self._gather("action", acted).to(self.device),
            is_pad=is_pad.to(self.device),
        )

    def _gather(self, name: str, rows: Tensor) -> Tensor:
        if name in self._fields:
            return gather(self._fields[name], rows)
        unique, inverse = np.unique(self._rows[rows.numpy()], return_inverse=True)
        steps = torch.from_numpy(self.store.read_rows(name, unique))
        return gather(steps, torch.from_numpy(inverse.reshape(rows.shape)))


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


def choose_place(
    n_bytes: int, *, device_free: int, host_free: int, fraction: float
) -> tuple[Place, str]:
    """Where `n_bytes` of fields go, and why, in words."""
    needed = f"{n_bytes / 1e9:.3f} GB needed"
    device_limit, host_limit = fraction * device_free, fraction * host_free
    if n_bytes <= device_limit:
        return "device", f"the memory of the device ({needed}, {device_limit / 1e9:.3f} GB allowed)"
    if n_bytes <= host_limit:
        return "host", (
            f"the memory of the host ({needed}; {device_limit / 1e9:.3f} GB allowed on the device, "
            f"{host_limit / 1e9:.3f} GB on the host)"
        )
    return "disk", (
        f"the disk for images, which is slow ({needed}; {device_limit / 1e9:.3f} GB allowed on "
        f"the device, {host_limit / 1e9:.3f} GB on the host)"
    )


def field_bytes(contract: Contract, n_steps: int) -> int:
    """Bytes of all fields of `n_steps` steps in memory."""
    return n_steps * sum(f.size * np.dtype(f.dtype).itemsize for f in contract.fields.values())


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # Linux counts what it would give back from its caches as available.
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
