"""Rows straight from chunks: those that zarr reads, and damage is never read as numbers."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from google_crc32c import value as crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)
from zarr.storage import LocalStore

from data import shards
from data.shards import ChunkReader

N_ROWS = 23
CHUNK, SHARD = 3, 6


def made(path: Path, values: np.ndarray, **options) -> zarr.Array:
    chunks = (CHUNK, *values.shape[1:])
    array = zarr.create_array(
        LocalStore(path), name="x", shape=values.shape, dtype=values.dtype, chunks=chunks, **options
    )
    array[:] = values
    opened = zarr.open_group(LocalStore(path, read_only=True), mode="r")["x"]
    assert isinstance(opened, zarr.Array)
    return opened


def numbers(dtype: str, shape=(2, 2)) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 200, (N_ROWS, *shape)).astype(dtype)


def reader_of(array: zarr.Array, **options) -> ChunkReader:
    reader = ChunkReader.of(array, **options)
    assert reader is not None
    return reader


CODECS = {
    "none": None,
    "zstd": [ZstdCodec(level=3)],
    "zstd checked": [ZstdCodec(level=3), Crc32cCodec()],
    "blosc": [BloscCodec(cname="lz4", shuffle="shuffle")],
    "gzip": [GzipCodec(level=1)],
    "checked before": [Crc32cCodec(), GzipCodec(level=1)],
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shards", [None, (SHARD, 2, 2)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", ">f8", "int64"])
def test_rows_are_those_that_zarr_reads(tmp_path, codec, shards, dtype):
    values = numbers(dtype)
    array = made(tmp_path, values, compressors=CODECS[codec], shards=shards)
    rows = np.array([0, 1, 1, 5, 6, 12, 22])
    read = reader_of(array).rows(rows)
    np.testing.assert_array_equal(read, np.asarray(array[:])[rows])
    assert read.dtype == values.dtype.newbyteorder("=")
    assert read.flags.writeable


@pytest.mark.parametrize("serializer", [BytesCodec(endian="big"), BytesCodec(endian="little")])
def test_both_orders_of_bytes_are_read(tmp_path, serializer):
    values = numbers("float32")
    array = made(tmp_path, values, serializer=serializer)
    np.testing.assert_array_equal(reader_of(array).rows(np.arange(N_ROWS)), values)


@pytest.mark.parametrize("dtype", ["uint8", ">f4"])
def test_arrays_of_zarr_2_are_read(tmp_path, dtype):
    values = numbers(dtype)
    array = made(tmp_path, values, zarr_format=2)
    np.testing.assert_array_equal(reader_of(array).rows(np.arange(4, N_ROWS)), values[4:])


def test_an_index_at_the_begin_of_a_shard_is_read(tmp_path):
    values = numbers("uint8")
    array = zarr.create_array(
        LocalStore(tmp_path),
        name="x",
        shape=values.shape,
        dtype="uint8",
        chunks=(SHARD, 2, 2),
        compressors=None,
        serializer=ShardingCodec(
            chunk_shape=(CHUNK, 2, 2), codecs=[BytesCodec()], index_location="start"
        ),
        filters=None,
    )
    array[:] = values
    np.testing.assert_array_equal(reader_of(array).rows(np.arange(N_ROWS)), values)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(0, N_ROWS - 1)))
def test_any_ascending_rows(tmp_path_factory, rows):
    values = numbers("uint8")
    array = made(tmp_path_factory.mktemp("rows"), values, shards=(SHARD, 2, 2))
    read = reader_of(array).rows(np.sort(np.array(rows, np.int64)))
    np.testing.assert_array_equal(read, values[sorted(rows)])


def test_what_is_cut_along_other_dimensions_or_coded_otherwise_is_left_to_zarr(tmp_path):
    values = numbers("float32")

    def of(name, **options):
        array = zarr.create_array(
            LocalStore(tmp_path / name), shape=values.shape, dtype="float32", **options
        )
        return ChunkReader.of(array)

    assert of("a", chunks=(CHUNK, 2, 2)) is not None
    assert of("b", chunks=(CHUNK, 1, 2)) is None
    assert of("c", chunks=(CHUNK, 2, 2), filters=[TransposeCodec(order=(0, 2, 1))]) is None
    assert of("d", chunks=(CHUNK, 2, 2), shards=(CHUNK, 4, 2)) is None
    assert of("e", chunks=(CHUNK, 2, 2), zarr_format=2, order="F") is None
    memory = zarr.create_array({}, shape=(4,), dtype="float32", chunks=(2,))
    assert ChunkReader.of(memory) is None
    text = zarr.create_array(LocalStore(tmp_path / "f"), shape=(4,), dtype=str, chunks=(2,))
    assert ChunkReader.of(text) is None


@pytest.mark.parametrize("shards", [None, (SHARD, 2, 2)])
def test_what_was_never_written_is_lost_unless_it_may_be_missing(tmp_path, shards):
    array = zarr.create_array(
        LocalStore(tmp_path),
        shape=(N_ROWS, 2, 2),
        dtype="int32",
        chunks=(CHUNK, 2, 2),
        shards=shards,
        fill_value=7,
    )
    array[3:6] = 1
    rows = np.array([0, 3, 20])
    np.testing.assert_array_equal(
        reader_of(array, is_sparse=True).rows(rows), np.asarray(array[:])[rows]
    )
    for lost in (0, 20):  # Of a shard that is there, and of one that is not.
        with pytest.raises(ValueError, match=f"chunk {lost // CHUNK} is not there"):
            reader_of(array).rows(np.array([lost]))


def test_every_flipped_bit_of_a_checked_shard_is_noticed_or_harmless(tmp_path):
    values = numbers("uint8")
    array = made(
        tmp_path, values, shards=(SHARD, 2, 2), compressors=[ZstdCodec(level=3), Crc32cCodec()]
    )
    file = next(f for f in (tmp_path / "x").rglob("0") if f.is_file() and "c/0/" in str(f))
    content = file.read_bytes()
    n_noticed = 0
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            read = reader_of(array).rows(np.arange(SHARD))
        except (ValueError, OSError):
            n_noticed += 1
        else:
            np.testing.assert_array_equal(read, values[:SHARD])
    assert n_noticed == len(content)


@pytest.mark.parametrize("n_bytes", [0, 3, 20, 60])
def test_a_cut_shard_is_an_error(tmp_path, n_bytes):
    array = made(tmp_path, numbers("uint8"), shards=(SHARD, 2, 2))
    file = next(f for f in (tmp_path / "x").rglob("0") if f.is_file() and "c/0/" in str(f))
    file.write_bytes(file.read_bytes()[:n_bytes])
    with pytest.raises(ValueError, match=r"too short|checksum|are wanted"):
        reader_of(array).rows(np.array([0]))


@pytest.mark.parametrize("place", [(0, 2**40), (2**63, 4), (2**64 - 1, 4), (10**6, 4)])
def test_an_index_that_points_outside_of_its_shard_is_an_error(tmp_path, place):
    array = made(tmp_path, numbers("uint8"), shards=(SHARD, 2, 2))
    file = next(f for f in (tmp_path / "x").rglob("0") if f.is_file() and "c/0/" in str(f))
    content = file.read_bytes()
    index = np.frombuffer(content[-36:-4], "<u8").reshape(2, 2).copy()
    index[1] = place
    checksum = crc32c(index.tobytes()).to_bytes(4, "little")  # Whoever wrote this meant it.
    file.write_bytes(content[:-36] + index.tobytes() + checksum)
    with pytest.raises(ValueError, match=r"bytes at \d+ are wanted of \d+"):
        reader_of(array).rows(np.array([0, 3]))


def test_a_chunk_of_another_size_is_an_error(tmp_path):
    array = made(tmp_path, numbers("uint8"), compressors=None)
    file = next(f for f in (tmp_path / "x").rglob("0") if f.is_file() and "c/0/" in str(f))
    file.write_bytes(b"\0" * 5)
    with pytest.raises(ValueError, match=r"5 numbers are in a chunk of shape \(3, 2, 2\)"):
        reader_of(array).rows(np.array([0]))


def test_each_chunk_that_is_decoded_is_asked_about(tmp_path):
    values, asked = numbers("uint8"), []

    def check(number, chunk, encoded):
        asked.append(number)
        wanted = np.zeros((CHUNK, 2, 2), np.uint8)  # Rows past the end are what was filled in.
        own = values[number * CHUNK : (number + 1) * CHUNK]
        wanted[: len(own)] = own
        np.testing.assert_array_equal(chunk, wanted)
        assert encoded == wanted.tobytes()
        if number == 2:
            raise ValueError("not the one that was written")

    array = made(tmp_path, values, shards=(SHARD, 2, 2), compressors=None)
    reader = reader_of(array, check=check)
    reader.rows(np.array([0, 3, 4, 21, 22]))
    assert asked == [0, 1, 7]
    with pytest.raises(ValueError, match="not the one that was written"):
        reader.rows(np.array([0, 7]))


def test_a_shard_that_is_replaced_stays_what_it_was_to_an_open_reader(tmp_path):
    values = numbers("uint8")
    array = made(tmp_path, values, shards=(SHARD, 2, 2))
    reader = reader_of(array)
    reader.rows(np.array([0]))
    writable = zarr.open_group(LocalStore(tmp_path), mode="r+")["x"]
    assert isinstance(writable, zarr.Array)
    writable[0:SHARD] = 255
    np.testing.assert_array_equal(reader.rows(np.arange(SHARD)), values[:SHARD])
    assert (reader_of(array).rows(np.arange(SHARD)) == 255).all()


def test_few_files_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("data.shards.MOST_OPEN", 2)
    values = numbers("uint8")
    reader = reader_of(made(tmp_path, values, shards=(SHARD, 2, 2)))
    for _ in range(3):
        np.testing.assert_array_equal(reader.rows(np.arange(N_ROWS)), values)
        assert len(reader._shards) == 2


def test_no_limit_of_open_files_is_not_a_limit_of_one(monkeypatch):
    resource = pytest.importorskip("resource")
    for limit, expected in ((resource.RLIM_INFINITY, shards.MOST_OPEN), (80, 10), (4, 1)):
        monkeypatch.setattr(resource, "getrlimit", lambda number, limit=limit: (limit, limit))
        assert shards._most_open() == expected
