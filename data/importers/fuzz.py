"""What the importers make of damaged files: a small data set of each format, corrupted many times.

    python -m data.importers.fuzz                  # 10,000 corruptions of each format
    python -m data.importers.fuzz --n 500 --only minari

A damaged data set must be refused by an error that names the fault, or read right. Where a format
keeps bytes without any checksum (numbers in HDF5, csv and in the chunks of zarr v2; texts in JSON
and in attributes of HDF5; there also the address of an array that is in one piece) nobody can
notice that one of them is another, nor, in a folder without a list, that a file is missing. An
attempt that read other numbers counts as `undetectable` if it reads right once only such bytes are
restored, and only the fields they belong to had differed; as wrong otherwise.

Each data set is read in another process, as `cadence import` does it, which may crash: that is an
error that names the fault. What led to the errors is counted by its kind and place, and a fault of
our own code that was taken for one of the data set counts as crashed.
"""

import argparse
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.fuzz import FuzzReport, fuzz
from data.importers.apart import Reader
from data.importers.fuzz_apart import PATIENCE_S, account, counted, opened
from data.importers.importer import Importer
from data.importers.samples import SAMPLES, Sample, episodes
from data.types import Contract

if TYPE_CHECKING:
    import h5py

ANY = ""  # field that stands for all of them, and the contract


@dataclass(frozen=True)
class Unprotected:
    """Bytes of a file that no checksum guards.

    Args:
        start: first of them.
        stop: one past the last.
        field: array that they belong to, ANY where that is all.
        kind: what they are.
    """

    start: int
    stop: int
    field: str
    kind: str = "numbers"


@dataclass
class Trial:
    """Reads corrupted copies of a data set and compares them with the undamaged one.

    Args:
        sample: format.
        pristine: the undamaged data set.
    """

    sample: Sample
    pristine: Path
    undetectable: Counter[str] = field(default_factory=Counter)
    reader: Reader = field(default_factory=lambda: Reader(PATIENCE_S))

    def __post_init__(self):
        importer = self._open(self.pristine)
        self._contract, self._fields = importer.contract, _fields(importer)
        self._bytes = _contents(self.pristine)
        self._unprotected = {name: list(unprotected(self.pristine, name)) for name in self._bytes}

    def copy(self, home: Path) -> Path:
        """A copy with all that lies beside it."""
        shutil.copytree(self.pristine.parent, home / "copy")
        return home / "copy" / self.pristine.name

    def _open(self, path: Path) -> Importer:
        return opened(self.sample.open, path, self.reader)

    def attempt(self, path: Path) -> bool:
        """Whether what is read is right, or wrong in a way that nobody could notice."""
        differing = _differing(self._contract, self._fields, self._open(path))
        if not differing:
            return True
        touched, kinds = self._restore(path)
        is_explained = ANY in touched or differing <= touched
        # Were the bytes that no checksum guards the cause? Without their change it must be right.
        if is_explained and not _differing(self._contract, self._fields, self._open(path)):
            self.undetectable[" and ".join(sorted(kinds))] += 1
            return True
        return False

    def _restore(self, path: Path) -> tuple[set[str], set[str]]:
        """Undo in a copy all that nobody could notice; fields that this concerns, and kinds."""
        touched: set[str] = set()
        kinds: set[str] = set()
        now = _contents(path)
        for name, before in self._bytes.items():
            file = path if name == "." else path / name
            ranges = self._unprotected[name]
            is_other = name not in now or now[name] in self._bytes.values()
            if is_other and self.sample.is_unlisted and now.get(name) != before:
                file.write_bytes(before)  # No list says which files there are.
                touched.add(ANY)
                kinds.add("files without a list")
            elif name in now and len(now[name]) == len(before):
                content = bytearray(now[name])
                for part in ranges:
                    if content[part.start : part.stop] != before[part.start : part.stop]:
                        content[part.start : part.stop] = before[part.start : part.stop]
                        touched.add(self.sample.stored.get(part.field, part.field))
                        kinds.add(part.kind)
                file.write_bytes(content)
            elif name in now and sum(r.stop - r.start for r in ranges) == len(before):
                file.write_bytes(before)
                touched |= {self.sample.stored.get(r.field, r.field) for r in ranges}
                kinds |= {r.kind for r in ranges}
        return touched, kinds


@dataclass(frozen=True)
class FormatReport:
    """What became of the corruptions of a format.

    Args:
        report: without those that nobody could notice.
        undetectable: kinds of bytes that nobody guards -> number of corruptions.
        causes: what led to errors -> how often.
    """

    report: FuzzReport
    undetectable: Counter[str]
    causes: Counter[str]

    def __str__(self) -> str:
        undetectable = ", ".join(f"{n} {kind}" for kind, n in self.undetectable.items()) or "0"
        return f"{self.report}; undetectable: {undetectable}\n{account(self.causes)}"


def fuzz_format(name: str, *, n: int, seed: int) -> FormatReport:
    """Corrupt the small data set of a format n times."""
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "pristine").mkdir()
        path = SAMPLES[name].write(Path(home) / "pristine", episodes())
        trial, causes = Trial(SAMPLES[name], path), Counter()
        attempt = counted(trial.attempt, causes)
        report = fuzz(trial.copy, attempt, n=n, seed=seed, folder=Path(home))
        trial.reader.stop()
    report.right -= trial.undetectable.total()
    return FormatReport(report, trial.undetectable, causes)


def unprotected(root: Path, name: str) -> Iterator[Unprotected]:
    """Bytes of a file of a data set that no checksum guards.

    Args:
        root: of the data set, a folder or a file.
        name: of the file within, "." for the root itself.
    """
    file = root if name == "." else root / name
    size = file.stat().st_size
    if file.suffix == ".hdf5":
        yield from _unprotected_hdf5(file)
    elif file.suffix == ".csv" or file.name == "metadata.json":
        yield Unprotected(0, size, ANY, "text")
    elif ".zarr" in root.suffixes and not file.name.startswith("."):
        key = file.parent.name
        yield Unprotected(0, size, ANY if key == "episode_ends" else key)


def _unprotected_hdf5(file: Path) -> Iterator[Unprotected]:
    """Where the numbers of all arrays lie, their addresses, and texts of attributes."""
    import h5py

    found: list[h5py.Dataset | h5py.Group] = []
    content = file.read_bytes()
    with h5py.File(file, "r") as opened:
        opened.visititems(lambda name, node: found.append(node))
        for node in found:
            yield from _texts(node, content)
            if isinstance(node, h5py.Dataset):
                yield from _numbers(node, content)


def _texts(node: "h5py.Dataset | h5py.Group", content: bytes) -> Iterator[Unprotected]:
    """Where the texts of a node's attributes lie."""
    for text in node.attrs.values():
        if isinstance(text, str) and (start := content.find(text.encode())) >= 0:
            yield Unprotected(start, start + len(text.encode()), ANY, "text")


def _numbers(array: "h5py.Dataset", content: bytes) -> Iterator[Unprotected]:
    """Where the numbers of an array lie, and the address of those that are in one piece."""
    import h5py

    name = str(array.name).rsplit("/", 1)[-1]
    if array.chunks is not None:
        for index in range(array.id.get_num_chunks()):
            chunk = array.id.get_chunk_info(index)
            yield Unprotected(chunk.byte_offset, chunk.byte_offset + chunk.size, name)
        return
    start, size = array.id.get_offset(), array.id.get_storage_size()
    if start is not None:
        yield Unprotected(start, start + size, name)
        # The layout message in its header: version 3, class 1 (contiguous), address and size.
        header = h5py.h5o.get_info(array.id).addr  # pyright: ignore[reportAttributeAccessIssue]
        place = content.find(struct.pack("<BBQQ", 3, 1, start, size), header)
        if place >= 0:
            yield Unprotected(place + 2, place + 10, name, "address")


def _fields(importer: Importer) -> list[dict[str, np.ndarray]]:
    return [episode.fields for episode in importer.episodes()]


def _differing(
    contract: Contract, wanted: Sequence[Mapping[str, np.ndarray]], importer: Importer
) -> set[str]:
    """Names of the fields that are read otherwise; ANY if more than numbers is."""
    found = _fields(importer)
    if importer.contract != contract or len(found) != len(wanted):
        return {ANY}
    differing = set()
    for now, before in zip(found, wanted, strict=True):
        if {k: v.shape for k, v in now.items()} != {k: v.shape for k, v in before.items()}:
            return {ANY}
        differing |= {name for name in before if not np.array_equal(now[name], before[name])}
    return differing


def _contents(root: Path) -> dict[str, bytes]:
    """Path within a data set -> content, of all of its files."""
    if root.is_file():
        return {".": root.read_bytes()}
    files = (p for p in root.rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--n", type=int, default=10_000, help="corruptions of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(SAMPLES), help="one format alone")
    chosen = parser.parse_args(arguments)
    is_clean = True
    for name in [chosen.only] if chosen.only else SAMPLES:
        found = fuzz_format(name, n=chosen.n, seed=chosen.seed)
        print(f"{name}: {found}", flush=True)
        is_clean &= found.report.is_clean
    raise SystemExit(0 if is_clean else 1)


if __name__ == "__main__":
    main()
