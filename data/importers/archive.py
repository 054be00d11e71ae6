"""Zip archives and npz files of strangers, read without unpacking and without trust.

Refused by name: paths that are absolute or lead out of the archive, links, encrypted members,
members that claim more than MEMBER_BYTES, archives that are cut short or whose checksums are wrong,
arrays of objects (which would have to be unpickled), and anything that is no archive.

Shape legend: `N` rows.
"""

import contextlib
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Self

import numpy as np

from data.importers.arrays import ArraySpec, check_dtype
from data.importers.importer import ImporterError

MEMBER_BYTES = 64 * 1024**3  # of one array of an npz, which is read row by row
CHUNK_BYTES = 1024**3  # of one file that has to be in memory at once
BLOCK_BYTES = 4 * 1024**2
MAX_RATIO = 1500  # Deflate reaches 1032; what claims more is made to exhaust the reader.
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


@contextlib.contextmanager
def open_zip(path: Path, *, member_bytes: int = CHUNK_BYTES) -> Iterator[zipfile.ZipFile]:
    """A zip archive whose members can be read safely.

    Raises:
        ImporterError: it is no archive, or a member is refused.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (*BROKEN, ValueError) as error:
        raise ImporterError(f"{path} is no zip archive ({error}): {_what_it_is(path)}") from error
    with archive:
        seen = set()
        for member in archive.infolist():
            _check_member(path, member, member_bytes)
            if member.filename in seen:
                raise ImporterError(f"{path} holds {member.filename!r} twice: pack it again")
            seen.add(member.filename)
        yield archive


def check_sums(path: Path, archive: zipfile.ZipFile) -> None:
    """Read everything once and raise ImporterError where a checksum is wrong."""
    for member in archive.infolist():
        try:
            with archive.open(member) as stream:
                while stream.read(BLOCK_BYTES):
                    pass
        except (*BROKEN, ValueError) as error:
            raise ImporterError(
                f"{path}: {member.filename} is damaged ({error}): fetch the file again"
            ) from error


@dataclass(frozen=True)
class NpzArray:
    """One array of an npz file.

    Args:
        path: of the file.
        member: name in the archive.
        spec: shape of a row and dtype.
        n_rows: N.
        offset: bytes of its header.
        is_single: whether it is a number of no dimensions.
    """

    path: Path
    member: str
    spec: ArraySpec
    n_rows: int
    offset: int
    is_single: bool = False

    @classmethod
    def of(cls, path: Path, archive: zipfile.ZipFile, member: str) -> Self:
        """What the header of a member says.

        Raises:
            ImporterError: no numpy array, or of objects, or the size is not what the header says.
        """
        where = f"{path}: {member}"
        try:
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                if version != (1, 0):  # Later ones are for headers that no plain array has.
                    raise ValueError(f"format version {version}")
                shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
                offset = stream.tell()
        except MemoryError:
            raise
        except Exception as error:  # numpy's parser of headers raises anything.
            raise ImporterError(
                f"{where} is damaged or no numpy array ({error}): save it with numpy.savez"
            ) from error
        if dtype.hasobject:
            raise ImporterError(
                f"{where} has dtype {dtype}, objects are never unpickled: save plain numbers"
            )
        if is_fortran and len(shape) > 1:
            raise ImporterError(
                f"{where} is in Fortran order, which cannot be read step by step: save "
                f"numpy.ascontiguousarray of it"
            )
        spec = ArraySpec(tuple(shape[1:]), dtype)
        n_rows = int(shape[0]) if shape else 1
        expected = offset + n_rows * spec.step_bytes
        actual = archive.getinfo(member).file_size
        if n_rows < 0 or expected != actual:
            raise ImporterError(
                f"{where} has {actual} bytes, its header of shape {shape} says {expected}: "
                f"fetch the file again"
            )
        return cls(path, member, spec, n_rows, offset, is_single=not shape)


class NpzRows:
    """Rows of an array of an npz file, read in order and never all at once.

    Raises:
        ImporterError: it is not of plain numbers.
    """

    def __init__(self, archive: zipfile.ZipFile, array: NpzArray):
        check_dtype(array.spec.dtype, where=f"{array.path}: {array.member}")
        self._array = array
        self._stream: IO[bytes] = archive.open(array.member)
        self._position = 0  # next row
        self._skip(array.offset)

    def rows(self, first: int, stop: int) -> np.ndarray:
        """[stop - first, ...] rows, none of them before those read last.

        Raises:
            ImporterError: the file is damaged there.
        """
        assert self._position <= first <= stop <= self._array.n_rows
        spec = self._array.spec
        self._skip((first - self._position) * spec.step_bytes)
        values = np.empty((stop - first, *spec.shape), spec.dtype)
        self._fill(values.reshape(-1).view(np.uint8))
        self._position = stop
        return values

    def _skip(self, n_bytes: int) -> None:
        while n_bytes:
            block = self._read(min(n_bytes, BLOCK_BYTES))
            n_bytes -= len(block)

    def _fill(self, target: np.ndarray) -> None:
        start = 0
        while start < len(target):
            block = self._read(min(len(target) - start, BLOCK_BYTES))
            target[start : start + len(block)] = np.frombuffer(block, np.uint8)
            start += len(block)

    def _read(self, n_bytes: int) -> bytes:
        try:
            block = self._stream.read(n_bytes)
        except BROKEN as error:
            raise self._damaged(error) from error
        if not block:
            raise self._damaged("it is cut short")
        return block

    def _damaged(self, reason: object) -> ImporterError:
        return ImporterError(
            f"{self._array.path}: {self._array.member} is damaged ({reason}): fetch it again"
        )


def read_npz(path: Path, *, limit: int = CHUNK_BYTES) -> dict[str, np.ndarray]:
    """All arrays of a small npz file by name.

    Raises:
        ImporterError: the file or an array is refused, or together they are larger than `limit`.
    """
    with open_zip(path, member_bytes=limit) as archive:
        arrays = npz_arrays(path, archive)
        total = sum(array.n_rows * array.spec.step_bytes for array in arrays.values())
        if total > limit:
            raise ImporterError(f"{path} declares {total} bytes, at most {limit} are read at once")
        check_sums(path, archive)
        return {
            name: NpzRows(archive, array).rows(0, array.n_rows) for name, array in arrays.items()
        }


def npz_arrays(path: Path, archive: zipfile.ZipFile) -> dict[str, NpzArray]:
    """Array name -> what it is, for all members of an npz file."""
    arrays = {}
    for member in archive.namelist():
        if not member.endswith(".npy") or "/" in member:
            raise ImporterError(f"{path}: {member!r} is no array of an npz file: take it out")
        arrays[member.removesuffix(".npy")] = NpzArray.of(path, archive, member)
    if not arrays:
        raise ImporterError(f"{path} holds no arrays")
    return arrays


def _check_member(path: Path, member: zipfile.ZipInfo, member_bytes: int) -> None:
    """Raise ImporterError where a member must not be read."""
    name, where = member.filename, f"{path}: {member.filename!r}"
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or name.startswith(("/", "\\")) or (parts and ":" in parts[0]):
        raise ImporterError(f"{where} leads out of the archive: do not trust it")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ImporterError(f"{where} is a link, which is not followed: pack the file itself")
    if member.flag_bits & 1:
        raise ImporterError(f"{where} is encrypted: unpack it first")
    if member.file_size > member_bytes:
        raise ImporterError(
            f"{where} declares {member.file_size / 1e9:.1f} GB, at most {member_bytes / 1e9:.1f} "
            f"GB are read: a decompression bomb, or split it"
        )
    if member.file_size > MAX_RATIO * max(member.compress_size, 1024):
        raise ImporterError(
            f"{where} declares {member.file_size} bytes in {member.compress_size} compressed ones, "
            f"more than {MAX_RATIO} times: a decompression bomb, or a damaged file"
        )


def _what_it_is(path: Path) -> str:
    """Words for a file that is no archive."""
    if path.is_dir():
        return "it is a folder"
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
    except OSError as error:
        return error.strerror or str(error)
    if not start:
        return "it is empty"
    if start[:1] == b"\x80":
        return "it is a pickle, which could run any code and is never loaded: save it with savez"
    if start.startswith(b"\x89HDF"):
        return "it is an HDF5 file: choose format=robomimic, minari or d4rl"
    if start.startswith(b"\x93NUMPY"):
        return "it is a single numpy array: save it with numpy.savez, together with the others"
    return "give one, or fetch the file again"
