"""Changes to a store by the process that has the right to: one at a time, whole or not at all.

How an episode becomes visible. Every single write below replaces one file, which is seen either not
at all or whole, also after `kill -9`. The rows of the fields, the metadata and the checksums are
written first, past the last end where nobody looks, and flushed, so that a power cut takes none of
them (`data.durable`); then the attributes are replaced, which is the commit. Whatever an
interrupted writer left past the last end is overwritten by the next episode.
One process writes at a time (`data.lock`); any number may read meanwhile, each what was committed
when it looked last (`refresh` looks again).

Episodes may be gathered and written together, with one commit: an episode of 50 steps takes longer
to be flushed than to be written.
"""

import contextlib
import errno
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data.append import Episode, append_episodes, append_plainly, commit_edit
from data.fields import Fields
from data.layout import StoreError, open_group
from data.lock import WriterLock
from data.opening import Found

GATHERED_BYTES = 64 * 1024**2  # of numbers, at most about; as many as make a file


class Writing:
    """A store that is being written to.

    Args:
        found: the store.
        lock: of the store, which is given back with `close`, or when this object is gone.
    """

    def __init__(self, found: Found, lock: WriterLock):
        self.now = Fields.of(found, found.group)  # What is visible.
        self._lock, self._release = lock, lock.bind(self)
        self._n_changes = lock.n_changes
        self._tails: Mapping[str, np.ndarray] | None = None  # In unfinished chunks, if known.
        self._gathered: list[Episode] | None = None  # None: every episode is written at once.
        self._n_bytes, self._seconds, self._due = 0, 0.0, 0.0

    def close(self) -> None:
        """Let others write, also where what is gathered cannot be written and is dropped."""
        try:
            self.settle()
        except StoreError:
            self._gathered = None
            self._release()
            raise
        self._release()

    def check(self) -> None:
        """Raise StoreError where the right to write was lost."""
        self._lock.check()

    def refresh(self) -> None:
        """Look at the disk again; what is gathered is not lost."""
        self.now = Fields.of(self.now.found, open_group(self.now.path, "a"))
        self._tails, self._n_changes = None, self._lock.n_changes

    def append(self, episode: Episode) -> None:
        """Write an episode, at once unless episodes are gathered.

        Raises:
            StoreError: it cannot be written, or those gathered before; earlier ones are safe.
        """
        with self._lock.turn:
            if self._gathered is None or self.now.snapshot.commit is None:
                self._write([episode])
                return
            self._gathered.append(episode)
            self._n_bytes += sum(values.nbytes for values in episode.fields.values())
            if self._n_bytes >= GATHERED_BYTES or time.monotonic() >= self._due:
                self.settle()

    @contextlib.contextmanager
    def together(self, seconds: float) -> Iterator[None]:
        """Gather what is appended; see `EpisodeStore.together`."""
        if self._gathered is not None:  # The outer one sees to it.
            yield
            return
        self._gathered, self._seconds = [], seconds
        self._due = time.monotonic() + seconds
        try:
            yield
        finally:
            with self._lock.turn:  # Of another thread, an episode may come all the while.
                try:
                    self.settle()
                finally:
                    self._gathered = None

    def settle(self) -> None:
        """Write the episodes that are gathered; those that cannot be written are dropped."""
        with self._lock.turn:
            if not self._gathered:
                return
            self.check()
            episodes, before = self._gathered, len(self.now.snapshot.all_ends)
            self._gathered, self._n_bytes = [], 0
            try:
                self._write(episodes)
            except StoreError:
                raise
            except BaseException:  # Ctrl-C in the middle: what is whole is not to be lost.
                if self._n_changes != self._lock.n_changes:  # Another one, before that was seen.
                    self.refresh()
                if len(self.now.snapshot.all_ends) == before:
                    self._gathered = episodes
                raise
            finally:
                self._due = time.monotonic() + self._seconds

    def _write(self, episodes: Sequence[Episode]) -> None:
        """Write episodes, which become visible together."""

        def write() -> None:
            look = self.now
            if look.snapshot.commit is None:
                (episode,) = episodes
                self.now = look.after(append_plainly(look.snapshot, look.arrays, episode))
                return
            tails = look.unfinished() if self._tails is None else self._tails
            snapshot, self._tails = append_episodes(
                look.snapshot, look.arrays, episodes, tails=tails
            )
            self.now = look.after(snapshot)

        n = len(self.now.snapshot.shown)
        numbers = f" {n}" if len(episodes) == 1 else f"s {n}..{n + len(episodes) - 1}"
        self._change(
            write,
            f"episode{numbers} could not be written to {self.now.path}",
            f"The {n} finished episodes are safe",
        )

    def edit(
        self,
        *,
        hide: Sequence[int] | np.ndarray,
        metadata: Mapping[int, dict],
        show_all: bool,
    ) -> None:
        """Let edits apply; see `EpisodeStore.edit`."""
        self.settle()
        if self.now.snapshot.commit is None:
            raise StoreError(
                f"{self.now.path} has format_version 1 and cannot be edited: copy it into a new "
                f"store, cadence edit {self.now.path} do=copy out=NEW.zarr"
            )

        def write() -> None:
            self.now = self.now.after(
                commit_edit(self.now.snapshot, hide=hide, metadata=metadata, show_all=show_all)
            )

        self._change(write, f"{self.now.path} could not be edited", "Nothing of it has changed")

    def _change(self, write: Callable[[], None], failure: str, rest: str) -> None:
        """Let `write` change the store; where it fails, look at what became of it."""
        with self._lock.turn:
            if self._n_changes != self._lock.n_changes:  # Made through another object like this.
                self.refresh()
            self._lock.n_changes += 1
            try:
                write()
            except OSError as error:
                self.refresh()
                reason = error.strerror or str(error)
                raise StoreError(
                    f"{failure}: {reason}. {rest}: {_fix(self.now.path, error)} and try again"
                ) from error
            except BaseException:
                self.refresh()  # The interrupted write may or may not have been the commit.
                raise
            self._n_changes = self._lock.n_changes


def _fix(path: Path | str, error: OSError) -> str:
    """What to do about a store that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"free some space ({shutil.disk_usage(path).free / 1e6:.0f} MB are left)"
    return "check the disk"
