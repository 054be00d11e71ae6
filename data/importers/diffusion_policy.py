"""Diffusion Policy's replay buffers: zarr with `data/NAME` and `meta/episode_ends`.

In a folder, or within a .zip that is read without unpacking it. The format says nothing of what its
numbers mean. A chunk that is missing would read as zeros and is refused, unless `missing=zeros`
says that the writer left out chunks of zeros (zarr-python does since version 3).

Shape legend: `L` steps of an episode.
"""

import contextlib
import itertools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import zarr
from zarr.storage import LocalStore, ZipStore

from data.importers.archive import BROKEN, CHUNK_BYTES, open_zip
from data.importers.arrays import ArraySpec, Selection, check_dtype
from data.importers.importer import ImportedEpisode, ImporterError
from data.types import Contract

Missing = Literal["refuse", "zeros"]
Look = Callable[[str], tuple[int, bytes] | None]  # key of a chunk -> its size and first bytes
Keys = Callable[[], set[str]]  # names in data/, hidden ones left out

BLOSC_HEADER = 16
ENDS = "meta/episode_ends"


class DiffusionPolicy:
    """A replay buffer, opened for reading.

    Args:
        path: folder of the zarr group, or a .zip that holds one.
        fields: field name -> entries of `Field` that the user tells.
        take: which of the arrays become fields; None: all.
        control_dt: time between two steps [s], which the format does not say.
        task: what is done, in words.
        root: folder within a .zip, if it holds several buffers.
        missing: what a chunk that is not there means.

    Raises:
        ImporterError: the data set cannot be read.
        ContractError: something must be told.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fields: Mapping[str, Mapping] | None = None,
        take: Mapping[str, object] | Sequence[str] | None = None,
        control_dt: float | None = None,
        task: str = "",
        root: str | None = None,
        missing: Missing = "refuse",
    ):
        if missing not in ("refuse", "zeros"):
            raise ImporterError(f"missing is {missing!r}, choose refuse or zeros")
        self.path, self._root = Path(path), root
        self._missing: Missing = missing
        with self._open() as (group, look, names):
            if "contract" in group.attrs:
                raise ImporterError(
                    f"{self.path} is a store that can be used as it is: store.path={self.path}; "
                    f"cadence edit merges it into another"
                )
            self._ends = self._read_ends(group, look)
            arrays = {}
            for name in sorted(names()):  # zarr's own list leaves out what it cannot read.
                array = self._array(group, f"data/{name}")
                arrays[name] = ArraySpec(tuple(array.shape[1:]), np.dtype(array.dtype))
            self._selection = Selection.of(
                self.path, arrays, take=take, told=fields, control_dt=control_dt, task=task
            )
            for key in self._selection.keys:
                self._check_array(self._array(group, f"data/{key}"), key)

    @property
    def contract(self) -> Contract:
        """Meaning of the fields."""
        return self._selection.contract

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self._ends)

    def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
        """Episodes from number `first` on, in the order of the buffer."""
        starts = np.concatenate([[0], self._ends[:-1]])
        with self._open() as (group, look, _):
            readers = {
                key: ChunkedRows(self.path, self._array(group, f"data/{key}"), look, self._missing)
                for key in self._selection.keys
            }
            for index in range(first, self.n_episodes):
                start, stop = int(starts[index]), int(self._ends[index])
                where = f"{self.path}: episode {index}"
                self._selection.check_size(stop - start, where=where)
                fields = self._selection.episode(
                    lambda key, start=start, stop=stop: readers[key].rows(start, stop), where=where
                )
                yield ImportedEpisode(fields, {"name": f"episode_{index}"})

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[zarr.Group, Look, Keys]]:
        """The group, a look at its chunks as they are stored, and the names of its arrays."""
        if not self.path.exists():
            raise ImporterError(f"{self.path} does not exist: give a folder or a .zip")
        if self.path.is_dir():
            with _zarr_faults(self.path):
                group = zarr.open_group(
                    LocalStore(self.path, read_only=True), mode="r", use_consolidated=False
                )
            yield (
                group,
                lambda key: _look_in_folder(self.path / key),
                lambda: _names_in_folder(self.path / "data"),
            )
            return
        with open_zip(self.path) as archive:
            root = self._root if self._root is not None else _find_root(self.path, archive)
            store = ZipStore(self.path, mode="r")
            try:
                with _zarr_faults(self.path):
                    group = zarr.open_group(store, mode="r", path=root, use_consolidated=False)
                prefix = f"{root}/data/".removeprefix("/")
                yield (
                    group,
                    lambda key: _look_in_zip(archive, key),
                    lambda: _names_in_zip(archive, prefix),
                )
            finally:
                store.close()

    def _array(self, group: zarr.Group, key: str) -> zarr.Array:
        with _zarr_faults(self.path, key):
            array = group[key]
        if not isinstance(array, zarr.Array) or not array.shape:
            raise ImporterError(f"{self.path}: {key} must be an array with a row per step")
        return array

    def _read_ends(self, group: zarr.Group, look: Look) -> np.ndarray:
        """[n_episodes] int64, exclusive cumulative ends [steps]."""
        array = self._array(group, ENDS)
        where = f"{self.path}: {ENDS}"
        if array.ndim != 1 or np.dtype(array.dtype).kind not in "iu":
            raise ImporterError(f"{where} must be whole numbers in a row")
        if not array.shape[0]:
            raise ImporterError(f"{self.path} holds no episodes")
        if array.shape[0] * 8 > CHUNK_BYTES:
            raise ImporterError(f"{where} declares {array.shape[0]} episodes, which is no data set")
        reader = ChunkedRows(self.path, array, look, self._missing)
        ends = reader.rows(0, array.shape[0]).astype(np.int64)
        if np.any(np.diff(ends, prepend=0) <= 0):
            index = int(np.argmax(np.diff(ends, prepend=0) <= 0))
            before = int(ends[index - 1]) if index else 0
            raise ImporterError(
                f"{where}[{index}] is {ends[index]} after {before}: the ends must grow, an "
                f"episode of no steps cannot be imported; fetch the data again"
            )
        return ends

    def _check_array(self, array: zarr.Array, key: str) -> None:
        if array.shape[0] != self._ends[-1]:
            raise ImporterError(
                f"{self.path}: data/{key} has {array.shape[0]} steps, {ENDS} ends at "
                f"{self._ends[-1]}: fetch the data again"
            )


@dataclass
class ChunkedRows:
    """Rows of a zarr array, a chunk at a time; the last chunk is kept for the next episode.

    Args:
        path: of the data set, for messages.
        array: that is read.
        look: at a chunk as it is stored.
        missing: what a chunk that is not there means.
    """

    path: Path
    array: zarr.Array
    look: Look
    missing: Missing
    _index: int = field(default=-1, init=False)
    _kept: np.ndarray = field(default_factory=lambda: np.empty(0), init=False)

    def __post_init__(self):
        check_dtype(np.dtype(self.array.dtype), where=f"{self.path}: {self.array.path}")
        n_bytes = np.dtype(self.array.dtype).itemsize
        for length in self._chunk_shape:
            n_bytes *= int(length)
        if not 0 < n_bytes <= CHUNK_BYTES:
            raise ImporterError(
                f"{self.path}: {self.array.path} has chunks of {n_bytes} bytes, 1..{CHUNK_BYTES} "
                f"are read at once: write it again with smaller ones"
            )
        if any(c > n for c, n in zip(self._chunk_shape[1:], self.array.shape[1:], strict=True)):
            raise ImporterError(
                f"{self.path}: a step of {self.array.path} has the shape {self.array.shape[1:]}, "
                f"its chunks {self._chunk_shape[1:]}: it would be cropped; fetch the data again"
            )
        self._n_bytes = n_bytes

    @property
    def _chunk_shape(self) -> tuple[int, ...]:
        """Of what one file holds."""
        return tuple(self.array.shards or self.array.chunks)

    def rows(self, first: int, stop: int) -> np.ndarray:
        """[stop - first, ...] rows."""
        size = self._chunk_shape[0]
        values = np.empty((stop - first, *self.array.shape[1:]), self.array.dtype)
        for index in range(first // size, (stop - 1) // size + 1):
            low, high = max(first, index * size), min(stop, (index + 1) * size)
            chunk = self._chunk(index)
            values[low - first : high - first] = chunk[low - index * size : high - index * size]
        return values

    def _chunk(self, index: int) -> np.ndarray:
        if index != self._index:
            self._check_chunk(index)
            size = self._chunk_shape[0]
            with _zarr_faults(self.path, f"{self.array.path}, chunk {index}"):
                self._kept = np.asarray(self.array[index * size : (index + 1) * size])
            self._index = index
        return self._kept

    def _check_chunk(self, index: int) -> None:
        """Raise ImporterError where a file is missing, or its size is not that of a chunk."""
        counts = [-(-n // c) for n, c in zip(self.array.shape, self._chunk_shape, strict=True)]
        for rest in itertools.product(*(range(n) for n in counts[1:])):
            key = f"{self.array.path}/{self.array.metadata.encode_chunk_key((index, *rest))}"
            where = f"{self.path}: {key}"
            found = self.look(key)
            if found is None and (self.missing == "refuse" or self.array.fill_value != 0):
                raise ImporterError(
                    f"{where} is missing and would read as {self.array.fill_value}: fetch it "
                    f"again, or give format.missing=zeros if the writer leaves out chunks of zeros"
                )
            if found is not None:
                self._check_stored(*found, where=where)

    def _check_stored(self, size: int, head: bytes, *, where: str) -> None:
        metadata = self.array.metadata
        if metadata.zarr_format != 2 or metadata.filters:
            return
        codec = getattr(metadata.compressor, "codec_id", None)
        if codec is None:
            expected, actual = self._n_bytes, size
        elif codec == "blosc" and len(head) == BLOSC_HEADER:
            n_bytes, _, stored = struct.unpack("<4xIII", head)
            expected, actual = (self._n_bytes, size), (n_bytes, stored)
        else:  # Other codecs hold no more bytes than what they compress, and a little.
            expected, actual = size, min(size, 2 * self._n_bytes + 4096)
        if expected != actual:
            raise ImporterError(
                f"{where} is damaged: it holds {actual} bytes where {expected} belong; fetch it "
                f"again"
            )


@contextlib.contextmanager
def _zarr_faults(path: Path, key: str = "") -> Iterator[None]:
    """Whatever zarr raises about a damaged store, as an ImporterError."""
    try:
        yield
    except (ImporterError, MemoryError):
        raise
    except Exception as error:
        where = f"{path}: {key}" if key else str(path)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ImporterError(
            f"{where} cannot be read as zarr ({reason}): give the folder, or the .zip of one, "
            f"that holds data/ and {ENDS}; if it is the right one, it is damaged"
        ) from error


def _find_root(path: Path, archive: zipfile.ZipFile) -> str:
    """The folder within an archive that holds a replay buffer."""
    marks = (f"{ENDS}/.zarray", f"{ENDS}/zarr.json")
    roots = {
        name.removesuffix(mark).strip("/")
        for name in archive.namelist()
        for mark in marks
        if name == mark or name.endswith(f"/{mark}")
    }
    if not roots:
        raise ImporterError(f"{path} holds no {ENDS}: it is no replay buffer of Diffusion Policy")
    if len(roots) > 1:
        raise ImporterError(
            f"{path} holds several buffers: choose one with format.root=DIR of "
            f"{', '.join(sorted(roots))}"
        )
    return roots.pop()


def _look_in_folder(file: Path) -> tuple[int, bytes] | None:
    try:
        with file.open("rb") as stream:
            return file.stat().st_size, stream.read(BLOSC_HEADER)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ImporterError(f"{file} cannot be read: {error.strerror or error}") from error


def _names_in_folder(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise ImporterError(f"{folder} is missing: fetch the data again")
    return {p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "."}


def _names_in_zip(archive: zipfile.ZipFile, prefix: str) -> set[str]:
    inside = (name.removeprefix(prefix) for name in archive.namelist() if name.startswith(prefix))
    return {name.split("/")[0] for name in inside if "/" in name and name[0] != "."}


def _look_in_zip(archive: zipfile.ZipFile, key: str) -> tuple[int, bytes] | None:
    try:
        member = archive.getinfo(key)
        with archive.open(member) as stream:
            return member.file_size, stream.read(BLOSC_HEADER)
    except KeyError:
        return None
    except (*BROKEN, ValueError) as error:
        raise ImporterError(f"{archive.filename}: {key} is damaged ({error})") from error
