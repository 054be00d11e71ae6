"""Where a store is: a folder, or a location that fsspec knows, which can only be read.

outputs/collect/latest/store.zarr      a folder
file:///data/store.zarr                the same as /data/store.zarr
zip://store.zarr::/data/archive.zip    a folder in an archive, read without unpacking
memory://store.zarr                    the memory of this process
https://...  s3://...                  with what fsspec needs for them
"""

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

# What file systems tell of a file, "-" and "_" left out, that another content would not have.
CHECKSUMS = [
    "etag",
    "crc",
    "crc32c",
    "md5",
    "md5hash",
    "contentmd5",
    "sha256",
    "checksum",
    "generation",
    "versionid",
]
TIMES = ["mtime", "lastmodified", "modified", "updated", "created"]


def location(path: str | Path) -> Path | str:
    """The folder, or the location as it is."""
    text = str(path)
    if isinstance(path, Path) or "://" not in text:
        return Path(path)
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    return text


def files_in(folder: Path) -> list[Path]:
    """All files in a folder, also behind links to folders, each such folder once."""
    files: list[Path] = []
    seen: set[str] = set()
    for place, names, own in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        names.sort()  # The order in which folders are come upon.
        files += [Path(place, name) for name in own]
    return sorted(file for file in files if file.is_file())


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
    except Exception:  # Each file system raises errors of its own; nothing is known then.
        return []
    if not all(_tells_changes(file) for file in told.values()):
        return []
    return [json.dumps(told[name], sort_keys=True, default=str) for name in sorted(told)]


def _tells_changes(file: Mapping[str, object]) -> bool:
    """Whether what is told of a file would be something else if its content were."""
    known = {name.lower().replace("-", "").replace("_", "") for name, x in file.items() if x}
    return not known.isdisjoint([*CHECKSUMS, *TIMES])


def zarr_store(path: Path | str, *, read_only: bool) -> Store:
    """What zarr reads a folder or a location through.

    Raises:
        ImportError: fsspec, or what it needs for the location, is not there.
        ValueError: fsspec knows no such kind of location.
    """
    if isinstance(path, Path):
        return LocalStore(path, read_only=read_only)
    return FsspecStore.from_url(path, read_only=read_only)
