"""How fast windows are gathered from memory, on one core."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.dataset import WindowDataset
from data.store import EpisodeStore
from data.types import Contract, Field, Horizons

N_RUNS = 10  # The best one is the least disturbed by what else the machine does.
HORIZONS = Horizons(obs=2, pred=16, action=8)
EPISODE = 100  # steps


@dataclass(frozen=True)
class GatherRates:
    """Rates on one core, batches of 256.

    Args:
        low_dim: windows per second of 2 observations (6 numbers) and 16 actions (2 numbers).
        image: windows per second of 2 images (96 x 96 x 3 bytes) and 16 actions.
        image_bytes: bytes per second that the image windows amount to.
    """

    low_dim: float
    image: float
    image_bytes: float


def measure_gather(*, seconds: float = 1.0, n_images: int = 6000) -> GatherRates:
    """Rates of `WindowDataset.batch` over random windows, the best of several short runs.

    Args:
        seconds: how long each of the two measurements takes, about.
        n_images: images in memory; 6000 are 166 MB, more than the caches of a processor.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        low_dim = _rate(Field((6,)), 20_000, seconds)
        image = _rate(Field((96, 96, 3), dtype="uint8"), n_images, seconds)
    finally:
        torch.set_num_threads(n_threads)
    return GatherRates(low_dim, image, image * HORIZONS.obs * 96 * 96 * 3)


def _rate(observation: Field, n_steps: int, seconds: float) -> float:
    """Windows per second."""
    contract = Contract(observation={"x": observation}, action=Field((2,)), control_dt=0.1)
    with tempfile.TemporaryDirectory() as folder:
        store = EpisodeStore.create(Path(folder) / "bench.zarr", contract)
        _fill(store, n_steps)
        dataset = WindowDataset(store, HORIZONS)
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(len(dataset), (64, 256), generator=generator)
    return max(_run(dataset, indices, seconds / N_RUNS) for _ in range(N_RUNS))


def _fill(store: EpisodeStore, n_steps: int) -> None:
    generator = np.random.default_rng(0)
    field = store.contract.observation["x"]
    # One long episode would do for memory, but windows are then never at an edge.
    block = generator.integers(0, 255, (EPISODE, *field.shape)).astype(field.dtype)
    for _ in range(n_steps // EPISODE):
        store.append({"x": block, "action": generator.random((EPISODE, 2), dtype=np.float32)})


def _run(dataset: WindowDataset, indices: torch.Tensor, seconds: float) -> float:
    n_windows, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for batch in indices:
            dataset.batch(batch)
        n_windows += indices.numel()
    return n_windows / (time.perf_counter() - start)
