"""Random steps of a file that holds one after the other, however much larger than memory it is.

The file is mapped, so that what is read often stays in memory and costs a copy only. A mapped page
that is not there is read alone, which makes a picture many small reads in a row; so the kernel is
told first what is needed, and reads it at once. Where maps are limited, the file is read instead.

Shape legend: `B T` windows and their steps.
"""

import math
import mmap
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.memory import may_map


class Frames:
    """Steps of one field in a file; may be used by several threads at once.

    Args:
        file: C-contiguous steps.
        n_steps: in it.
        shape: of one step.
        dtype: of the numbers.
        is_mapped: whether the file is mapped; None: where the process's limits allow it.
    """

    def __init__(
        self,
        file: Path,
        n_steps: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        *,
        is_mapped: bool | None = None,
    ):
        self._shape, self._dtype = shape, dtype
        self._step_bytes = math.prod(shape) * dtype.itemsize
        self._descriptor = os.open(file, os.O_RDONLY)  # Closed with the object.
        n_bytes = n_steps * self._step_bytes
        self._map: mmap.mmap | None = None
        if n_bytes and (may_map(n_bytes) if is_mapped is None else is_mapped):
            self._map = mmap.mmap(self._descriptor, n_bytes, access=mmap.ACCESS_READ)
            if hasattr(mmap, "MADV_RANDOM"):
                self._map.madvise(mmap.MADV_RANDOM)  # Reading ahead would read what nobody wants.
            self._steps = np.frombuffer(self._map, dtype).reshape(n_steps, *shape)

    def gather(self, rows: Tensor) -> Tensor:
        """[B, T, ...] the steps at the given rows [B, T], copied."""
        starts, counts = _runs(rows.numpy().reshape(-1))
        if self._map is None:
            return self._read(starts, counts).reshape(*rows.shape, *self._shape)
        self._announce(starts, counts)
        # By numpy, which copies in one thread: the others are busy with the present batch.
        return torch.from_numpy(self._steps[rows.numpy()])

    def _announce(self, starts: list[int], counts: list[int]) -> None:
        """Let the kernel begin to read."""
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        assert self._map is not None
        for start, count in zip(starts, counts, strict=True):
            first, n_bytes = start * self._step_bytes, count * self._step_bytes
            lead = first % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, first - lead, n_bytes + lead)

    def _read(self, starts: list[int], counts: list[int]) -> Tensor:
        """The runs of steps, one after the other."""
        out = torch.empty(sum(counts), *self._shape, dtype=torch.from_numpy(self._none()).dtype)
        buffer = out.numpy().reshape(-1).view(np.uint8).data
        if hasattr(os, "posix_fadvise"):
            for start, count in zip(starts, counts, strict=True):
                os.posix_fadvise(
                    self._descriptor,
                    start * self._step_bytes,
                    count * self._step_bytes,
                    os.POSIX_FADV_WILLNEED,
                )
        first = 0
        for start, count in zip(starts, counts, strict=True):
            n_bytes = count * self._step_bytes
            self._read_into(buffer[first : first + n_bytes], start * self._step_bytes)
            first += n_bytes
        return out

    def _read_into(self, buffer: memoryview, start: int) -> None:
        while buffer:
            n = os.preadv(self._descriptor, [buffer], start)
            if not n:
                raise OSError(f"the cached file ends at {start} bytes: delete it, and train again")
            buffer, start = buffer[n:], start + n

    def _none(self) -> np.ndarray:
        return np.empty((0, *self._shape), self._dtype)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def _runs(rows: np.ndarray) -> tuple[list[int], list[int]]:
    """First row and length of each run of rows that follow each other."""
    edges = np.flatnonzero(np.diff(rows) != 1) + 1
    first = np.concatenate([[0], edges]) if len(rows) else edges
    counts = np.diff(np.append(first, len(rows)))
    return rows[first].tolist(), counts.tolist()
