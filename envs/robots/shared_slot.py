"""Records passed from one process to another through shared memory, without locks.

One side writes, the other reads; neither ever waits, and neither can be held up by the other's
death. The writer goes round in a few cells, so the newest record and some before it can be read:

    count | number checksum record | number checksum record | ...
            cell 0                   cell 1

A cell's number is 0 while it is being written. A reader copies the cell and takes the copy only if
the number was the wanted one before and after, and the checksum of the copy is right: Python offers
no memory barriers, so on some computers the parts of a cell may become visible in any order.
"""

import zlib

import numpy as np

HEADER = 8  # bytes of the count of all records
CELL_HEADER = 16  # bytes of a cell's number and checksum
# Each attempt in vain means that the writer went all the way round during one copy.
RETRIES = 1000


def slot_bytes(dtype: np.dtype, cells: int) -> int:
    """Memory that a slot of so many cells needs [bytes]."""
    return HEADER + cells * _stride(dtype)


def _stride(dtype: np.dtype) -> int:
    """Bytes from one cell to the next; whole words, so that a number is written at once."""
    return CELL_HEADER + -(-dtype.itemsize // 8) * 8


class _Slot:
    """The memory as words, and where the cells lie in it."""

    def __init__(self, memory: memoryview, dtype: np.dtype, cells: int):
        needed = slot_bytes(dtype, cells)
        if cells < 2 or memory.nbytes < needed:
            raise ValueError(
                f"a slot of {cells} cells in {memory.nbytes} bytes: it needs 2 cells or more, and "
                f"{needed} bytes for them"
            )
        self.dtype, self._cells = dtype, cells
        self._words = memory[:needed].cast("Q")
        self._bytes = memory
        self._stride = _stride(dtype)

    def _cell(self, number: int) -> int:
        """First byte of the cell that record `number`, counted from 1, lies in."""
        return HEADER + (number - 1) % self._cells * self._stride

    def release(self) -> None:
        """Let go of the memory, which can be closed only then."""
        self._words.release()
        self._bytes.release()


class SlotWriter(_Slot):
    """The writing side.

    Args:
        memory: zeros at first, shared with the reader.
        dtype: of a record.
        cells: records that can be read, the newest and those before it.

    Raises:
        ValueError: the memory is too small, or there are fewer than 2 cells.
    """

    def write(self, record: np.ndarray) -> None:
        """Publish a record, a zero-dimensional array of the slot's type."""
        assert record.dtype == self.dtype, f"{record.dtype} is not {self.dtype}"
        number = self._words[0] + 1
        content, at = record.tobytes(), self._cell(number)
        self._words[at // 8] = 0
        self._bytes[at + CELL_HEADER : at + CELL_HEADER + len(content)] = content
        self._words[at // 8 + 1] = _checksum(number, content)
        self._words[at // 8] = number
        self._words[0] = number


class SlotReader(_Slot):
    """The reading side; arguments and errors are the writer's."""

    @property
    def count(self) -> int:
        """Number of the newest record, counted from 1; 0 where there is none yet."""
        return self._words[0]

    def read(self, number: int) -> np.ndarray | None:
        """A copy of record `number`; None if it was overwritten or is not there yet."""
        if number < 1:
            return None
        at = self._cell(number)
        if self._words[at // 8] != number:
            return None
        checksum = self._words[at // 8 + 1]
        content = bytes(self._bytes[at + CELL_HEADER : at + CELL_HEADER + self.dtype.itemsize])
        if self._words[at // 8] != number or checksum != _checksum(number, content):
            return None
        return np.frombuffer(content, self.dtype).reshape(())

    def newest(self) -> np.ndarray | None:
        """A copy of the newest record; None where there is none yet.

        Raises:
            RuntimeError: the memory is corrupt.
        """
        for _ in range(RETRIES):
            number = self.count
            record = self.read(number)
            if record is not None or number == 0:
                return record
        raise RuntimeError(
            f"the newest record could not be read in {RETRIES} attempts: something else writes to "
            f"the shared memory; start the robot again"
        )


def _checksum(number: int, content: bytes) -> int:
    return zlib.crc32(content, number & 0xFFFFFFFF)
