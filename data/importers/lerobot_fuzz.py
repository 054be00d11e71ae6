"""What the importer makes of damaged LeRobot data sets.

    python -m data.importers.lerobot_fuzz                       # exports of a small store of ours
    python -m data.importers.lerobot_fuzz --n 500 DATA_SET ...  # small data sets of others

Exports of ours have a digest of every file, so each damage is refused or harmless. A data set of
others has no checksum of its frames and, mostly, of its numbers: these are held against the
statistics that it states. In frames, a change that the decoder does not mind goes unnoticed.
Some changes of a data set of others nobody can notice, and they are counted apart, not as wrong:

* `within rounding`: vectors alone differ, by less than what rounding may do to their statistics,
  which are sums of float32 numbers;
* `picture of another step`: a table keeps equal pictures once and names them by numbers that no
  checksum guards;
* `frames of a video`: pixels that a decoder makes of a stream without checksums.

Besides these, all of it is right.

Read in another process, with an account of what led to errors; see `data.importers.fuzz_apart`.
"""

import argparse
import dataclasses
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.exporters.lerobot_v3 import Images, LeRobotV3
from data.fuzz import FuzzReport, fuzz
from data.importers.apart import Reader
from data.importers.fuzz_apart import PATIENCE_S, account, counted, opened
from data.importers.importer import ImportedEpisode
from data.importers.lerobot import LeRobot
from data.importers.lerobot_checks import FLOAT32
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


def content(path: Path, told: dict[str, dict[str, str]], reader: Reader) -> Content:
    """All that is read of a data set, without the words of its tasks."""
    importer = opened(partial(LeRobot, fields=told), path, reader)
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


def unnoticed(expected: Content, found: Content, videos: Collection[str] = ()) -> str:
    """The kind of change that nobody can notice, see the top; "" where it is none of these.

    Args:
        expected: of the undamaged data set.
        found: of the damaged one.
        videos: fields that are kept as videos.
    """
    if expected[0] != found[0] or len(expected[1]) != len(found[1]):
        return ""
    kinds = {
        _kind(x.fields[name], y.fields[name], is_video=name in videos)
        for x, y in zip(expected[1], found[1], strict=True)
        for name in x.fields
    }
    return "" if None in kinds else " and ".join(sorted(kind for kind in kinds if kind))


def _kind(expected: np.ndarray, found: np.ndarray, *, is_video: bool) -> str | None:
    """The same of a field [L, ...] of an episode, "" where nothing differs; None: it is noticed."""
    if np.array_equal(expected, found):
        return ""
    if expected.shape != found.shape:
        return None
    if is_video:
        return "frames of a video"
    if expected.dtype == np.uint8:
        is_there = all(any(np.array_equal(a, b) for b in expected) for a in found)
        return "picture of another step" if is_there else None
    a, b = expected.astype(np.float64), found.astype(np.float64)
    size = np.maximum(np.abs(a).max(axis=0), np.abs(b).max(axis=0))
    told = FLOAT32 * (len(a) + 8) * size  # as `check_statistics` takes it
    is_small = bool((np.abs(a - b).sum(axis=0) <= len(a) * told).all())
    return "within rounding" if is_small else None


@dataclass(frozen=True)
class DataSetReport:
    """What became of the corruptions of a data set.

    Args:
        report: without those that nobody could notice.
        undetectable: kind of these -> number.
        causes: what led to errors -> how often.
    """

    report: FuzzReport
    undetectable: Counter[str]
    causes: Counter[str]

    def __str__(self) -> str:
        undetectable = ", ".join(f"{n} {kind}" for kind, n in self.undetectable.items()) or "0"
        return f"{self.report}; undetectable: {undetectable}\n{account(self.causes)}"


def fuzz_data_set(path: Path, *, n: int, seed: int) -> DataSetReport:
    """Corrupt copies of a data set n times and read them."""
    told, reader = told_of(path), Reader(PATIENCE_S)
    causes, undetectable = Counter(), Counter()
    features = read_meta(path).features
    videos = [field_name(key) for key, feature in features.items() if feature.dtype == "video"]
    expected = content(path, told, reader)

    def attempt(copy: Path) -> bool:
        found = content(copy, told, reader)
        if is_same(found, expected):
            return True
        kind = unnoticed(expected, found, videos)
        if kind:
            undetectable[kind] += 1
        return bool(kind)

    report = fuzz(
        lambda home: Path(shutil.copytree(path, home / "copy")),
        counted(attempt, causes),
        n=n,
        seed=seed,
    )
    reader.stop()
    report.right -= undetectable.total()
    return DataSetReport(report, undetectable, causes)


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
    is_clean = True
    for path in given.data_sets:
        is_clean &= _told(str(path), fuzz_data_set(path, n=given.n, seed=given.seed))
    for images in () if given.data_sets else EXPORTED:
        with exported(images) as path:
            is_clean &= _told(f"ours, {images}", fuzz_data_set(path, n=given.n, seed=given.seed))
    raise SystemExit(0 if is_clean else 1)


def _told(name: str, found: DataSetReport) -> bool:
    """Print what became of a data set; whether all was well."""
    print(f"{name}: {found}", flush=True)
    return found.report.is_clean


if __name__ == "__main__":
    main()
