"""A field of demonstrations decoded in one file on a local disk, to be mapped instead of decoded.

A cache is a folder named by what it holds (the store's identity, the field and how it is read), so
that a store that changed gets another one, and runs that read the same share it::

    outputs/cache/img_3f0c.../steps.raw       every step of the field, one after the other
                              about.json      what it is, for people
                              lock            held by the run that builds it
    while it is built:        steps.partial, progress.json

It is there when `steps.raw` is, which a rename at the very end makes of `steps.partial`. A build
that was killed goes on where the disk had everything; of two runs the second one waits for the
first. Nothing but time is lost when a cache is deleted while no run uses it.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from tqdm import tqdm

from data.blocks import Blocks, step_bytes
from data.demonstrations import Demonstrations
from data.durable import flush_folder
from data.frames import Frames
from data.place import Disk
from data.store import StoreError

try:
    import fcntl
except ImportError:  # Not a system with such locks.
    fcntl = None

CACHE_VERSION = 1
SAFE_BYTES = 256 * 1024**2  # Written between two moments from which a killed build could go on.


@dataclass(frozen=True)
class FrameCache:
    """Where one field of demonstrations is cached, or would be.

    Args:
        store: the demonstrations.
        name: of the field.
        folder: of this cache.
    """

    store: Demonstrations
    name: str
    folder: Path

    @classmethod
    def of(cls, root: str | Path, store: Demonstrations, name: str) -> "FrameCache":
        """The cache of a field in the folder of all caches."""
        field = store.contract.fields[name]
        key = json.dumps([CACHE_VERSION, store.identity(), name, field.dtype, field.shape])
        digest = hashlib.sha256(key.encode()).hexdigest()[:24]
        return cls(store, name, Path(root) / f"{quote(name, safe='')}_{digest}")

    @property
    def file(self) -> Path:
        """The steps, once all are there."""
        return self.folder / "steps.raw"

    @property
    def n_steps(self) -> int:
        """Steps of all episodes."""
        return int(self.store.episode_ends[-1]) if self.store.n_episodes else 0

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return self.n_steps * step_bytes(self.store.contract.fields[self.name])

    def is_built(self) -> bool:
        """Whether the file is there; one of another size is none."""
        try:
            return self.file.stat().st_size == self.n_bytes
        except (FileNotFoundError, NotADirectoryError):
            return False

    def open(self) -> Frames:
        """The steps, built first where they are not there.

        Raises:
            StoreError: the store is damaged, or the disk is full or cannot be written.
        """
        if not self.is_built():
            try:
                self._build()
            except OSError as error:
                raise StoreError(
                    f"the cache {self.folder} cannot be built: {error.strerror or error}: give "
                    f"reading.cache=FOLDER on another disk, or set reading.place=store"
                ) from error
        field = self.store.contract.fields[self.name]
        return Frames(self.file, self.n_steps, field.shape, np.dtype(field.dtype))

    def _build(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / "lock", what=f"a cache of {self.name} of {self.store.path}"):
            if self.is_built():
                return  # Another run has built it meanwhile.
            partial = self.folder / "steps.partial"
            start = self._safe_steps(partial)
            if not start:  # What is noted there may be of a file that is gone.
                (self.folder / "progress.json").unlink(missing_ok=True)
            with open(partial, "r+b" if start else "w+b") as file:
                _reserve(file.fileno(), self.n_bytes)
                self._write(file.fileno(), start=start)
            self._describe()
            os.replace(partial, self.file)
            (self.folder / "progress.json").unlink(missing_ok=True)
            flush_folder(self.folder)

    def _write(self, descriptor: int, *, start: int) -> None:
        """Decode the steps from `start` on into an open file, up to the disk."""
        size = step_bytes(self.store.contract.fields[self.name])
        blocks = Blocks(self.store, self.name, np.arange(self.n_steps))
        done, unsafe = start, 0
        safe: Future[None] | None = None
        # The disk is the slower one, so it is waited for while the next steps are decoded.
        with (
            ThreadPoolExecutor(1) as keeper,
            tqdm(
                total=self.n_bytes,
                initial=start * size,
                unit="B",
                unit_scale=True,
                desc=f"decoding {self.name}",
                disable=None,
            ) as bar,
        ):
            for block in blocks.after(start):
                content = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
                _write_at(descriptor, content, done * size)
                done, unsafe = done + len(block), unsafe + len(content)
                bar.update(len(content))
                if unsafe >= SAFE_BYTES or done == self.n_steps:
                    if safe is not None:
                        safe.result()
                    safe = keeper.submit(self._keep, descriptor, done)
                    unsafe = 0
            if safe is not None:
                safe.result()

    def _keep(self, descriptor: int, n_steps: int) -> None:
        """Wait until the disk has the first steps, and note it."""
        os.fsync(descriptor)
        _write_text(self.folder / "progress.json", json.dumps({"n_steps": n_steps}))
        # What is written is not read soon; memory is for the run.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def _safe_steps(self, partial: Path) -> int:
        """Steps that an earlier build left for good."""
        try:
            n_steps = json.loads((self.folder / "progress.json").read_text())["n_steps"]
            is_whole = partial.stat().st_size == self.n_bytes  # As it is from the begin.
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0
        is_sound = is_whole and type(n_steps) is int and 0 <= n_steps <= self.n_steps
        return n_steps if is_sound else 0

    def _describe(self) -> None:
        field = self.store.contract.fields[self.name]
        about = {
            "what": "decoded steps of demonstrations; may be deleted while no run reads them",
            "store": str(self.store.path),
            "field": self.name,
            "dtype": field.dtype,
            "shape": [self.n_steps, *field.shape],
        }
        _write_text(self.folder / "about.json", json.dumps(about, indent=1) + "\n")


def cache_disk(root: str | Path, store: Demonstrations, names: Collection[str]) -> Disk:
    """What caches of the named fields ask of the disk of the folder of all caches.

    Raises:
        OSError: something has to be written, and the folder cannot be made or written.
    """
    caches = [FrameCache.of(root, store, name) for name in names]
    missing = [cache for cache in caches if not cache.is_built()]
    if not missing:
        return Disk(0, 0)
    folder = Path(root)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written")
    # What a killed build has reserved is counted as free already.
    reserved = sum(_reserved(cache.folder / "steps.partial") for cache in missing)
    n_bytes = sum(cache.n_bytes for cache in missing)
    return Disk(n_bytes, shutil.disk_usage(folder).free + reserved)


def _reserved(file: Path) -> int:
    try:
        return file.stat().st_blocks * 512
    except (FileNotFoundError, NotADirectoryError):
        return 0


@contextlib.contextmanager
def _locked(file: Path, *, what: str) -> Iterator[None]:
    """Be the only one; a lock ends with its process, however that ends."""
    if fcntl is None:
        raise OSError("this system has no file locks")
    with open(file, "a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another run builds {what}: waiting for it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _reserve(descriptor: int, n_bytes: int) -> None:
    """Make the file that large, so that a full disk is noticed before the work is done."""
    if os.fstat(descriptor).st_size != n_bytes:
        os.ftruncate(descriptor, n_bytes)
    if hasattr(os, "posix_fallocate") and n_bytes:
        os.posix_fallocate(descriptor, 0, n_bytes)


def _write_at(descriptor: int, content: memoryview, start: int) -> None:
    while content:
        n = os.pwrite(descriptor, content, start)
        content, start = content[n:], start + n


def _write_text(file: Path, text: str) -> None:
    """Write a small file, or leave what was there."""
    partial = file.with_name(f".{file.name}.partial")
    with open(partial, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)
