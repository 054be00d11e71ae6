"""Has the disk keep for good what was written, so that a power cut takes nothing that was finished.

A killed process loses nothing that it wrote. A machine that goes down loses what the system had not
written to the disk yet, up to half a minute of it, and may leave files of no length.
"""

import errno
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import zarr
from zarr.storage import LocalStore

MOST_AT_ONCE = 16
UNABLE = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)  # of folders, on some systems


def flush(root: Path, files: Iterable[Path]) -> None:
    """Wait until the disk has files, and their names in all folders up to `root`.

    Raises:
        OSError: the disk cannot keep them.
    """
    files = [file for file in dict.fromkeys(files) if file.exists()]  # Zarr leaves empty ones out.
    folders = {folder for file in files for folder in file.parents}
    folders = [folder for folder in folders if folder == root or root in folder.parents]
    # At once, which takes a disk as long as one of them.
    with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
        list(pool.map(_flush_file, files))
        list(pool.map(flush_folder, folders))


def files_of(array: zarr.Array, first: int, stop: int) -> list[Path]:
    """The files of rows first..stop-1 of an array of zarr 3 on a local disk, and of its length."""
    outer = (array.shards or array.chunks)[0]
    numbers = range(first // outer, -(-stop // outer))
    return [folder_of(array) / "zarr.json", *(outer_file(array, number) for number in numbers)]


def folder_of(array: zarr.Array) -> Path:
    """The folder of an array."""
    store = array.store_path.store
    assert isinstance(store, LocalStore)
    return store.root / array.store_path.path


def outer_file(array: zarr.Array, number: int) -> Path:
    """The file of a shard, or of a chunk where there are no shards."""
    return folder_of(array) / array.metadata.encode_chunk_key((number, *(0,) * (array.ndim - 1)))


def flush_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder, where the system can do so."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in UNABLE:
            raise


def _flush_file(file: Path) -> None:
    with open(file, "rb+") as stream:  # Some systems flush only what is open for writing.
        os.fsync(stream.fileno())
