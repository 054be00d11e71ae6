"""Records through shared memory: what is read is what was written, whoever dies meanwhile."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.robots.shared_slot import CELL_HEADER, HEADER, SlotReader, SlotWriter, slot_bytes

SMALL = np.dtype([("value", "i8"), ("picture", "u1", (3,))])  # not a whole number of words
LARGE = np.dtype([("values", "i8", (300,))])

# Writes records of equal numbers, 1 1 1 ..., 2 2 2 ..., as fast as it can, until it is killed.
WRITE_ON = """
import sys
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
import numpy as np
from envs.robots.shared_slot import SlotWriter
memory = SharedMemory(sys.argv[1])
resource_tracker.unregister(memory._name, "shared_memory")  # It is the test's to unlink.
dtype = np.dtype([("values", "i8", (300,))])
writer = SlotWriter(memory.buf, dtype, 2)
record = np.zeros((), dtype)
while True:
    record["values"] += 1
    writer.write(record)
"""


def small(value):
    record = np.zeros((), SMALL)
    record["value"], record["picture"] = value, value % 256
    return record


def pair(cells):
    memory = memoryview(bytearray(slot_bytes(SMALL, cells)))
    return memory, SlotWriter(memory, SMALL, cells), SlotReader(memory, SMALL, cells)


@given(cells=st.integers(2, 5), n=st.integers(0, 20))
def test_the_newest_records_can_be_read_and_older_ones_are_gone(cells, n):
    _, writer, reader = pair(cells)
    for value in range(1, n + 1):
        writer.write(small(value * 1000))
    assert reader.count == n
    for number in range(-1, n + 3):
        record = reader.read(number)
        if max(1, n - cells + 1) <= number <= n:
            assert record is not None
            assert record["value"] == number * 1000
        else:
            assert record is None
    newest = reader.newest()
    assert (newest is None) if n == 0 else (newest is not None and newest["value"] == n * 1000)


def test_a_record_that_was_read_does_not_change_any_more():
    _, writer, reader = pair(2)
    writer.write(small(7))
    record = reader.newest()
    for value in range(5):
        writer.write(small(value))
    assert record is not None
    assert record["value"] == 7


@pytest.mark.parametrize("byte", [0, 8, CELL_HEADER, CELL_HEADER + SMALL.itemsize - 1])
def test_a_cell_that_is_not_whole_is_not_read(byte):
    """Its number, its checksum, and its content from the first to the last byte."""
    memory, writer, reader = pair(2)
    writer.write(small(7))
    assert reader.read(1) is not None
    memory[HEADER + byte] ^= 1
    assert reader.read(1) is None


def test_a_writer_that_died_within_a_record_leaves_the_one_before():
    memory, writer, reader = pair(2)
    writer.write(small(7))
    second = HEADER + CELL_HEADER + 16
    memory[second + CELL_HEADER : second + CELL_HEADER + 5] = b"12345"
    newest = reader.newest()
    assert newest is not None
    assert newest["value"] == 7


def test_corrupt_memory_is_an_error_and_no_endless_loop():
    memory, writer, reader = pair(2)
    writer.write(small(7))
    memory[HEADER + CELL_HEADER] ^= 1
    with pytest.raises(RuntimeError, match="something else writes"):
        reader.newest()


@pytest.mark.parametrize(("cells", "n_bytes"), [(1, 1000), (4, 64)])
def test_too_little_memory_is_refused(cells, n_bytes):
    with pytest.raises(ValueError, match=f"a slot of {cells} cells in {n_bytes} bytes"):
        SlotWriter(memoryview(bytearray(n_bytes)), SMALL, cells)


def test_torn_reads_are_impossible_and_a_killed_writer_blocks_nobody():
    """Two cells of 2.4 kB, written as fast as can be: a copy often meets the writer."""
    memory = SharedMemory(create=True, size=slot_bytes(LARGE, 2))
    assert memory.buf is not None
    command = [sys.executable, "-c", WRITE_ON, memory.name]
    reader = SlotReader(memory.buf, LARGE, 2)
    with subprocess.Popen(command) as writer:
        try:
            deadline = time.monotonic() + 60
            while reader.count == 0 and time.monotonic() < deadline:
                time.sleep(0.01)
            seen = set()
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                number = reader.count
                record = reader.read(number)
                if record is not None:
                    assert (record["values"] == number).all(), "a mixed record"
                    seen.add(number)
        finally:
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()
    assert len(seen) > 10
    newest = reader.newest()
    assert newest is not None
    assert (newest["values"] == reader.count).all()
    reader.release()
    memory.close()
    memory.unlink()
