"""The digest of all that a store holds, noted, so that a large store is read for it once.

The digest is of the numbers alone: a copy of a store in other chunks, with another codec that loses
nothing, or without what was hidden, has the same one, and a checkpoint knows it by that. So all
numbers have to be decoded, which takes minutes of a large store; the result is noted in a small
file, in the folder of the decoded caches::

    outputs/cache/digests/3f0c...json      digest, which store, and a seal of both

Why a note is never that of another content. Its name is a digest of what the content follows from:
the episode ends that are visible and, of a store with a commit, that commit's checksums, against
which every chunk was checked while it was read. A store without checksums (format_version 1, or a
foreign one) is known by the sizes, times and inodes of its files. They are looked at before
and after the reading, with the store opened anew in between, and must be the same; files that were
changed within the last minute are not trusted, since the next change might leave the same times. At
a location (`data.location`) times may be coarse or missing, so there only commits are trusted.
Another version of a library that decodes makes another name. A note that is damaged, or that cannot
be written, costs time and nothing else.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import sys
import time
import uuid
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.codec import step_bytes
from data.fields import Fields
from data.layout import open_group
from data.location import files_in
from data.lock import LOCK_FILE
from data.snapshot import identity_of

NOTED_BYTES = 256 * 1024**2  # of numbers, which take about a second; less is not worth a file
SETTLED = 60.0  # [s] after which a file's times tell it from the same file changed once more
DECODERS = ("imagecodecs", "numcodecs", "pillow", "zarr")
NOTE_VERSION = 1
QUIET_INTERVAL = 15.0  # [s] between lines of progress where nobody watches, such as a log file


def content_digest(fields: Fields, notes: str | Path | None) -> str:
    """SHA-256 of names, shapes, episode ends and numbers of fields, from a note where it is there.

    Args:
        fields: of a store, which keeps no file open.
        notes: folder of the decoded caches; None: nothing is noted.

    Raises:
        StoreError: a number cannot be read.
    """
    contract = fields.found.contract
    n_bytes = _n_steps(fields) * sum(step_bytes(field) for field in contract.fields.values())
    if notes is None or n_bytes < NOTED_BYTES:
        return _read(fields, n_bytes)
    before = _state(fields)
    if before is None:
        return _read(fields, n_bytes)
    file = Path(notes) / "digests" / f"{before}.json"
    noted = _noted(file)
    if noted is not None:
        return noted
    if fields.snapshot.commit is None:  # Nothing that was opened before `before` was looked at.
        fields, known = Fields.of(fields.found, open_group(fields.path, "r")), fields
        if not np.array_equal(fields.snapshot.ends, known.snapshot.ends):
            return _read(known, n_bytes)
    digest = _read(fields, n_bytes)
    if _state(fields) == before:
        _note(file, digest, fields.path)
    return digest


def _read(fields: Fields, n_bytes: int) -> str:
    """The digest, of all numbers, with progress where that takes longer than a second."""
    ends = fields.snapshot.ends
    digest = hashlib.sha256(np.ascontiguousarray(ends, "<i8").tobytes())
    if n_bytes >= NOTED_BYTES:
        print(f"checking the store: {n_bytes / 1e9:.1f} GB of {fields.path} are read")
    is_there = sys.stderr is not None  # It may be closed.
    with tqdm(
        total=n_bytes,
        unit="B",
        unit_scale=True,
        desc="checking the store",
        delay=1.0,
        mininterval=0.1 if is_there and sys.stderr.isatty() else QUIET_INTERVAL,
        disable=not is_there,
    ) as bar:
        for name, field in sorted(fields.found.contract.fields.items()):
            digest.update(f"{name} {field.dtype} {field.shape}".encode())
            block_steps, n_steps = fields.reader(name).block_steps, _n_steps(fields)
            for first in range(0, n_steps, block_steps):
                block = fields.read(name, np.arange(first, min(first + block_steps, n_steps)))
                digest.update(np.ascontiguousarray(block).data)
                bar.update(block.nbytes)
    return digest.hexdigest()


def _n_steps(fields: Fields) -> int:
    ends = fields.snapshot.ends
    return int(ends[-1]) if len(ends) else 0


def _state(fields: Fields) -> str | None:
    """What another content would not have, SHA-256; None where nobody can say."""
    snapshot, found = fields.snapshot, fields.found
    versions = [_version(name) for name in DECODERS]
    parts = [NOTE_VERSION, versions, identity_of(snapshot, found.contract, found.sources)]
    state = hashlib.sha256(json.dumps([*parts, snapshot.ends.tolist()]).encode())
    if snapshot.commit is not None:
        return state.hexdigest()
    stamps = _stamps(snapshot.path) if isinstance(snapshot.path, Path) else None
    if stamps is None:
        return None
    state.update(stamps.encode())
    return state.hexdigest()


def _stamps(folder: Path) -> str | None:
    """What changes with any of the files; None where a change may be too recent to tell."""
    lines = []
    for file in files_in(folder):
        if file.name == LOCK_FILE:
            continue
        try:
            status = file.stat()
        except OSError:  # It has just been replaced.
            return None
        if max(status.st_mtime, status.st_ctime) > time.time() - SETTLED:
            return None
        lines.append(f"{status.st_dev} {status.st_ino} {status.st_ctime_ns}\n")
    return "".join(lines)


def _version(name: str) -> str:
    """Of an installed library, "" of one that is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _noted(file: Path) -> str | None:
    """The digest in a note, None where there is no note or it is damaged."""
    try:
        note = json.loads(file.read_bytes())
        digest = note["digest"]
        is_whole = note["seal"] == _seal(file, digest)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest if is_whole else None


def _note(file: Path, digest: str, store: Path | str) -> None:
    """Keep a digest for the next time, if that is possible."""
    note = {"store": str(store), "digest": digest, "seal": _seal(file, digest)}
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):  # A folder that cannot be written, a full disk.
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_text(json.dumps(note, indent=1) + "\n")
            os.replace(draft, file)
        finally:
            draft.unlink(missing_ok=True)


def _seal(file: Path, digest: str) -> str:
    """What only a note of this name with this digest holds."""
    return hashlib.sha256(f"{file.stem} {digest}".encode()).hexdigest()
