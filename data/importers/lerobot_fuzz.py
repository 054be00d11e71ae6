"""What the importer makes of damaged LeRobot data sets.

    python -m data.importers.lerobot_fuzz                       # exports of a small store of ours
    python -m data.importers.lerobot_fuzz --n 500 DATA_SET ...  # small data sets of others

Exports of ours have a digest of every file, so each damage is refused or harmless. A data set of
others has no checksum of its frames and, mostly, of its numbers: these are held against the
statistics that it states. In frames, a change that the decoder does not mind goes unnoticed.
"""

import argparse
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data.exporters.lerobot_v3 import Images, LeRobotV3
from data.fuzz import FuzzReport, fuzz
from data.importers.importer import ImportedEpisode
from data.importers.lerobot import LeRobot
from data.importers.lerobot_meta import read_meta
from data.lerobot_layout import field_name
from data.store import EpisodeStore
from data.types import Contract, Field

Content = tuple[Contract, list[ImportedEpisode]]
EXPORTED: tuple[Images, ...] = ("png", "h264_lossless")


def told_of(path: Path) -> dict[str, dict[str, str]]:
    """Answers to all that is asked of a data set of others, that mean nothing."""
    meta = read_meta(path)
    if meta.own is not None:
        return {}
    observed = [k for k, f in meta.features.items() if k.startswith("observation.")]
    vectors = [key for key in observed if not meta.features[key].is_picture]
    told = {field_name(key): {"unit": "1"} for key in vectors}
    return told | {"action": {"unit": "1", "kind": "absolute", "rotation": "none"}}


def content(path: Path, told: dict[str, dict[str, str]]) -> Content:
    """All that is read of a data set, without the words of its tasks."""
    importer = LeRobot(path, fields=told)
    return dataclasses.replace(importer.contract, task=""), list(importer.episodes())


def is_same(a: Content, b: Content) -> bool:
    """Whether two contents have the same contract and numbers."""
    return (
        a[0] == b[0]
        and len(a[1]) == len(b[1])
        and all(
            np.array_equal(x.fields[name], y.fields[name])
            for x, y in zip(a[1], b[1], strict=True)
            for name in x.fields
        )
    )


def fuzz_data_set(path: Path, *, n: int, seed: int) -> FuzzReport:
    """Corrupt copies of a data set n times and read them."""
    told = told_of(path)
    expected = content(path, told)
    return fuzz(
        lambda home: Path(shutil.copytree(path, home / "copy")),
        lambda copy: is_same(content(copy, told), expected),
        n=n,
        seed=seed,
    )


@contextmanager
def exported(images: Images) -> Iterator[Path]:
    """A small data set of ours, for a while."""
    contract = Contract(
        {"state": Field((3,), unit="m"), "top": Field((8, 12, 3), "uint8")},
        Field((2,), unit="m"),
        control_dt=0.1,
    )
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as home:
        store = EpisodeStore.create(Path(home) / "store.zarr", contract)
        for length in (4, 7, 3):
            store.append(
                {
                    "state": rng.normal(size=(length, 3)).astype(np.float32),
                    "top": rng.integers(0, 256, (length, 8, 12, 3), dtype=np.uint8),
                    "action": rng.normal(size=(length, 2)).astype(np.float32),
                }
            )
        LeRobotV3(images=images).export(store, Path(home) / "out")
        yield Path(home) / "out"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data_sets", nargs="*", type=Path)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for path in given.data_sets:
        print(f"{path}: {fuzz_data_set(path, n=given.n, seed=given.seed)}")
    for images in () if given.data_sets else EXPORTED:
        with exported(images) as path:
            print(f"ours, {images}: {fuzz_data_set(path, n=given.n, seed=given.seed)}")


if __name__ == "__main__":
    main()
