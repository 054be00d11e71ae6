"""What a data set asks of whatever holds demonstrations: a store, or several as one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from data.types import Contract


class Demonstrations(Protocol):
    """Whole episodes of one contract, laid end to end; see `data.store.EpisodeStore`."""

    @property
    def path(self) -> Path | str:
        """Where they are, for messages."""
        ...

    @property
    def contract(self) -> Contract:
        """Meaning of the fields."""
        ...

    @property
    def episode_ends(self) -> np.ndarray:
        """[n_episodes] int64, exclusive cumulative ends [steps]."""
        ...

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        ...

    def rows_of(self, episodes: Sequence[int] | np.ndarray) -> np.ndarray:
        """[n] int64 steps of the given episodes, ascending."""
        ...

    def lengths_of(self, episodes: Sequence[int] | np.ndarray) -> np.ndarray:
        """[n] int64 steps of each of the given episodes."""
        ...

    def read(self, key: str, *, episodes: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """[n_steps, ...] a field of the given episodes (all by default), in order."""
        ...

    def read_rows(self, key: str, rows: np.ndarray) -> np.ndarray:
        """[n, ...] the given steps of a field, ascending."""
        ...

    def digest(self, *, notes: str | Path | None = None) -> str:
        """SHA-256 of the content, which may be noted in a folder."""
        ...

    def frozen(self) -> Self:
        """The same as it is now, to read, whatever is appended or edited later."""
        ...

    def identity(self) -> str:
        """What changes whenever the content does, told without reading all of it."""
        ...
