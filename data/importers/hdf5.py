"""HDF5 files of strangers, read without trust.

Refused by name and never followed: external and soft links, arrays whose numbers lie in other files
(external storage, virtual arrays), arrays of objects or text where numbers are expected, chunks
that claim more than CHUNK_BYTES, and arrays of which a part was never written, which would read as
zeros.
"""

import contextlib
import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.importers.archive import CHUNK_BYTES
from data.importers.arrays import ArraySpec, check_dtype
from data.importers.importer import ImporterError

if TYPE_CHECKING:
    import h5py

FAULTS = (Exception,)  # A damaged file makes h5py raise anything.
DEPTH = 8  # of groups in groups


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator["h5py.File"]:
    """An HDF5 file, opened for reading.

    Raises:
        ImporterError: it does not exist, is none or is damaged.
        ImportError: h5py is missing.
    """
    h5py = _h5py()
    try:
        file = h5py.File(path, "r", locking="best-effort")
    except FAULTS as error:
        raise ImporterError(f"{path} is no readable HDF5 file: {_reason(path, error)}") from error
    with file:
        yield file


def child(group: "h5py.Group", name: str, *, path: Path) -> "h5py.Group | h5py.Dataset":
    """What lies under a name in a group, if it lies in this very file.

    Raises:
        ImporterError: there is nothing, or a link, or it is damaged.
    """
    h5py = _h5py()
    where = f"{path}: {str(group.name).rstrip('/')}/{name}"
    try:
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise ImporterError(
                f"{where} is a link to {link.path} in the file {link.filename!r}, which is not "
                f"followed: copy what it names into this file"
            )
        if isinstance(link, h5py.SoftLink):
            raise ImporterError(
                f"{where} is a link to {link.path}, which is not followed: copy what it names"
            )
        found = group[name] if link is not None else None
    except FAULTS as error:
        if isinstance(error, ImporterError):
            raise
        raise ImporterError(
            f"{where} is damaged ({_short(error)}): fetch the file again"
        ) from error
    if not isinstance(found, h5py.Group | h5py.Dataset):
        raise ImporterError(f"{where} is missing; there are {', '.join(names(group, path=path))}")
    return found


def names(group: "h5py.Group", *, path: Path) -> list[str]:
    """Names in a group, sorted."""
    try:
        return sorted(str(name) for name in group)
    except FAULTS as error:
        raise ImporterError(
            f"{path}: {group.name} is damaged ({_short(error)}): fetch the file again"
        ) from error


def subgroup(group: "h5py.Group", name: str, *, path: Path) -> "h5py.Group":
    """A group in a group.

    Raises:
        ImporterError: it is missing, a link, or an array.
    """
    found = child(group, name, path=path)
    if not isinstance(found, _h5py().Group):
        raise ImporterError(f"{path}: {found.name} is an array, it must be a group")
    return found


def dataset(group: "h5py.Group", name: str, *, path: Path) -> "h5py.Dataset":
    """An array in a group, checked but for its dtype.

    Raises:
        ImporterError: it is missing, a link, a group, or not wholly in this file.
    """
    found = child(group, name, path=path)
    if not isinstance(found, _h5py().Dataset):
        raise ImporterError(f"{path}: {found.name} is a group, it must be an array")
    try:
        _check_storage(found, f"{path}: {found.name}")
    except FAULTS as error:
        if isinstance(error, ImporterError):
            raise
        raise ImporterError(
            f"{path}: {found.name} is damaged ({_short(error)}): fetch the file again"
        ) from error
    return found


def spec_of(array: "h5py.Dataset", *, path: Path) -> tuple[int, ArraySpec]:
    """Number of steps of an array, and what a step is.

    Raises:
        ImporterError: it has no steps dimension or is not of plain numbers.
    """
    where = f"{path}: {array.name}"
    try:
        shape, dtype = array.shape, np.dtype(array.dtype)
    except FAULTS as error:
        raise ImporterError(f"{where} is damaged ({_short(error)}): fetch it again") from error
    check_dtype(dtype, where=where)
    if not shape:
        raise ImporterError(f"{where} is a single number, it must have one row per step")
    return int(shape[0]), ArraySpec(tuple(int(n) for n in shape[1:]), dtype)


def rows(array: "h5py.Dataset", first: int, stop: int, *, path: Path) -> np.ndarray:
    """[stop - first, ...] rows of an array.

    Raises:
        ImporterError: the file is damaged there.
    """
    try:
        return np.asarray(array[first:stop])
    except FAULTS as error:
        raise ImporterError(
            f"{path}: {array.name} is damaged in rows {first}..{stop - 1} ({_short(error)}): "
            f"fetch the file again"
        ) from error


def leaves(group: "h5py.Group", *, path: Path, depth: int = DEPTH) -> dict[str, "h5py.Dataset"]:
    """All arrays of a group and of the groups in it, by their names joined with "_".

    Raises:
        ImporterError: a link, groups nested too deep, or two arrays of the same joined name.
    """
    if depth == 0:
        raise ImporterError(f"{path}: {group.name} is nested more than {DEPTH} deep")
    h5py = _h5py()
    found = {}
    for name in names(group, path=path):
        part = child(group, name, path=path)
        if isinstance(part, h5py.Group):
            deeper = leaves(part, path=path, depth=depth - 1)
            parts = {f"{name}_{rest}": array for rest, array in deeper.items()}
        else:
            parts = {name: dataset(group, name, path=path)}
        if twice := sorted(set(parts) & set(found)):
            raise ImporterError(f"{path}: {group.name} has the name {twice[0]!r} twice: rename one")
        found |= parts
    return found


def attribute(node: "h5py.Group | h5py.Dataset", name: str, *, path: Path) -> object:
    """An attribute, None where there is none.

    Raises:
        ImporterError: it is damaged.
    """
    try:
        if name not in node.attrs:  # get() would take a damaged one for none.
            return None
        return node.attrs[name]
    except FAULTS as error:
        raise ImporterError(
            f"{path}: the attribute {name} of {node.name} is damaged ({_short(error)})"
        ) from error


def _check_storage(array: "h5py.Dataset", where: str) -> None:
    """Raise ImporterError unless all of an array lies in this file, in pieces that fit memory."""
    h5d, h5t = _h5py().h5d, _h5py().h5t
    if array.dtype.kind in "biuf" and array.id.get_type() != h5t.py_create(array.dtype, logical=1):
        # h5py takes the nearest dtype for numbers with, say, another bias of their exponents.
        raise ImporterError(
            f"{where} holds numbers laid out as those of no machine, the nearest are "
            f"{array.dtype}: the file is damaged, or convert them first"
        )
    if array.external:
        files = ", ".join(repr(str(entry[0])) for entry in array.external)
        raise ImporterError(f"{where} keeps its numbers in {files}, which is not opened")
    if array.is_virtual:
        raise ImporterError(f"{where} is virtual, made of other arrays: copy it into this file")
    if array.chunks is not None:
        n_bytes = math.prod(int(n) for n in array.chunks) * array.dtype.itemsize
        if n_bytes > CHUNK_BYTES:
            raise ImporterError(
                f"{where} has chunks of {n_bytes / 1e9:.1f} GB, at most {CHUNK_BYTES / 1e9:.1f} GB "
                f"are read at once: write it again with smaller ones"
            )
        _check_chunks(array, where)
    elif array.id.get_create_plist().get_layout() == h5d.CONTIGUOUS and array.size:
        n_bytes = array.size * array.id.get_type().get_size()
        is_short = array.id.get_storage_size() != n_bytes and array.dtype.kind != "O"
        if is_short or array.id.get_offset() is None:
            raise ImporterError(
                f"{where} was never written and would read as zeros: write it again"
            )


def _check_chunks(array: "h5py.Dataset", where: str) -> None:
    """Raise ImporterError unless every chunk of an array is there, at its place and its own."""
    grid = [range(0, n, c) for n, c in zip(array.shape, array.chunks or (), strict=True)]
    n_wanted, found = math.prod(len(places) for places in grid), {}

    def note(chunk: "h5py.h5d.StoreInfo") -> None:
        found[tuple(int(n) for n in chunk.chunk_offset)] = (int(chunk.byte_offset), int(chunk.size))

    if n_wanted:
        array.id.chunk_iter(note)
    # An index may list a chunk that is then not found by its place, and reads as zeros.
    n_there = sum(
        place in found and len(array.id.read_direct_chunk(place)[1]) == found[place][1]
        for place in (itertools.product(*grid) if len(found) == n_wanted else found)
    )
    if n_there != n_wanted:
        raise ImporterError(
            f"{where} has {n_there} of {n_wanted} chunks where they belong: a part was never "
            f"written and would read as zeros, or is lost; write it again"
        )
    spans = [(start, start + size) for start, size in found.values()]
    spans.sort()
    if any(end > start for (_, end), (start, _) in itertools.pairwise(spans)):
        raise ImporterError(f"{where} has chunks in the same place of the file: it is damaged")


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be opened, in words."""
    if not path.exists():
        return "it does not exist"
    if path.is_dir():
        return "it is a folder"
    if not os.access(path, os.R_OK):
        return "it may not be read"
    if not path.stat().st_size:
        return "it is empty"
    return f"{_short(error)}: fetch it again, or choose another format=..."


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _h5py():
    """The library, which is an extra."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "reading HDF5 needs h5py: pip install -e '.[import]', or pip install h5py"
        ) from error
    return h5py
