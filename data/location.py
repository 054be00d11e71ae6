"""Where a store is: a folder, or a location that fsspec knows, which can only be read.

outputs/collect/latest/store.zarr      a folder
file:///data/store.zarr                the same as /data/store.zarr
zip://store.zarr::/data/archive.zip    a folder in an archive, read without unpacking
memory://store.zarr                    the memory of this process
https://...  s3://...                  with what fsspec needs for them
"""

import json
import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit

from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore


def location(path: str | Path) -> Path | str:
    """The folder, or the location as it is."""
    text = str(path)
    if isinstance(path, Path) or "://" not in text:
        return Path(path)
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    return text


def remote_files(place: str) -> list[str]:
    """What is told of each file at a location: name, size, time, checksum, where they are known.

    Where nothing is told, the list is another one every time: nobody can say whether it changed.
    """
    return [place, *(_told(place) or [uuid.uuid4().hex])]


def _told(place: str) -> list[str]:
    from fsspec.core import url_to_fs

    try:
        system, root = url_to_fs(place)
        told = system.find(root, detail=True)
        return [json.dumps(told[name], sort_keys=True, default=str) for name in sorted(told)]
    except Exception:  # Whatever remote file systems make of it.
        return []


def zarr_store(path: Path | str, *, read_only: bool) -> Store:
    """What zarr reads a folder or a location through.

    Raises:
        ImportError: fsspec, or what it needs for the location, is not there.
        ValueError: fsspec knows no such kind of location.
    """
    if isinstance(path, Path):
        return LocalStore(path, read_only=read_only)
    return FsspecStore.from_url(path, read_only=read_only)
