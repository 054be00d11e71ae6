"""How fast random windows of pictures are read from each place, on one core.

    python -m data.read_bench PATH/pusht_cchi_v7_replay.zarr

Reads the published Push-T demonstrations (or any store with pictures 'img'), as they are laid out
and as a store of ours, from memory, from a decoded cache and from the store itself.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numcodecs.blosc
import numpy as np
import torch
import zarr

from data.dataset import WindowDataset
from data.layout import open_group, stored_array
from data.place import Place, Reading
from data.store import EpisodeStore
from data.types import Contract, Field, Horizons

HORIZONS = Horizons(obs=2, pred=16, action=8)
BATCH = 256  # windows, as in training
N_RUNS = 10  # The best one is the least disturbed by what else the machine does.
# Windows per second of two pictures of 96 x 96 px that each place has to give on one core.
BARS = {"memory": 150_000, "cache": 20_000, "store": 3_000}


@dataclass(frozen=True)
class ReadingRates:
    """Random windows per second, on one core.

    Args:
        memory: from the host's memory.
        cache: from a decoded cache that is in the kernel's page cache.
        store: from the store itself, whose files are there too.
    """

    memory: float
    cache: float
    store: float


def measure_reading(store: EpisodeStore, folder: Path, *, seconds: float) -> ReadingRates:
    """Rates of `WindowDataset.batch` over random windows.

    Args:
        store: what is read.
        folder: of the cache.
        seconds: how long each of the measurements takes, about.
    """
    places: tuple[Place, ...] = ("host", "cache", "store")
    with one_core():
        return ReadingRates(*(_rate(store, place, folder, seconds) for place in places))


def _rate(store: EpisodeStore, place: Place, folder: Path, seconds: float) -> float:
    dataset = WindowDataset(store, HORIZONS, reading=Reading(place=place, cache=folder))
    generator = torch.Generator().manual_seed(0)
    batches = torch.randint(len(dataset), (64, BATCH), generator=generator)
    if place != "host":  # The first pass brings files and mapped pages to where they stay.
        for rows in torch.arange(len(dataset)).split(BATCH):
            dataset.batch(rows)
    return max(repeated(dataset.batch, batches, seconds / N_RUNS) for _ in range(N_RUNS))


def repeated(
    call: Callable[[torch.Tensor], object], batches: torch.Tensor, seconds: float
) -> float:
    """Windows per second of calls on batches [n, B], again and again for that time."""
    n_windows, start = 0, time.perf_counter()
    while True:
        for batch in batches:
            call(batch)
            n_windows += len(batch)
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                return n_windows / elapsed


@contextmanager
def one_core() -> Iterator[None]:
    """Let copies and decoders use one core."""
    n_threads, has_threads = torch.get_num_threads(), numcodecs.blosc.use_threads
    torch.set_num_threads(1)
    numcodecs.blosc.use_threads = False
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
        numcodecs.blosc.use_threads = has_threads


def original_rate(path: Path, name: str, *, seconds: float) -> float:
    """Windows per second of two steps of an array, read by zarr as any other slice."""
    array = stored_array(path, open_group(path, "r"), f"data/{name}")
    rng = np.random.default_rng(0)

    def read(windows: torch.Tensor) -> None:
        for start in windows.tolist():
            np.asarray(array[start : start + HORIZONS.obs])

    windows = torch.from_numpy(rng.integers(0, array.shape[0] - HORIZONS.obs, (10_000, 1)))
    with one_core(), zarr.config.set({"threading.max_workers": 1}):
        return repeated(read, windows, seconds)


def as_ours(path: Path, name: str, target: Path) -> EpisodeStore:
    """A store of ours with the pictures and actions of the store in a folder."""
    group = open_group(path, "r")
    shapes = {key: stored_array(path, group, f"data/{key}").shape[1:] for key in (name, "action")}
    contract = Contract(
        observation={name: Field(shapes[name], dtype="uint8")},
        action=Field(shapes["action"]),
        control_dt=0.1,
    )
    source = EpisodeStore.open(path, contract=contract)
    with EpisodeStore.create(target, source.contract) as made:
        for episode in range(source.n_episodes):
            made.append({k: source.read(k, episodes=[episode]) for k in source.contract.fields})
    return EpisodeStore.open(target)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("path", type=Path, help="folder of a store with pictures")
    parser.add_argument("--field", default="img", help="name of the pictures")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    arguments = parser.parse_args()
    original = original_rate(arguments.path, arguments.field, seconds=arguments.seconds)
    with tempfile.TemporaryDirectory() as folder:
        store = as_ours(arguments.path, arguments.field, Path(folder) / "ours.zarr")
        shape = store.contract.observation[arguments.field].shape
        print(
            f"{store.n_steps} pictures of {shape}, random windows of {HORIZONS.obs} steps, one core"
        )
        rates = measure_reading(store, Path(folder) / "cache", seconds=arguments.seconds)
    print(f"{'from':<28}{'windows/s':>12}{'bar':>12}")
    print(f"{'the original layout, by zarr':<28}{original:>12,.0f}")
    for place, bar in BARS.items():
        print(f"{place:<28}{getattr(rates, place):>12,.0f}{bar:>12,}")


if __name__ == "__main__":
    main()
