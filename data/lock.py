"""One writer of a store at a time: the second one is told who the first one is.

The lock is a file in the store, `.writer`, that says who writes. On one machine the operating
system guards it (`flock`), and lets go when the writer ends, in whatever way; on file systems that
several machines share, and on those that cannot guard, what the file says counts: a writer of this
machine that has ended, by its process and when that began, is no writer any more.

Within one process a store may be opened for writing several times over.
"""

import contextlib
import getpass
import json
import os
import platform
import sys
import threading
import time
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

from data.layout import StoreError

try:
    import fcntl
except ImportError:  # Windows: what the file says has to do.
    fcntl = None

LOCK_FILE = ".writer"
NO_LINK = getattr(os, "O_NOFOLLOW", 0)


@dataclass(frozen=True)
class Writer:
    """Who writes.

    Args:
        user: name of the account.
        host: name of the machine.
        pid: number of the process.
        started: when the process began, as the system counts it; "" where that is unknown.
        command: its command line.
        since: when it began to write, in local time.
        inode: of the store's folder, to know a copy of the folder from it.
    """

    user: str
    host: str
    pid: int
    started: str
    command: str
    since: str
    inode: int

    @classmethod
    def here(cls, path: Path) -> Self:
        """This process."""
        return cls(
            user=_user(),
            host=platform.node(),
            pid=os.getpid(),
            started=started(os.getpid()),
            command=" ".join(sys.argv)[:200],
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
            inode=path.stat().st_ino,
        )

    @classmethod
    def read(cls, descriptor: int) -> Self | None:
        """Who the open file says writes; None where it does not say."""
        try:
            writer = cls(**json.loads(os.pread(descriptor, 65536, 0)))
        except (ValueError, TypeError):
            return None
        return writer if isinstance(writer.pid, int) and isinstance(writer.host, str) else None

    def __str__(self) -> str:
        return (
            f"{self.user}@{self.host}, process {self.pid} ({self.command or 'unknown command'}), "
            f"since {self.since}"
        )


class WriterLock:
    """The right to write to a store, shared by all who hold it in this process.

    Args:
        path: of the store.
        descriptor: of the open lock file.
    """

    def __init__(self, path: Path, descriptor: int):
        self.path, self._descriptor, self._n_holders = path, descriptor, 0
        self._pid = os.getpid()
        self.turn = threading.RLock()  # Taken for every single change ...
        self.n_changes = 0  # ... and counted, for those who hold the lock as well.

    def bind(self, owner: object) -> "weakref.finalize":
        """Give the lock back when an object is gone; call the result to do so before."""
        return weakref.finalize(owner, self.release)

    def check(self) -> None:
        """Raise StoreError in a forked process, and where the store was taken away meanwhile."""
        if os.getpid() != self._pid:
            raise StoreError(
                f"{self.path} was opened for writing by process {self._pid}, which this one was "
                f"forked from: open it again in here"
            )
        if not self._is_in_place():
            raise StoreError(
                f"{self.path / LOCK_FILE} of this process is gone: the store was moved or removed, "
                f"or somebody unlocked it. Put it back, and open it again"
            )

    def _is_in_place(self) -> bool:
        """Whether the path still leads to the file that is locked."""
        try:
            status = (self.path / LOCK_FILE).stat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == _key(self._descriptor)

    def release(self) -> None:
        """Give back what one call of `acquire` gave; the last one lets others write."""
        if os.getpid() != self._pid:
            return
        with _REGISTRY_TURN:
            self._n_holders -= 1
            if self._n_holders:
                return
            _HELD.pop(_key(self._descriptor), None)
            # Removed while it is guarded, so that nobody else's is.
            with contextlib.suppress(OSError):
                if self._is_in_place():
                    (self.path / LOCK_FILE).unlink()
            os.close(self._descriptor)


_HELD: dict[tuple[int, int], WriterLock] = {}  # device and inode of the lock file -> lock
_REGISTRY_TURN = threading.RLock()


def acquire(path: Path) -> WriterLock:
    """The lock of the store in a folder; a writer's that has ended is taken over.

    Whoever is given it has to `release` it, or to `bind` it to an object.

    Raises:
        StoreError: somebody else writes, or the folder is read-only.
    """
    with _REGISTRY_TURN:
        for _ in range(100):
            lock = _try_to_acquire(path)
            if lock is not None:
                lock._n_holders += 1
                return lock
    raise StoreError(f"{path / LOCK_FILE} is replaced all the time: look who writes to the store")


def writer_of(path: Path) -> Writer | None:
    """Who the lock file of a store says writes to it; it may have ended."""
    try:
        descriptor = os.open(path / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return None
    try:
        return Writer.read(descriptor)
    finally:
        os.close(descriptor)


def _try_to_acquire(path: Path) -> WriterLock | None:
    """The lock, None where its file was replaced meanwhile."""
    file = path / LOCK_FILE
    with contextlib.suppress(FileNotFoundError):
        status = file.stat()
        if (status.st_dev, status.st_ino) in _HELD:
            return _HELD[status.st_dev, status.st_ino]
    try:
        # Not through a link, by which a stranger's store could have another file overwritten.
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | NO_LINK, 0o644)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written to ({error.strerror}): open it with mode='r', or copy it to "
            f"a place of your own"
        ) from error
    try:
        guard = _guard(descriptor)
        if guard == "theirs":
            raise StoreError(_refusal(path, Writer.read(descriptor), is_certain=True))
        try:
            status = file.stat()
        except FileNotFoundError:
            status = None
        if status is None or (status.st_dev, status.st_ino) != _key(descriptor):
            os.close(descriptor)
            return None
        writer = Writer.read(descriptor)
        if writer is not None and _may_live(writer, path, is_guarded=guard == "ours"):
            raise StoreError(_refusal(path, writer, is_certain=writer.host == platform.node()))
        content = json.dumps(asdict(Writer.here(path))).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
    except OSError as error:
        os.close(descriptor)
        raise StoreError(
            f"{path} cannot be written to ({error.strerror}): check the disk"
        ) from error
    except StoreError:
        os.close(descriptor)
        raise
    _HELD[_key(descriptor)] = lock = WriterLock(path, descriptor)
    return lock


def _guard(descriptor: int) -> Literal["ours", "theirs", "none"]:
    """Have the system guard the open file; "none": it cannot, what the file says has to do."""
    if fcntl is None:
        return "none"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "theirs"
    except OSError:
        return "none"
    return "ours"


def _may_live(writer: Writer, path: Path, *, is_guarded: bool) -> bool:
    """Whether a writer may still be at it."""
    if writer.inode != path.stat().st_ino:  # The folder is a copy of what it writes to.
        return False
    if writer.host != platform.node():
        return True
    if is_guarded or writer.pid == os.getpid():  # It has let go, or this would not be ours.
        return False
    return bool(started(writer.pid)) and writer.started == started(writer.pid)


def _refusal(path: Path, writer: Writer | None, *, is_certain: bool) -> str:
    who = "somebody who does not say who" if writer is None else str(writer)
    if is_certain:
        return (
            f"{path} is being written to by {who}: wait until it has ended, or record into another "
            f"store; reading is possible all the time"
        )
    return (
        f"{path} is locked for writing by {who}. Whether it still runs cannot be seen from here: "
        f"look on {writer.host if writer else 'that machine'}, and if it has ended, remove "
        f"{path / LOCK_FILE}"
    )


def started(pid: int) -> str:
    """When a process of this machine began, as the system counts it; "" where there is none."""
    system = Path("/proc")
    try:
        # The name in parentheses may hold anything; the 20th entry after it is the start.
        ticks = (system / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
        boot = (system / "sys/kernel/random/boot_id").read_text().strip()
        return f"{ticks} after boot {boot}"
    except (OSError, IndexError):
        pass
    if (system / "self/stat").exists():
        return ""
    try:  # Not Linux: whether there is one is all that is known.
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "unknown"


def _key(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"user {os.getuid()}"


def _forget() -> None:
    """A forked process holds none of its parent's locks."""
    for lock in _HELD.values():
        with contextlib.suppress(OSError):
            os.close(lock._descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
