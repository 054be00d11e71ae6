"""Train on far more data than memory, and compare with training on data in memory.

    python -m data.large_bench                           # 50 GB decoded, 2 GB of memory
    python -m data.large_bench --gigabytes 2 --memory-gigabytes 1 --place store

Makes a store of synthetic pictures, which compress well, and trains a small image policy on it in a
process whose memory is limited (by a cgroup, or else by `ulimit -d`); then on as many pictures as
fit into memory, without a limit. Prints both rates of steps. The folder, by default a temporary
one, needs room for the decoded cache unless --place store is given; what an interrupted benchmark
left in it is gone on with.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.memory import cgroup_folders
from data.store import EpisodeStore
from data.types import Contract, Field

SIZE = 96  # px
EPISODE = 2424  # steps, which fill a file of the store
SQUARE = 16  # px
SMALL_STEPS = 10 * EPISODE  # in memory: 0.67 GB
BAR = 0.9  # of the rate in memory
CONTRACT = Contract(
    observation={
        "camera": Field((SIZE, SIZE, 3), dtype="uint8"),
        "place": Field((2,), unit="px"),
    },
    action=Field((2,), unit="px"),
    control_dt=0.1,
)


@dataclass(frozen=True)
class Trained:
    """A training run, measured.

    Args:
        rate: steps per second.
        peak_memory: bytes of the process, as the kernel counts them.
        report: where the batches came from.
    """

    rate: float
    peak_memory: int
    report: str


def episode(generator: np.random.Generator, n_steps: int) -> dict[str, np.ndarray]:
    """A square that walks over a picture with a gradient; the action is where it goes next."""
    walk = generator.integers(-3, 4, (n_steps + 1, 2)).cumsum(axis=0)
    place = np.abs(walk % (2 * (SIZE - SQUARE)) - (SIZE - SQUARE))  # Reflected at the borders.
    ramp = np.arange(SIZE, dtype=np.uint8) // SQUARE * SQUARE
    background = np.stack(np.broadcast_arrays(ramp[:, None], ramp, ramp[:, None]), axis=-1)
    frames = np.repeat(background[None], n_steps, axis=0)
    colour = generator.integers(128, 256, 3, dtype=np.uint8)
    for frame, (row, column) in zip(frames, place, strict=False):
        frame[row : row + SQUARE, column : column + SQUARE] = colour
    return {
        "camera": frames,
        "place": place[:-1].astype(np.float32),
        "action": place[1:].astype(np.float32),
    }


def make_store(path: Path, n_steps: int) -> None:
    """A store of at least that many steps; one that is there already is added to."""
    opened = EpisodeStore.open(path, mode="a") if path.exists() else None
    with (
        opened or EpisodeStore.create(path, CONTRACT) as store,
        tqdm(total=n_steps, initial=store.n_steps, unit="step", disable=None) as bar,
    ):
        while store.n_steps < n_steps:
            generator = np.random.default_rng(store.n_episodes)
            store.append(episode(generator, min(EPISODE, n_steps)))
            bar.update(min(EPISODE, n_steps))


@dataclass(frozen=True)
class Limit:
    """A limit of a child's memory.

    Args:
        enter: what the child calls.
        peak: tells how much memory it used at most.
        kind: in words.
    """

    enter: Callable[[], object]
    peak: Callable[[], int]
    kind: str


@contextlib.contextmanager
def memory_limit(n_bytes: int) -> Iterator[Limit]:
    """A limit that counts the page cache too where control groups can be made."""
    size = f"{n_bytes / 1e9:g} GB"
    folder = next(cgroup_folders(), Path()) / f"cadence_{os.getpid()}"
    peak = _limited_cgroup(folder, n_bytes)
    if peak is None:
        # Not the address space: torch alone maps more than 2 GB of it.
        yield Limit(
            lambda: resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, n_bytes)),
            lambda: resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
            f"a process of {size} (ulimit -d)",
        )
        return
    try:
        yield Limit(
            lambda: (folder / "cgroup.procs").write_text(str(os.getpid())),
            lambda: int(peak.read_text()),
            f"a cgroup of {size}",
        )
    finally:
        folder.rmdir()


def _limited_cgroup(folder: Path, n_bytes: int) -> Path | None:
    """Make a control group of limited memory; the file that tells its peak, None if that fails."""
    for limit, peak in (
        ("memory.limit_in_bytes", "memory.max_usage_in_bytes"),  # version 1
        ("memory.max", "memory.peak"),
    ):
        with contextlib.suppress(OSError):
            folder.mkdir(exist_ok=True)
            if (folder / limit).exists():
                (folder / limit).write_text(str(n_bytes))
                return folder / peak
    with contextlib.suppress(OSError):
        folder.rmdir()
    return None


def train(
    store: Path,
    out: Path,
    *,
    n_steps: int,
    settings: list[str],
    limit: Limit | None = None,
) -> Trained:
    """Train in a process of its own.

    Raises:
        RuntimeError: it failed; the end of what it printed is in the message.
    """
    command = [
        *(sys.executable, "-m", "policy.train"),
        *(f"store.path={store}", f"out={out}", "encoder=small_cnn", "precision=fp32"),
        *("batch_size=64", "holdout=0", f"steps={n_steps}", f"log_every={n_steps // 4}"),
        *(f"save_every={2 * n_steps}", f"validate_every={2 * n_steps}", *settings),
    ]
    finished = subprocess.run(
        command,
        preexec_fn=None if limit is None else limit.enter,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if finished.returncode:
        raise RuntimeError(
            f"training ended with {finished.returncode}: {finished.stdout.strip()[-1500:]}"
        )
    report = next(line for line in finished.stdout.splitlines() if "batches come from" in line)
    lines = [json.loads(line) for line in (out / "timing.jsonl").read_text().splitlines()]
    first, last = lines[0], lines[-1]  # Without the first quarter, in which all warms up.
    return Trained(
        rate=(last["step"] - first["step"]) / (last["seconds"] - first["seconds"]),
        peak_memory=0 if limit is None else limit.peak(),
        report=report.partition("batches come from ")[2],
    )


def run(arguments: argparse.Namespace, folder: Path) -> None:
    """Make the stores, train on both and print the rates."""
    n_steps = int(arguments.gigabytes * 1e9 / (SIZE * SIZE * 3))
    for name, size in (("large", n_steps), ("small", min(SMALL_STEPS, n_steps))):
        make_store(folder / f"{name}.zarr", size)
    on_disk = sum(f.stat().st_size for f in (folder / "large.zarr").rglob("*") if f.is_file())
    print(f"{arguments.gigabytes:g} GB of pictures, {on_disk / 1e9:.2f} GB on the disk", flush=True)
    threads = [] if arguments.threads is None else [f"threads={arguments.threads}"]

    def in_memory(number: int) -> Trained:
        return train(
            folder / "small.zarr",
            folder / f"small_{number}",
            n_steps=arguments.steps,
            settings=["reading.place=device", *threads],
        )

    before = in_memory(0)
    print(f"in memory: {before.rate:.3f} steps/s; {before.report}", flush=True)
    with memory_limit(int(arguments.memory_gigabytes * 1e9)) as limit:
        large = train(
            folder / "large.zarr",
            folder / "large",
            n_steps=arguments.steps,
            settings=[
                f"reading.place={arguments.place}",
                f"reading.cache={folder / 'cache'}",
                *threads,
            ],
            limit=limit,
        )
        print(
            f"in {limit.kind}: {large.rate:.3f} steps/s, at most {large.peak_memory / 1e9:.2f} GB "
            f"used; {large.report}",
            flush=True,
        )
    after = in_memory(1)  # On both sides, as a machine's speed drifts.
    print(f"in memory: {after.rate:.3f} steps/s", flush=True)
    share = 2 * large.rate / (before.rate + after.rate)
    print(f"{100 * share:.1f} % of the rate in memory (bar: {100 * BAR:.0f} %)")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=50.0, help="of decoded pictures")
    parser.add_argument("--memory-gigabytes", type=float, default=2.0, help="of the process")
    parser.add_argument("--place", default="auto", help="auto, cache or store")
    parser.add_argument("--steps", type=int, default=400, help="of each training, at least 8")
    parser.add_argument("--threads", type=int, default=None, help="of the network; all cores")
    parser.add_argument("--folder", type=Path, default=None, help="kept; default: a temporary one")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        run(arguments, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(arguments, Path(folder))


if __name__ == "__main__":
    main()
