"""A store becomes a LeRobot data set and comes back equal; LeRobot's schema is kept."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.exporters.exporter import ExporterError
from data.exporters.lerobot_v3 import LeRobotV3
from data.importers.importer import ImporterError
from data.importers.lerobot import LeRobot
from data.layout import Source
from data.store import EpisodeStore
from data.types import Contract, ContractError, Field

PUSH_T = Path(__file__).resolve().parents[3] / "../shared/data/pusht_cchi_v7_replay.zarr"
CONTRACT = Contract(
    observation={
        "state": Field((3,), unit=("m", "m", "rad"), frame="base", angles=(2,)),
        "top": Field((6, 10, 3), "uint8"),
        "grey": Field((6, 10, 1), "uint8"),
        "clear": Field((4, 4, 4), "uint8"),
        "five": Field((4, 4, 5), "uint8"),
        "grid": Field((2, 3), unit="N"),
        "cube": Field((2, 2, 2), dtype="float64"),
        "one": Field((1,), dtype="int64", discrete=(0,)),
        "none": Field((), dtype="float32"),
        "flag": Field((2,), dtype="bool"),
    },
    action=Field((2,), unit="m", kind="relative", rotation="", low=(-1.0, -2.0), high=(1.0, 2.0)),
    control_dt=0.05,
    task="reach",
)
LENGTHS = (4, 1, 7)
METADATA = ({"seed": 3, "success": True}, {"task": "push", "note": "ä\n{}"}, {})


def episode(number: int, contract: Contract = CONTRACT, length: int | None = None) -> dict:
    rng = np.random.default_rng(number)
    n_steps = LENGTHS[number] if length is None else length
    fields = {}
    for name, field in contract.fields.items():
        shape = (n_steps, *field.shape)
        if np.dtype(field.dtype).kind == "f":
            # All magnitudes, so that a detour over text or another width would show.
            values = rng.normal(size=shape) * 10.0 ** rng.integers(-30, 30, shape)
        else:
            values = rng.integers(0, 2 if field.dtype == "bool" else 256, shape)
        fields[name] = values.astype(field.dtype)
    return fields


def filled(path: Path, contract: Contract = CONTRACT) -> EpisodeStore:
    store = EpisodeStore.create(path, contract)
    for number, metadata in enumerate(METADATA):
        store.append(episode(number, contract), **metadata)
    return store


def photographed(**sizes: tuple[int, ...]) -> Contract:
    pictures = {name: Field(size, "uint8") for name, size in sizes.items()}
    return dataclasses.replace(
        CONTRACT, observation={"state": CONTRACT.observation["state"], **pictures}
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a store and what it was exported to, to be copied."""
    folder = tmp_path_factory.mktemp("made")
    with filled(folder / "store.zarr") as store:
        LeRobotV3().export(store, folder / "out")
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> EpisodeStore:
    return EpisodeStore.open(
        shutil.copytree(made / "store.zarr", tmp_path / "store.zarr"), mode="a"
    )


def back(data_set: Path, place: Path, **settings) -> EpisodeStore:
    importer = LeRobot(data_set, **settings)
    store = EpisodeStore.create(place, importer.contract)
    for came in importer.episodes():
        store.append(came.fields, **came.metadata)
    return store


def info_of(data_set: Path) -> dict:
    return json.loads((data_set / "meta/info.json").read_text())


@pytest.mark.parametrize("images", ["png", "h264_lossless"])
def test_a_store_comes_back_equal(store, tmp_path, images):
    LeRobotV3(images=images).export(store, tmp_path / "out")
    came = back(tmp_path / "out", tmp_path / "came.zarr")
    assert came.contract == store.contract
    assert came.digest() == store.digest()
    assert came.episode_metadata == list(METADATA)


@pytest.mark.skipif(not PUSH_T.exists(), reason="the real data are not here")
def test_real_pictures_and_states_come_back_equal(tmp_path):
    contract = Contract(
        {"img": Field((96, 96, 3), "uint8"), "agent": Field((2,), unit="px")},
        Field((2,), unit="px", low=(0.0, 0.0), high=(512.0, 512.0)),
        control_dt=0.1,
    )
    real = EpisodeStore.open(PUSH_T, contract=contract, sources={"agent": Source("state", [0, 1])})
    store = EpisodeStore.create(tmp_path / "part.zarr", contract)
    for number in range(2):
        store.append({name: real.read(name, episodes=[number]) for name in contract.fields})
    LeRobotV3().export(store, tmp_path / "out")
    came = back(tmp_path / "out", tmp_path / "came.zarr")
    assert came.n_steps == real.episode_ends[1]
    assert came.contract == contract
    assert came.digest() == store.digest()


@pytest.mark.parametrize("images", ["h264", "av1"])
def test_a_video_with_loss_is_near_and_says_so(tmp_path, images):
    contract = photographed(top=(64, 64, 3))
    store = EpisodeStore.create(tmp_path / "store.zarr", contract)
    for number in range(2):
        fields = episode(number, contract, 12)
        fields["top"][:] = np.linspace(50, 200, 12).reshape(12, 1, 1, 1)
        store.append(fields)
    report = LeRobotV3(images=images).export(store, tmp_path / "out")
    assert any("lost detail" in note for note in report.notes)
    came = back(tmp_path / "out", tmp_path / "came.zarr")
    apart = came.read("top").astype(int) - store.read("top")
    assert 0 <= np.abs(apart).max() <= 6
    np.testing.assert_array_equal(came.read("state"), store.read("state"))


def test_lerobots_schema_is_kept(store, tmp_path):
    """What `info.json`, the tables and their columns must hold, as lerobot 0.4 writes them."""
    report = LeRobotV3(robot_type="arm").export(store, tmp_path / "out")
    info = info_of(tmp_path / "out")
    expected = {
        "codebase_version": "v3.0",
        "robot_type": "arm",
        "total_episodes": 3,
        "total_frames": 12,
        "total_tasks": 2,
        "fps": 20,
        "splits": {"train": "0:3"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "chunks_size": 1000,
    }
    assert {key: info[key] for key in expected} == expected
    assert type(info["fps"]) is int
    features = info["features"]
    assert features["observation.state"]["shape"] == [3]
    assert len(features["observation.state"]["names"]) == 3
    assert features["observation.images.top"] == {
        "dtype": "image",
        "shape": [6, 10, 3],
        "names": ["height", "width", "channels"],
    }
    assert features["observation.images.grey"]["dtype"] == "image"
    assert features["observation.five"]["dtype"] == "uint8"  # No picture file has five channels.
    assert features["observation.none"]["shape"] == [1]
    assert features["action"]["dtype"] == "float32"
    assert report.n_episodes == 3
    assert report.n_steps == 12
    sizes = [p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert report.n_bytes == sum(sizes)
    assert "top is observation.images.top" in report.notes[0]

    table = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    assert table["index"].to_pylist() == list(range(12))
    assert table["frame_index"].to_pylist() == [0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 5, 6]
    assert table["episode_index"].to_pylist() == [0] * 4 + [1] + [2] * 7
    assert table["task_index"].to_pylist() == [0] * 4 + [1] + [0] * 7
    assert table["timestamp"].to_numpy()[:4] == pytest.approx([0, 0.05, 0.1, 0.15])
    assert str(table.schema.field("observation.state").type).startswith("fixed_size_list")
    picture = table["observation.images.top"][2].as_py()
    assert picture["bytes"].startswith(b"\x89PNG")

    episodes = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet")
    assert episodes["tasks"].to_pylist() == [["reach"], ["push"], ["reach"]]
    assert episodes["length"].to_pylist() == [4, 1, 7]
    assert episodes["dataset_from_index"].to_pylist() == [0, 4, 5]
    assert episodes["dataset_to_index"].to_pylist() == [4, 5, 12]
    for of in ("data", "meta/episodes"):
        assert episodes[f"{of}/chunk_index"].to_pylist() == [0, 0, 0]
    tasks = pq.read_table(tmp_path / "out/meta/tasks.parquet").to_pylist()
    assert tasks == [{"task_index": 0, "task": "reach"}, {"task_index": 1, "task": "push"}]


def test_columns_are_those_of_a_data_set_that_lerobot_wrote(tmp_path):
    theirs = Path(__file__).resolve().parents[1] / "importers/files/lerobot_v3_video"
    told = {"state": {"unit": "1"}, "action": {"unit": "1", "kind": "delta", "rotation": "none"}}
    store = back(theirs, tmp_path / "store.zarr", fields=told)
    LeRobotV3(images="h264").export(store, tmp_path / "out")
    for file in ("data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"):
        ours, expected = (pq.read_schema(root / file) for root in (tmp_path / "out", theirs))
        left_out = [n for n in expected.names if "next." in n]
        assert set(ours.names) == set(expected.names) - set(left_out)
        for name in ours.names:
            if "/min" not in name and "/max" not in name:  # Theirs depend on float32.
                assert str(ours.field(name).type) == str(expected.field(name).type), name
    assert set(info_of(theirs)) == set(info_of(tmp_path / "out")) - {"cadence"}
    ours, expected = (
        json.loads((root / "meta/stats.json").read_text())["observation.images.top"]
        for root in (tmp_path / "out", theirs)
    )
    assert set(ours) == set(expected)
    # LeRobot 0.4.4 squares pictures as uint8, which overflows: its deviations are wrong.
    for name in set(ours) - {"count", "std"}:
        assert np.shape(ours[name]) == np.shape(expected[name]) == (3, 1, 1)
        # Frames of one colour; 0.02 is what the video lost and their bins.
        np.testing.assert_allclose(ours[name], expected[name], atol=0.02)


def test_pages_have_checksums(store, tmp_path):
    """Flipped bytes are noticed also by whoever has no digests but reads the pages' checksums."""
    LeRobotV3().export(store, tmp_path / "out")
    file = tmp_path / "out/data/chunk-000/file-000.parquet"
    expected, content = pq.read_table(file), file.read_bytes()
    n_data = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    n_noticed = 0
    places = range(4, n_data, n_data // 150)
    for place in places:
        flipped = content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]
        file.write_bytes(flipped)
        try:
            found = pq.ParquetFile(file, page_checksum_verification=True).read()
        except (OSError, ValueError):
            n_noticed += 1
            continue
        assert found.equals(expected), place
    assert n_noticed > 0.5 * len(places)  # The rest is in what is not read.


def test_large_data_sets_are_spread_over_files(tmp_path):
    contract = photographed(top=(32, 32, 3))
    store = EpisodeStore.create(tmp_path / "store.zarr", contract)
    for number in range(9):
        store.append(episode(number, contract, 10))
    png = LeRobotV3(data_file_mb=0.08)
    video = LeRobotV3(images="h264_lossless", video_file_mb=0.08)
    for exporter, of in ((png, "data"), (video, "videos")):
        out = tmp_path / of
        exporter.export(store, out)
        sizes = [p.stat().st_size for p in sorted((out / of).rglob("file-*"))]
        assert len(sizes) > 2
        assert max(sizes) < 0.16 * 1024**2
        # An episode's numbers of files are those it is in: it comes back from there.
        assert back(out, tmp_path / f"{of}.zarr").digest() == store.digest()


def test_a_rate_that_is_no_whole_number_is_kept(tmp_path):
    contract = dataclasses.replace(photographed(top=(8, 8, 3)), control_dt=1 / 29.97)
    store = filled(tmp_path / "store.zarr", contract)
    for images in ("png", "h264_lossless"):
        LeRobotV3(images=images).export(store, tmp_path / images)
        assert info_of(tmp_path / images)["fps"] == pytest.approx(29.97)
        came = back(tmp_path / images, tmp_path / f"{images}.zarr")
        assert came.contract.control_dt == contract.control_dt
        assert came.digest() == store.digest()


def test_hidden_episodes_stay_behind(store, tmp_path):
    store.edit(hide=[1])
    LeRobotV3().export(store, tmp_path / "out")
    came = list(LeRobot(tmp_path / "out").episodes())
    assert [len(one.fields["action"]) for one in came] == [LENGTHS[0], LENGTHS[2]]
    assert [one.metadata for one in came] == [METADATA[0], METADATA[2]]
    for number, one in zip((0, 2), came, strict=True):
        np.testing.assert_array_equal(one.fields["state"], episode(number)["state"])


def test_the_only_vector_is_the_state(tmp_path):
    contract = Contract({"agent": Field((2,)), "n": Field(())}, Field((1,)), 0.1)
    store = EpisodeStore.create(tmp_path / "s.zarr", contract)
    store.append(episode(0, contract))
    LeRobotV3().export(store, tmp_path / "out")
    assert {"observation.state", "observation.n", "action"} <= set(
        info_of(tmp_path / "out")["features"]
    )
    report = LeRobotV3(features={"agent": "observation.here"}).export(store, tmp_path / "other")
    assert any("no field is observation.state" in note for note in report.notes)
    assert back(tmp_path / "other", tmp_path / "came.zarr").digest() == store.digest()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"nothing": "observation.x"}, "features names .'nothing'., the store has"),
        ({"one": "observation.a/b"}, "would become feature 'observation.a/b'"),
        ({"one": ""}, "would become feature ''"),
        ({"one": "timestamp"}, "would become feature 'timestamp'"),
        ({"one": "observation.state"}, "would all become feature 'observation.state'"),
        ({"one": "action"}, "would all become feature 'action'"),
    ],
)
def test_keys_that_lerobot_does_not_allow_are_refused(store, tmp_path, features, message):
    if features == {"one": "observation.state"}:
        features["state"] = "observation.state"
    with pytest.raises(ContractError, match=message):
        LeRobotV3(features=features).export(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_settings_are_refused():
    with pytest.raises(ExporterError, match="images is 'jpeg', choose one of png"):
        LeRobotV3(images="jpeg")  # pyright: ignore[reportArgumentType]
    for size in (0, -1, math.inf, math.nan):
        with pytest.raises(ExporterError, match="data_file_mb is"):
            LeRobotV3(data_file_mb=size)
        with pytest.raises(ExporterError, match="video_file_mb is"):
            LeRobotV3(video_file_mb=size)


def test_what_cannot_be_written_is_refused(tmp_path):
    empty = EpisodeStore.create(tmp_path / "empty.zarr", CONTRACT)
    with pytest.raises(ExporterError, match="has no episodes"):
        LeRobotV3().export(empty, tmp_path / "out")
    odd = filled(tmp_path / "odd.zarr", photographed(top=(7, 8, 3)))
    with pytest.raises(ExporterError, match="frames of 7 x 8 points cannot be written as h264"):
        LeRobotV3(images="h264").export(odd, tmp_path / "out")
    small = filled(tmp_path / "small.zarr", photographed(top=(32, 32, 3)))
    with pytest.raises(ExporterError, match="needs even numbers from 64 on"):
        LeRobotV3(images="av1").export(small, tmp_path / "out")
    deep = Contract({"deep": Field((1,) * 6)}, Field((1,)), 0.1)
    store = EpisodeStore.create(tmp_path / "deep.zarr", deep)
    store.append(episode(0, deep))
    with pytest.raises(ExporterError, match="LeRobot knows up to 5 dimensions"):
        LeRobotV3().export(store, tmp_path / "out")
    long = Contract({"z": Field((1,), dtype="complex64")}, Field((1,)), 0.1)
    store = EpisodeStore.create(tmp_path / "long.zarr", long)
    store.append({"z": np.ones((2, 1), np.complex64), "action": np.ones((2, 1), np.float32)})
    with pytest.raises(ExporterError, match="dtype complex64, which LeRobot does not know"):
        LeRobotV3().export(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_what_is_there_is_left_alone(store, tmp_path):
    (tmp_path / "out").mkdir()
    LeRobotV3().export(store, tmp_path / "out")  # An empty folder may be filled.
    before = info_of(tmp_path / "out")
    with pytest.raises(ExporterError, match="exists already: choose another out=DIR"):
        LeRobotV3().export(store, tmp_path / "out")
    assert info_of(tmp_path / "out") == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExporterError, match="exists already"):
        LeRobotV3().export(store, tmp_path / "file")
    with pytest.raises(ExporterError, match="file/out cannot be written"):
        LeRobotV3().export(store, tmp_path / "file/out")
    assert (tmp_path / "file").read_text() == "mine"
    for inside in (store.path / "out", store.path / "data" / ".." / "out"):
        with pytest.raises(ExporterError, match="lies in the store"):
            LeRobotV3().export(store, inside)
        assert not inside.exists()


@pytest.mark.parametrize("images", ["png", "h264_lossless"])
def test_an_interruption_leaves_nothing(store, tmp_path, images):
    done = []

    def interrupt(n_episodes: int) -> None:
        done.append(n_episodes)
        if n_episodes == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LeRobotV3(images=images).export(store, tmp_path / "out", progress=interrupt)
    assert done == [1, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"store.zarr"}


def test_progress_is_told_after_every_episode(store, tmp_path):
    done = []
    LeRobotV3().export(store, tmp_path / "out", progress=done.append)
    assert done == [1, 2, 3]


@pytest.fixture
def exported(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "out", tmp_path / "out")


def change_info(data_set: Path, *keys: str, value: object) -> None:
    info = info_of(data_set)
    holder = info
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = value
    (data_set / "meta/info.json").write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("fps",), 21),
        (("cadence", "contract", "action", "unit"), "mm"),
        (("cadence", "contract", "task"), "other"),
        (("cadence", "features", "one"), "action"),
        (("cadence", "digest"), "0"),
        (("features", "action", "names"), ["a", "b"]),
    ],
)
def test_a_changed_description_is_noticed(exported, keys, value):
    change_info(exported, *keys, value=value)
    with pytest.raises(ImporterError, match=r"info\.json: it was changed since it was"):
        LeRobot(exported)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("cadence",), 3, "cadence is 3, it must be an object"),
        (("cadence", "version"), 2, "has version 2, this program reads up to 1"),
        (("cadence", "files"), None, "lacks features or files"),
        (("cadence", "features"), {"state": "observation.state"}, "has features for .'state'."),
        (("cadence", "features", "one"), "observation.x", "has no feature 'observation.x'"),
        (("cadence", "features", "one"), "observation.grid", "'one' is int64 .1. in its contract"),
        (("cadence", "contract", "action"), 3, "the entry cadence is broken"),
        (("cadence", "contract", "control_dt"), 0.1, "fps 20, but 0.1 s a step"),
        (("cadence", "contract", "action", "shape"), [3], "'action' is|the entry cadence is"),
    ],
)
def test_a_wrong_description_is_refused_unverified_too(exported, keys, value, message):
    change_info(exported, *keys, value=value)
    with pytest.raises(ImporterError, match=message):
        LeRobot(exported, verify=False)


@pytest.mark.parametrize(
    "file",
    [
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/tasks.parquet",
        "meta/cadence_episodes.jsonl",
    ],
)
def test_a_changed_file_is_noticed(exported, file):
    with open(exported / file, "ab") as stream:
        stream.write(b"\n")
    with pytest.raises(ImporterError, match=rf"{Path(file).name} was changed since"):
        list(LeRobot(exported).episodes())


def test_meant_changes_are_read_when_told_so(exported):
    with open(exported / "meta/cadence_episodes.jsonl", "ab") as stream:
        stream.write(b"\n")
    change_info(exported, "robot_type", value="arm")
    assert len(list(LeRobot(exported, verify=False).episodes())) == 3
    with open(exported / "meta/cadence_episodes.jsonl", "ab") as stream:
        stream.write(b"{}\n")
    with pytest.raises(ImporterError, match="has 4 lines, the data set 3 episodes"):
        LeRobot(exported, verify=False)


def test_a_part_of_an_export_is_taken(exported, store):
    importer = LeRobot(exported, take=["state"])
    assert importer.contract.observation == {"state": CONTRACT.observation["state"]}
    assert importer.contract.action == CONTRACT.action
    values = np.concatenate([came.fields["state"] for came in importer.episodes()])
    np.testing.assert_array_equal(values, store.read("state"))
    with pytest.raises(ContractError, match=r"fields\.pose\.unit="):
        LeRobot(exported, take={"pose": "observation.state"})


def test_a_field_scaled_per_task_comes_back_without_its_teller(tmp_path):
    contract = Contract(
        {
            "task": Field((2,), normalization="identity"),
            "state": Field((2,), unit="m", scaled_per="task"),
        },
        Field((1,), unit="m", scaled_per="task"),
        0.1,
    )
    store = EpisodeStore.create(tmp_path / "s.zarr", contract)
    store.append(episode(0, contract))
    LeRobotV3().export(store, tmp_path / "out")
    assert LeRobot(tmp_path / "out").contract == contract
    part = LeRobot(tmp_path / "out", take=["state"]).contract
    assert part.observation["state"].scaled_per == ""


def test_where_an_export_was_imported_from_is_told_apart(tmp_path):
    store = EpisodeStore.create(tmp_path / "s.zarr", CONTRACT)
    store.append(episode(0), source="there", source_number=4, seed=1)
    LeRobotV3().export(store, tmp_path / "out")
    metadata = next(LeRobot(tmp_path / "out").episodes()).metadata
    assert metadata == {"original_source": "there", "original_source_number": 4, "seed": 1}


def test_an_export_without_our_entry_is_any_data_set(exported):
    info = info_of(exported)
    del info["cadence"]
    (exported / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(ContractError, match="please give"):
        LeRobot(exported)


def test_a_moved_data_set_is_the_same(exported, tmp_path):
    moved = Path(shutil.move(exported, tmp_path / "elsewhere"))
    assert len(list(LeRobot(moved).episodes())) == 3
