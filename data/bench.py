"""How fast windows are gathered from memory, from a cache and from a store, on one core."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.dataset import WindowDataset
from data.read_bench import HORIZONS, N_RUNS, measure_reading, one_core, repeated
from data.store import EpisodeStore
from data.types import Contract, Field

EPISODE = 1000  # steps, or fewer


@dataclass(frozen=True)
class GatherRates:
    """Rates on one core.

    Args:
        low_dim: windows per second of 2 observations (6 numbers) and 16 actions (2 numbers), from
            memory.
        image: windows per second of 2 images (96 x 96 x 3 bytes) and 16 actions, from memory.
        image_bytes: bytes per second that the image windows amount to.
        image_cached: image windows per second from a decoded cache.
        image_stored: image windows per second from the store itself.
    """

    low_dim: float
    image: float
    image_bytes: float
    image_cached: float
    image_stored: float


def measure_gather(*, seconds: float = 1.0, n_images: int = 6000) -> GatherRates:
    """Rates of `WindowDataset.batch` over random windows, the best of several short runs.

    Args:
        seconds: how long each of the measurements takes, about.
        n_images: images; 6000 are 166 MB, more than the caches of a processor.
    """
    with tempfile.TemporaryDirectory() as folder:
        with one_core():
            low_dim = _rate(_store(Path(folder) / "low_dim.zarr", Field((6,)), 20_000), seconds)
        store = _store(Path(folder) / "images.zarr", Field((96, 96, 3), dtype="uint8"), n_images)
        image = measure_reading(store, Path(folder) / "cache", seconds=seconds)
    n_bytes = image.memory * HORIZONS.obs * 96 * 96 * 3
    return GatherRates(low_dim, image.memory, n_bytes, image.cache, image.store)


def _rate(store: EpisodeStore, seconds: float) -> float:
    """Windows per second from memory, in batches of 256."""
    dataset = WindowDataset(store, HORIZONS)
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(len(dataset), (64, 256), generator=generator)
    return max(repeated(dataset.batch, indices, seconds / N_RUNS) for _ in range(N_RUNS))


def _store(path: Path, field: Field, n_steps: int) -> EpisodeStore:
    contract = Contract(observation={"x": field}, action=Field((2,)), control_dt=0.1)
    generator, n_dims = np.random.default_rng(0), len(field.shape)
    length = min(EPISODE, n_steps)
    with EpisodeStore.create(path, contract) as store:
        # One long episode would do for memory, but windows are then never at an edge.
        for _ in range(n_steps // length):
            rows = generator.integers(0, 255, (length, field.shape[0], *[1] * (n_dims - 1)))
            values = np.broadcast_to(rows, (length, *field.shape)).astype(field.dtype)
            store.append({"x": values, "action": generator.random((length, 2), dtype=np.float32)})
    return EpisodeStore.open(path)
