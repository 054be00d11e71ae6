"""The layout of large stores: few files, small chunks, and every number bound to its place."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

import data.reading
from data.codec import CHUNK_BYTES, Jpeg, Lossless, checksum, codec_of, decode_jpeg, encode_jpeg
from data.commit import filled_by_field, rows_checksum
from data.store import EpisodeStore, StoreError
from data.types import Contract, Field

FRAME = (64, 64, 3)
CONTRACT = Contract(
    {"state": Field((3,)), "camera": Field(FRAME, "uint8"), "count": Field((), "int64")},
    Field((3,)),
    0.1,
)
LENGTHS = (1, 30, 7, 64, 12, 90)
SHARD_BYTES = 2**19  # 4 chunks of 10 frames


def episode(index: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    return {
        "state": rng.normal(size=(length, 3)).astype(np.float32),
        "camera": np.broadcast_to(
            rng.integers(0, 256, (length, 1, 1, 3), dtype=np.uint8), (length, *FRAME)
        ),
        "count": np.zeros(length, np.int64),
        "action": rng.normal(size=(length, 3)).astype(np.float32),
    }


def expected(name: str) -> np.ndarray:
    return np.concatenate([episode(i, length)[name] for i, length in enumerate(LENGTHS)])


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("shards") / "store.zarr"
    with EpisodeStore.create(path, CONTRACT, shard_bytes=SHARD_BYTES) as store:
        for index, length in enumerate(LENGTHS):
            store.append(episode(index, length), seed=index)
    return path


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "store.zarr"))


def array_of(path: Path, name: str) -> zarr.Array:
    array = zarr.open_group(path, mode="r")[f"data/{name}"]
    assert isinstance(array, zarr.Array)
    return array


def test_chunks_are_small_and_shards_hold_many(original):
    camera = array_of(original, "camera")
    assert camera.chunks == (CHUNK_BYTES // (64 * 64 * 3), *FRAME)
    assert camera.shards is not None
    assert camera.shards == (4 * camera.chunks[0], *FRAME)
    shards = [file for file in (original / "data/camera/c").rglob("*") if file.is_file()]
    assert len(shards) == -(-sum(LENGTHS) // camera.shards[0])


def test_zarr_itself_reads_what_we_wrote(original):
    for name in CONTRACT.fields:
        np.testing.assert_array_equal(np.asarray(array_of(original, name)[:]), expected(name))


@pytest.mark.parametrize("is_fast", [True, False])
def test_random_rows_are_read_with_and_without_zarr(original, monkeypatch, is_fast):
    if not is_fast:
        monkeypatch.setattr(data.reading.ChunkReader, "of", lambda *_, **__: None)
    store, rng = EpisodeStore.open(original), np.random.default_rng(0)
    for name in CONTRACT.fields:
        everything = expected(name)
        np.testing.assert_array_equal(store.read(name), everything)
        for size in (1, 2, 20):
            rows = np.sort(rng.choice(store.n_steps, size, replace=False))
            np.testing.assert_array_equal(store.read_rows(name, rows), everything[rows])
        np.testing.assert_array_equal(
            store.read(name, episodes=[1, 4]), everything[[*range(1, 31), *range(102, 114)]]
        )
        assert store.read_rows(name, np.array([], np.int64)).shape == (0, *everything.shape[1:])


def test_an_append_keeps_the_bytes_of_full_chunks(path):
    file = path / "data/camera/c/5/0/0/0"  # the last one, of rows 200..203 and room for 36 more
    before = file.read_bytes()
    with EpisodeStore.open(path, mode="a") as store:
        store.append(episode(9, 10))
        grown = file.read_bytes()
        store.append(episode(10, 10))
    index_bytes = 4 * 16 + 4
    assert 0 < len(before) - index_bytes < len(grown) - index_bytes
    # The first chunk became full by the first append, and stays by the second.
    first = int.from_bytes(grown[-index_bytes + 8 : -index_bytes + 16], "little")
    assert file.read_bytes()[:first] == grown[:first]


def test_swapped_shards_of_one_field_are_noticed(path):
    files = [path / f"data/camera/c/{shard}/0/0/0" for shard in (0, 1)]
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, reversed(contents), strict=True):
        file.write_bytes(content)
    with pytest.raises(StoreError, match=r"damaged in steps .* \(chunk 0 is not the one"):
        EpisodeStore.open(path).read("camera")


def test_swapped_fields_of_one_shape_are_noticed(path):
    shutil.move(path / "data/state", path / "other")
    shutil.move(path / "data/action", path / "data/state")
    shutil.move(path / "other", path / "data/action")
    store = EpisodeStore.open(path)
    for name in ("state", "action"):
        with pytest.raises(StoreError, match="is not the one that was written there"):
            store.read(name)


# Zarr reads zeros for a lost file of "count", and zeros are what it held.
@pytest.mark.parametrize(
    ("name", "is_fast"), [("camera", True), ("count", True), ("camera", False)]
)
def test_a_lost_file_does_not_read_as_zeros(path, monkeypatch, name, is_fast):
    if not is_fast:
        monkeypatch.setattr(data.reading.ChunkReader, "of", lambda *_, **__: None)
    next(file for file in (path / f"data/{name}/c").rglob("*") if file.is_file()).unlink()
    with pytest.raises(StoreError, match=rf"data/{name} is damaged"):
        EpisodeStore.open(path).read(name)


@pytest.mark.parametrize("name", ["episode_ends", "episode_metadata", "chunk_checksums"])
def test_what_is_about_episodes_is_covered_too(path, name):
    array = zarr.open_group(path, mode="r+")[f"meta/{name}"]
    assert isinstance(array, zarr.Array)
    array[1] = "{}" if name == "episode_metadata" else 5
    with pytest.raises(StoreError, match=rf"meta/{name} is not what was written"):
        _ = [EpisodeStore.open(path).episode_metadata, EpisodeStore.open(path).read("state")]


@pytest.mark.parametrize("name", ["episode_ends", "episode_metadata", "chunk_checksums"])
def test_an_array_about_episodes_that_ends_early_is_noticed(path, name):
    array = zarr.open_group(path, mode="r+")[f"meta/{name}"]
    assert isinstance(array, zarr.Array)
    array.resize((1,))
    with pytest.raises(StoreError, match=rf"meta/{name} has shape \(1,\), \d+ elements are needed"):
        _ = [EpisodeStore.open(path).episode_metadata, EpisodeStore.open(path).read("state")]


@pytest.mark.parametrize("name", ["episode_ends", "episode_metadata", "chunk_checksums"])
def test_a_damaged_file_about_episodes_is_noticed(path, name):
    file = path / f"meta/{name}/c/0"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(StoreError, match=rf"meta/{name} is damaged"):
        _ = [EpisodeStore.open(path).episode_metadata, EpisodeStore.open(path).read("state")]


def change_json(file: Path, *keys: str, value: object) -> None:
    document = json.loads(file.read_text())
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    file.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("contract", "control_dt"), 0.2),
        (("contract", "task"), "another"),
        (("contract", "action", "unit"), "rad"),
        (("commit", "n_episodes"), 5),
        (("commit", "edit"), "0" * 64),
        (("digest",), ""),
    ],
)
def test_changed_attributes_are_noticed(path, keys, value):
    change_json(path / "zarr.json", "attributes", *keys, value=value)
    with pytest.raises(StoreError, match=r"the attributes in zarr\.json are damaged"):
        EpisodeStore.open(path)


def test_a_note_in_the_attributes_is_left_alone(path):
    zarr.open_group(path, mode="r+").attrs["note"] = "recorded on a rainy day"
    with EpisodeStore.open(path, mode="a") as store:
        store.append(episode(9, 3))
    assert zarr.open_group(path, mode="r").attrs["note"] == "recorded on a rainy day"
    assert EpisodeStore.open(path).n_episodes == 7


def test_a_lost_contract_is_noticed(path):
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    del attributes["contract"]
    change_json(path / "zarr.json", "attributes", value=attributes)
    with pytest.raises(StoreError, match="the contract in the attributes is broken"):
        EpisodeStore.open(path, contract=CONTRACT)


def test_other_chunks_than_it_was_written_in_are_noticed(path):
    sharding = ("codecs", [{"name": "bytes", "configuration": {"endian": "little"}}])
    change_json(path / "data/state/zarr.json", *sharding[:1], value=sharding[1])
    with pytest.raises(StoreError, match="the chunks of its arrays are not those"):
        EpisodeStore.open(path).read("state")


def test_an_index_without_a_checksum_is_not_believed(path):
    document = json.loads((path / "data/camera/zarr.json").read_text())
    del document["codecs"][0]["configuration"]["index_codecs"][1]
    (path / "data/camera/zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match="the chunks of its arrays are not those"):
        EpisodeStore.open(path).read("camera")


def test_a_damaged_zarr_json_of_an_array_is_named(path):
    (path / "data/state/zarr.json").write_text("{ half")
    with pytest.raises(StoreError, match=r"the zarr\.json of data/state is damaged"):
        EpisodeStore.open(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "the index of .* is damaged"),
        (lambda content: b"", "the index of .* is damaged"),
        (lambda content: b"\xff" + content[1:], "is damaged: restore"),
    ],
)
def test_nothing_is_appended_to_a_damaged_shard(path, damage, message):
    file = path / "data/camera/c/5/0/0/0"
    with EpisodeStore.open(path, mode="a") as store:
        store.append(episode(7, 20))  # A full chunk is in the last shard now.
        file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(StoreError, match=message):
            store.append(episode(8, 10))
    assert EpisodeStore.open(path).n_episodes == 7


def test_nothing_is_appended_after_damaged_metadata(path):
    file = path / "meta/episode_metadata/c/0"
    file.write_bytes(file.read_bytes()[:-3])
    with (
        EpisodeStore.open(path, mode="a") as store,
        pytest.raises(StoreError, match="is damaged at its end"),
    ):
        store.append(episode(8, 10))


def test_identity_tells_contents_apart_without_reading_them(path, tmp_path):
    identities = {EpisodeStore.open(path).identity()}
    other = tmp_path / "other.zarr"
    with EpisodeStore.create(other, CONTRACT, shard_bytes=SHARD_BYTES) as store:
        for index, length in enumerate(LENGTHS):
            store.append(episode(index, length), seed=index)
    assert EpisodeStore.open(other).identity() in identities
    with EpisodeStore.open(path, mode="a") as store:
        store.edit(metadata={0: {"seed": 9}})
        assert store.identity() in identities  # which are no numbers
        store.edit(hide=[1])
        identities.add(store.identity())
        store.append(episode(8, 1))
        identities.add(store.identity())
    assert len(identities) == 3


def test_checksums_of_fields_are_found_among_those_of_all():
    # "a" fills a chunk every 2 steps, "b" every 3; episodes end at 3, 4 and 9.
    log = np.array([10, 20, 11, 12, 13, 21, 22])
    found = filled_by_field(log, np.array([3, 4, 9]), {"b": 3, "a": 2})
    assert {name: sums.tolist() for name, sums in found.items()} == {
        "a": [10, 11, 12, 13],
        "b": [20, 21, 22],
    }
    with pytest.raises(ValueError, match="6 chunks have a checksum, 7 are full"):
        filled_by_field(log[:-1], np.array([3, 4, 9]), {"b": 3, "a": 2})


def test_checksums_are_crc_32c():
    assert checksum(b"123456789") == 0xE3069283  # The check value of the polynomial's definition.
    assert checksum(b"6789", checksum(b"12345")) == 0xE3069283
    assert rows_checksum(np.frombuffer(b"123456789", np.uint8).reshape(3, 3)) == 0xE3069283


# Codecs.


def smooth_frames(n: int) -> np.ndarray:
    """Frames that JPEG keeps well: slopes of different directions."""
    y, x = np.mgrid[0:64, 0:64]
    frames = [np.stack([2 * x, 2 * y, x + y + i], axis=2) for i in range(n)]
    return np.stack(frames).astype(np.uint8)


def test_jpeg_is_smaller_and_near(tmp_path):
    noise = np.random.default_rng(0).integers(0, 8, (12, *FRAME), dtype=np.uint8)
    frames = smooth_frames(12) + noise
    episode = {"camera": frames, "action": np.zeros((12, 3))}
    contract = Contract({"camera": Field(FRAME, "uint8")}, Field((3,)), 0.1)
    sizes, read = [], []
    for codec in (None, Jpeg(75)):
        path = tmp_path / f"{codec}.zarr"
        with EpisodeStore.create(path, contract, codec=codec) as store:
            store.append(episode)
        sizes.append(
            sum(f.stat().st_size for f in (path / "data/camera/c").rglob("*") if f.is_file())
        )
        read.append(EpisodeStore.open(path).read("camera").astype(int))
    assert sizes[1] < sizes[0] / 2
    np.testing.assert_array_equal(read[0], frames)
    # The noise itself has a standard deviation of 2.3.
    assert 0 < np.abs(read[1] - frames).mean() < 3
    stored = array_of(tmp_path / f"{Jpeg(75)}.zarr", "camera")
    assert codec_of(stored) == Jpeg(75)
    np.testing.assert_array_equal(np.asarray(stored[:]), read[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_goes_on_after_opening_again(tmp_path, channels):
    contract = Contract({"camera": Field((64, 64, channels), "uint8")}, Field((1,)), 0.1)
    path, frames = tmp_path / "s.zarr", smooth_frames(9)[..., :channels]
    EpisodeStore.create(path, contract, codec=Jpeg(100), shard_bytes=2**16).close()
    for first, stop in itertools.pairwise([0, 2, 9]):
        with EpisodeStore.open(path, mode="a") as store:
            part = frames[first:stop]
            store.append({"camera": part, "action": np.zeros((len(part), 1))})
    assert np.abs(store.read("camera").astype(int) - frames).max() <= 4
    one = encode_jpeg(frames[3:4], 100)
    np.testing.assert_array_equal(
        store.read_rows("camera", np.array([3])), decode_jpeg(one, (1, 64, 64, channels))
    )


def test_swapped_shards_of_jpeg_are_noticed(tmp_path):
    contract = Contract({"camera": Field(FRAME, "uint8")}, Field((1,)), 0.1)
    path = tmp_path / "s.zarr"
    with EpisodeStore.create(path, contract, codec=Jpeg(), shard_bytes=2**16) as store:
        store.append({"camera": smooth_frames(12), "action": np.zeros((12, 1))})
    files = [path / f"data/camera/c/{shard}/0/0/0" for shard in (0, 1)]
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, reversed(contents), strict=True):
        file.write_bytes(content)
    with pytest.raises(StoreError, match="is not the one that was written there"):
        EpisodeStore.open(path).read("camera")


def test_codecs_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"quality is 0, it must be a whole number in 1\.\.100"):
        Jpeg(0)
    with pytest.raises(ValueError, match=r"level is 2\.5, it must be a whole number in 1\.\.22"):
        Lossless(2.5)  # pyright: ignore[reportArgumentType]
    four = Contract({"camera": Field((8, 8, 4), "uint8")}, Field((1,)), 0.1)
    with pytest.raises(StoreError, match=r"camera: JPEG keeps uint8 images of 1 or 3 channels"):
        EpisodeStore.create(tmp_path / "a", four, codec=Jpeg())
    none = Contract({"state": Field((8,))}, Field((1,)), 0.1)
    with pytest.raises(StoreError, match="the contract has no image: leave it out"):
        EpisodeStore.create(tmp_path / "b", none, codec=Jpeg())
    assert not any(tmp_path.iterdir())
    group = zarr.open_group(tmp_path / "c", mode="w")
    with pytest.raises(ValueError, match="not those that a store is made with"):
        codec_of(group.create_array("x", shape=(4,), chunks=(2,), shards=(4,), dtype="f4"))


def test_what_is_no_jpeg_is_refused():
    frame = encode_jpeg(smooth_frames(1), 90)
    with pytest.raises(ValueError, match=r"a frame has shape \(64, 64, 3\), it must be \(32, 32"):
        decode_jpeg(frame, (1, 32, 32, 3))
    for content in (b"", b"text", frame[:200]):
        with pytest.raises(ValueError, match="a frame is no JPEG"):
            decode_jpeg(content, (1, 64, 64, 3))
