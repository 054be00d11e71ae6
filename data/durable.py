"""Has the disk keep for good what was written, so that a power cut takes nothing that was finished.

A killed process loses nothing that it wrote. A machine that goes down loses what the system had not
written to the disk yet, up to half a minute of it, and may leave files of no length.
"""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

import zarr
from zarr.storage import LocalStore

UNABLE = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)  # of folders, on some systems


def flush(root: Path, files: Iterable[Path]) -> None:
    """Wait until the disk has files, and their names in all folders up to `root`.

    Raises:
        OSError: the disk cannot keep them.
    """
    files = list(dict.fromkeys(files))
    for file in files:
        with open(file, "rb+") as stream:  # Windows flushes only what is open for writing.
            os.fsync(stream.fileno())
    folders = {parent for file in files for parent in file.parents}
    for folder in sorted(f for f in folders if f == root or root in f.parents):
        _flush_folder(folder)


def flush_rows(array: zarr.Array, first: int, stop: int) -> None:
    """The same for the rows first..stop-1 of an array on a local disk, and its length."""
    outer = (array.shards or array.chunks)[0]
    root = folder_of(array)
    chunks = (outer_file(array, number) for number in range(first // outer, -(-stop // outer)))
    flush(root, [root / "zarr.json", *chunks] if array.metadata.zarr_format == 3 else chunks)


def folder_of(array: zarr.Array) -> Path:
    """The folder of an array."""
    store = array.store_path.store
    assert isinstance(store, LocalStore)
    return store.root / array.store_path.path


def outer_file(array: zarr.Array, number: int) -> Path:
    """The file of a shard, or of a chunk where there are no shards."""
    return folder_of(array) / array.metadata.encode_chunk_key((number, *(0,) * (array.ndim - 1)))


def _flush_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in UNABLE:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNABLE:
            raise
    finally:
        os.close(descriptor)
