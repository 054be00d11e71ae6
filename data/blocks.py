"""Fields in blocks of a bounded size, for what need not be in memory at once."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.demonstrations import Demonstrations
from data.types import Field

BLOCK_BYTES = 32 * 1024**2


@dataclass(frozen=True)
class Blocks:
    """A field of some steps, read block by block each time it is gone through.

    Args:
        store: where it is.
        name: of the field.
        rows: [n] steps of the store, ascending.
        n_bytes: of a block, about; at least one step is read.
        change: of each block [n, ...]; None: none.
    """

    store: Demonstrations
    name: str
    rows: np.ndarray
    n_bytes: int = BLOCK_BYTES
    change: Callable[[np.ndarray], np.ndarray] | None = None

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.rows)

    def __iter__(self) -> Iterator[np.ndarray]:
        """[n, ...] steps, in order."""
        return self.after(0)

    def after(self, n_steps: int) -> Iterator[np.ndarray]:
        """The same without the first steps."""
        size = max(1, self.n_bytes // max(1, step_bytes(self.store.contract.fields[self.name])))
        for first in range(n_steps, len(self.rows), size):
            block = self.store.read_rows(self.name, self.rows[first : first + size])
            yield block if self.change is None else self.change(block)


Steps = np.ndarray | Blocks  # of a field, [n_steps, ...] or in blocks


def blocks_of(steps: Steps) -> Iterator[np.ndarray]:
    """The blocks of a field; an array is one."""
    return iter([steps] if isinstance(steps, np.ndarray) else steps)


def step_bytes(field: Field) -> int:
    """Bytes of one step of a field."""
    return math.prod(field.shape) * np.dtype(field.dtype).itemsize


def load(
    store: Demonstrations, name: str, episodes: Sequence[int] | np.ndarray, device: torch.device
) -> Tensor:
    """[n_steps, ...] a field of some episodes in the memory of a device."""
    if device.type == "cpu":
        return torch.from_numpy(store.read(name, episodes=episodes))
    blocks = Blocks(store, name, store.rows_of(episodes))
    out: Tensor | None = None
    first = 0
    for block in blocks:  # The host's memory may be smaller than the device's.
        values = torch.from_numpy(block)
        if out is None:
            out = torch.empty((len(blocks), *block.shape[1:]), dtype=values.dtype, device=device)
        out[first : first + len(block)] = values.to(device)
        first += len(block)
    assert out is not None
    return out
