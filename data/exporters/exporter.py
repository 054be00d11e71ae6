"""What every exporter is: a store's episodes in a foreign format, whole or not at all."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data.store import EpisodeStore


class ExporterError(ValueError):
    """A store that cannot be written in a format; the message names the fault and the fix."""


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Args:
        path: of the data set.
        n_episodes: in it.
        n_steps: in it.
        n_bytes: it takes on the disk.
        notes: what a user should know of it, such as how fields are called there.
    """

    path: Path
    n_episodes: int
    n_steps: int
    n_bytes: int
    notes: tuple[str, ...]


class Exporter(Protocol):
    """Writes stores in a foreign format."""

    def export(
        self, store: EpisodeStore, out: Path, *, progress: Callable[[int], object] | None = None
    ) -> ExportReport:
        """Write all episodes of a store to `out`, one in memory at a time.

        Whatever interrupts this leaves nothing under that name.

        Args:
            store: whose episodes they are.
            out: to write to, which must not exist yet.
            progress: called after every episode with the number of those written.
        """
        ...
