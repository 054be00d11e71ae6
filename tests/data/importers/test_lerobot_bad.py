"""LeRobot data sets that are not what they say: each fault is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import make_lerobot_files as truth
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.importers.importer import ImporterError
from data.importers.lerobot import LeRobot
from data.video_frames import VideoWriter

TOLD = {"state": {"unit": "m"}, "action": {"unit": "m", "kind": "absolute", "rotation": "none"}}
TABLE = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.top/chunk-000/file-000.mp4"


def copied(tmp_path: Path, name: str) -> Path:
    return Path(shutil.copytree(truth.FILES / name, tmp_path / name))


def change_info(path: Path, change: Callable[[dict], object]) -> None:
    file = path / "meta/info.json"
    info = json.loads(file.read_text())
    change(info)
    file.write_text(json.dumps(info))


def change_table(path: Path, file: str, column: str, change: Callable[[list], object]) -> None:
    table = pq.read_table(path / file)
    values = table[column].to_pylist()
    change(values)
    kind = table.schema.field(column).type
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(values, kind)), path / file)


def replace_column(path: Path, column: str, values: pa.Array, file: str = TABLE) -> None:
    table = pq.read_table(path / file)
    pq.write_table(table.set_column(table.column_names.index(column), column, values), path / file)


def refused(path: Path, message: str, **settings) -> None:
    with pytest.raises(ImporterError, match=message):
        list(LeRobot(path, fields=TOLD, **settings).episodes())


def test_no_folder_and_no_data_set_are_refused(tmp_path):
    refused(tmp_path / "nothing", "is not a folder")
    refused(tmp_path, "has no meta/info.json, so it is not a LeRobot data set")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"[1]", "is list, it must be an object"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_info_that_is_no_document_is_refused(tmp_path, content, message):
    path = copied(tmp_path, "lerobot_v3_state")
    (path / "meta/info.json").write_bytes(content)
    refused(path, message)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("v2.0", "codebase_version is 'v2.0'.*convert_dataset_v20_to_v21"),
        ("v1.6", "convert_dataset_v1_to_v2"),
        ("v4.0", "readable are v2.1 and v3.0.*upgrade cadence"),
        (None, "codebase_version is None"),
    ],
)
def test_other_versions_are_refused_with_the_way_out(tmp_path, version, message):
    path = copied(tmp_path, "lerobot_v3_state")
    change_info(path, lambda info: info.update(codebase_version=version))
    refused(path, message)


@pytest.mark.parametrize("name", ["lerobot_v3_video", "lerobot_v21_video"])
@pytest.mark.parametrize("entry", ["data_path", "video_path"])
@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("/etc/passwd", "leads out of the data set's folder"),
        ("../other/data.parquet", "leads out of the data set's folder"),
        ("data/../../other.parquet", "leads out of the data set's folder"),
        ("data\\..\\other.parquet", "leads out of the data set's folder"),
        ("C:/data.parquet", "leads out of the data set's folder"),
        ("data/{nothing}.parquet", "it has {nothing}, known are"),
        ("data/{}.parquet", "it has {}, known are"),
        ("data/{episode_index.__class__}.parquet", "it has {episode_index.__class__}"),
        ("data/{video_key:0999999999d}.parquet", "has"),
        ("data/{file_index!r}{episode_index!r}", "has"),
        ("data/{", "expected '}'|Single '{'"),
        (None, "it must be text"),
        (7, "it must be text"),
    ],
)
def test_paths_that_lead_elsewhere_are_refused(tmp_path, name, entry, template, message):
    path = copied(tmp_path, name)
    change_info(path, lambda info: info.update({entry: template}))
    refused(path, f"{entry} is .*{message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": 0}, "fps is 0, it must be a number above 0"),
        ({"fps": "10"}, "fps is '10'"),
        ({"fps": True}, "fps is True"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": 20}, r"0.1 s pass after it, but 20 steps a second are 0.05 s apart"),
        ({"features": []}, "features is list, it must be an object"),
        ({"features": {}}, "features lacks the columns"),
        ({"total_episodes": 4}, "total_episodes is 4, but the table of episodes has 3"),
        ({"total_frames": 13}, "total_frames is 13, but the table of episodes has 14"),
        ({"data_path": "data/file-{file_index:03d}.parquet"}, "does not exist, but episode"),
    ],
)
def test_wrong_entries_are_refused(tmp_path, changes, message):
    path = copied(tmp_path, "lerobot_v3_state")
    change_info(path, lambda info: info.update(changes))
    refused(path, message)


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (3, "is 3, it must be an object"),
        ({"dtype": 3, "shape": [3]}, "has dtype 3, it must be text"),
        ({"dtype": "float32"}, "has shape None"),
        ({"dtype": "float32", "shape": [0]}, r"has shape \[0\]"),
        ({"dtype": "float32", "shape": [4]}, r"is fixed_size_list.*not float32 \[4\]"),
        ({"dtype": "float32", "shape": [3, 1]}, "is fixed_size_list"),
        ({"dtype": "int64", "shape": [3]}, "is fixed_size_list"),
        ({"dtype": "bool", "shape": [3]}, "is fixed_size_list"),
        ({"dtype": "object", "shape": [3]}, "has dtype 'object', which is not numbers"),
        ({"dtype": "string", "shape": [1]}, "has dtype 'string'.*format.leave_out="),
        ({"dtype": "image", "shape": [3]}, r"is a picture of shape \[3\]"),
        ({"dtype": "image", "shape": [4, 4, 3]}, "is fixed_size_list"),
        ({"dtype": "image", "shape": [5, 5, 2]}, "has pictures of 2 channels"),
        ({"dtype": "video", "shape": [4, 4, 4]}, "lacks the columns|has pictures of 4 channels"),
    ],
)
def test_features_that_the_table_does_not_have_are_refused(tmp_path, feature, message):
    path = copied(tmp_path, "lerobot_v3_state")
    change_info(path, lambda info: info["features"].update({"observation.state": feature}))
    refused(path, message)


@pytest.mark.parametrize("key", ["observation.a/b", "observation.\\", ".."])
def test_features_whose_names_are_paths_are_refused(tmp_path, key):
    path = copied(tmp_path, "lerobot_v3_state")
    change_info(path, lambda info: info["features"].update({key: info["features"]["action"]}))
    refused(path, "has a name that is a path")


def test_a_feature_whose_name_cannot_be_a_fields_is_renamed(tmp_path):
    path = copied(tmp_path, "lerobot_v3_state")
    change_info(path, rename)
    table = pq.read_table(path / TABLE)
    names = ["observation.2nd" if n == "observation.state" else n for n in table.column_names]
    pq.write_table(table.rename_columns(names), path / TABLE)
    refused(path, r"'2nd' cannot be the name of a field .*take.NAME")
    importer = LeRobot(path, fields=TOLD, take={"state": "observation.2nd"})
    assert next(importer.episodes()).fields["state"].shape == (4, 3)


def rename(info: dict) -> None:
    info["features"]["observation.2nd"] = info["features"].pop("observation.state")


def test_a_video_of_distances_is_refused(tmp_path):
    path = copied(tmp_path, "lerobot_v3_video")

    def mark(info):
        info["features"]["observation.images.top"]["info"]["video.is_depth_map"] = True

    change_info(path, mark)
    refused(path, "is a video of distances")


@pytest.mark.parametrize("file", [TABLE, EPISODES, "meta/tasks.parquet", VIDEO])
@pytest.mark.parametrize("content", [None, b"", b"PAR1" + bytes(100) + b"PAR1"])
def test_missing_and_broken_files_are_refused_by_name(tmp_path, file, content):
    path = copied(tmp_path, "lerobot_v3_video")
    (path / file).unlink()
    if content is not None:
        (path / file).write_bytes(content)
    refused(path, "parquet|mp4")


@pytest.mark.parametrize("file", ["meta/tasks.jsonl", "meta/episodes.jsonl"])
@pytest.mark.parametrize("content", [None, b"{", b"[]\n"])
def test_missing_and_broken_lines_are_refused_by_name(tmp_path, file, content):
    path = copied(tmp_path, "lerobot_v21_state")
    (path / file).unlink()
    if content is not None:
        (path / file).write_bytes(content)
    refused(path, file)


def test_wrong_tasks_are_refused(tmp_path):
    path = copied(tmp_path, "lerobot_v21_state")
    (path / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": 5}')
    refused(path, "task 0 is 5: every task needs")
    (path / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "reach"}')
    refused(path, r"episode 1 has the tasks \[1\], known are \[0\]")
    path = copied(tmp_path, "lerobot_v3_state")
    pq.write_table(pa.table({"task_index": [0, 1]}), path / "meta/tasks.parquet")
    refused(path, "they must be task_index and the task's words")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"episode_index": 1, "length": 4}, "episode_index is 1, but the rows before make it 0"),
        ({"episode_index": 0, "length": 0}, "an episode has length 0"),
        ({"episode_index": 0, "length": -4}, "length is -4"),
        ({"episode_index": 0, "length": "4"}, "length is '4'"),
        ({"episode_index": 0}, "length is None"),
    ],
)
def test_wrong_lines_of_episodes_are_refused(tmp_path, line, message):
    path = copied(tmp_path, "lerobot_v21_state")
    (path / "meta/episodes.jsonl").write_text(json.dumps(line))
    refused(path, message)


def test_a_wrong_chunks_size_is_refused(tmp_path):
    path = copied(tmp_path, "lerobot_v21_state")
    change_info(path, lambda info: info.update(chunks_size=0))
    refused(path, "chunks_size is 0")


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("episode_index", lambda v: v.reverse(), "episode_index is 2, but the rows before"),
        ("dataset_from_index", lambda v: v.__setitem__(1, 5), "dataset_from_index is 5"),
        ("dataset_to_index", lambda v: v.__setitem__(0, 5), "dataset_to_index is 5"),
        ("length", lambda v: v.__setitem__(0, 3), "dataset_to_index is 4, but .* make it 3"),
        ("length", lambda v: v.__setitem__(0, None), "length is None"),
        ("data/file_index", lambda v: v.__setitem__(1, 7), "file-007.parquet does not exist"),
        (
            "videos/observation.images.top/from_timestamp",
            lambda v: v.__setitem__(1, float("nan")),
            "from_timestamp is nan",
        ),
        (
            "videos/observation.images.top/from_timestamp",
            lambda v: v.__setitem__(1, 0.45),
            r"has no frame at 0.4500 s.*tolerance of 0.0001",
        ),
        (
            "videos/observation.images.top/from_timestamp",
            lambda v: v.__setitem__(2, 100.0),
            "ends at 1.3000 s, but a frame at 100.* the video is shorter than its table",
        ),
    ],
)
def test_a_wrong_table_of_episodes_is_refused(tmp_path, column, change, message):
    path = copied(tmp_path, "lerobot_v3_video")
    change_table(path, EPISODES, column, change)
    refused(path, message)


def test_an_episode_that_would_fill_the_memory_is_refused(tmp_path):
    """A few bytes can claim any number of equal rows."""
    path = copied(tmp_path, "lerobot_v21_state")
    many = 3_000_000_000
    (path / "meta/episodes.jsonl").write_text(json.dumps({"episode_index": 0, "length": many}))
    change_info(path, lambda info: info.update(total_episodes=1, total_frames=many))
    refused(path, "would have 3000000000 steps and 60 GB, an episode may have 34 GB")


def test_a_table_of_episodes_that_lacks_a_column_is_refused(tmp_path):
    path = copied(tmp_path, "lerobot_v3_state")
    pq.write_table(pq.read_table(path / EPISODES).drop_columns(["length"]), path / EPISODES)
    refused(path, r"lacks the columns \['length'\]")
    shutil.rmtree(path / "meta/episodes")
    refused(path, "has no meta/episodes")


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("frame_index", lambda v: v.__setitem__(5, 9), "frame_index is 9 in step 1 of episode 1"),
        ("episode_index", lambda v: v.__setitem__(0, 1), "episode_index is 1 in step 0"),
        ("index", lambda v: v.reverse(), "index is 13 in step 0 of episode 0"),
        ("timestamp", lambda v: v.__setitem__(1, 0.15), "step 0 of episode 0: 0.15 s pass"),
        ("timestamp", lambda v: v.__setitem__(0, float("nan")), "step 0 of episode 0"),
        ("task_index", lambda v: v.__setitem__(0, 5), r"episode 0 has the tasks \[5\]"),
        ("action", lambda v: v.__setitem__(3, None), "has empty steps"),
        ("action", lambda v: v.__setitem__(3, [1.0, None]), "has empty steps"),
        ("action", lambda v: v.__setitem__(3, [3.0, float("nan")]), "is not a finite number"),
        ("action", lambda v: v.__setitem__(3, [99.0, 2.0]), "action of episode 0 has the max"),
        ("action", lambda v: v.__setitem__(1, v[2]), "action of episode 0 has the mean"),
        ("observation.state", lambda v: v.__setitem__(4, [-9, 0, 0]), "of episode 1 has the min"),
    ],
)
@pytest.mark.parametrize("version", ["v3", "v21"])
def test_rows_that_are_not_the_episodes_are_refused(tmp_path, version, column, change, message):
    path = copied(tmp_path, f"lerobot_{version}_state")
    if version == "v3":
        change_table(path, TABLE, column, change)
    else:
        bounds = [0, 4, 11, 14]
        tables = sorted((path / "data/chunk-000").glob("*.parquet"))
        whole = pa.concat_tables([pq.read_table(table) for table in tables])
        pq.write_table(whole, path / "whole")
        change_table(path, "whole", column, change)
        whole = pq.read_table(path / "whole")
        for number, table in enumerate(tables):
            first, stop = bounds[number : number + 2]
            pq.write_table(whole.slice(first, stop - first), table)
    refused(path, message)


def test_numbers_are_believed_where_the_statistics_are_not(tmp_path):
    path = copied(tmp_path, "lerobot_v3_state")
    change_table(path, TABLE, "action", lambda values: values.__setitem__(3, [99.0, 1.0]))
    episode = next(LeRobot(path, fields=TOLD, verify=False).episodes())
    assert episode.fields["action"][3].tolist() == [99.0, 1.0]


def test_a_feature_whose_name_was_garbled_must_be_in_the_table(tmp_path):
    path = copied(tmp_path, "lerobot_v3_images")
    key = "observation.images.top"
    change_info(path, lambda info: info["features"].update(garbled=info["features"].pop(key)))
    refused(path, r"lacks the columns \['garbled'\] that info.json lists: .*verify=false")
    episode = next(LeRobot(path, fields=TOLD, verify=False).episodes())
    assert set(episode.fields) == {"state", "action"}


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("lerobot_v21_images", "observation.images.top"),
        ("lerobot_v21_video", "observation.images.top"),
        ("lerobot_v3_images", "observation.images.top"),
        ("lerobot_v3_video", "observation.images.top"),
        ("lerobot_v3_state", "next.reward"),
    ],
)
def test_a_feature_that_has_statistics_must_be_listed(tmp_path, kind, key):
    path = copied(tmp_path, kind)
    change_info(path, lambda info: info["features"].pop(key))
    refused(path, rf"has statistics of {key}, which .*info.json does not list: .*verify=false")
    episode = next(LeRobot(path, fields=TOLD, verify=False).episodes())
    assert set(episode.fields) == {"state", "action"}


@pytest.mark.parametrize(
    "said", ["text", [None, None], [[1.0], [2.0]], [float("inf"), 0.0], None, [10**400, 0]]
)
def test_statistics_that_say_nothing_are_passed_over(tmp_path, said):
    path = copied(tmp_path, "lerobot_v21_state")
    file = path / "meta/episodes_stats.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["stats"]["action"]["max"] = said
    file.write_text("\n".join(map(json.dumps, lines)))
    assert len(list(LeRobot(path, fields=TOLD).episodes())) == 3
    file.unlink()
    assert len(list(LeRobot(path, fields=TOLD).episodes())) == 3


def test_statistics_are_found_in_any_order(tmp_path):
    path = copied(tmp_path, "lerobot_v21_state")
    file = path / "meta/episodes_stats.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(reversed(lines)))
    assert len(list(LeRobot(path, fields=TOLD).episodes())) == 3
    wrong = json.loads(lines[1])
    wrong["stats"]["action"]["mean"][0] += 1
    file.write_text("\n".join([json.dumps(wrong), lines[0]]))
    refused(path, "action of episode 1 has the mean")
    wrong["episode_index"] = []
    file.write_text(json.dumps(wrong))
    assert len(list(LeRobot(path, fields=TOLD).episodes())) == 3


def test_times_far_on_are_held_against_the_rate_within_float32(tmp_path):
    """At 2,000 s, float32 times are 1.2e-4 s apart, more than the tolerance."""
    path = copied(tmp_path, "lerobot_v3_state")
    replace_column(path, "timestamp", pa.array(np.float32(2000 + 0.1 * np.arange(14))))
    assert len(list(LeRobot(path, fields=TOLD).episodes())) == 3


def test_jitter_is_allowed_when_asked(tmp_path):
    path = copied(tmp_path, "lerobot_v3_state")
    change_table(path, TABLE, "timestamp", lambda values: values.__setitem__(1, 0.102))
    refused(path, "tolerance_s")
    assert len(list(LeRobot(path, fields=TOLD, tolerance_s=0.005).episodes())) == 3


def test_a_table_shorter_or_longer_than_its_episodes_is_refused(tmp_path):
    path = copied(tmp_path, "lerobot_v3_state")
    table = pq.read_table(path / TABLE)
    pq.write_table(table.slice(0, 12), path / TABLE)
    refused(path, "has 12 rows, the table of episodes wants 11..13: it is shorter")
    pq.write_table(pa.concat_tables([table, table]), path / TABLE)
    refused(path, "has 28 rows, its episodes 14: the table of episodes lacks one")


def test_lists_of_changing_length_and_other_types_are_refused(tmp_path):
    path = copied(tmp_path, "lerobot_v3_state")
    rows = [[1.0, 2.0, 3.0]] * 13
    replace_column(path, "observation.state", pa.array([*rows, [1.0]], pa.list_(pa.float32())))
    refused(path, r"have \[1, 3\] elements", verify=False)
    nested = pa.array([[{"x": 1.0}] * 3] * 14)
    replace_column(path, "observation.state", nested)
    refused(path, "is list<.*struct")
    replace_column(path, "observation.state", pa.array(["text"] * 14))
    refused(path, "is string, which is not float32")


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    path = copied(tmp_path, "lerobot_v3_state")
    table = pq.read_table(path / TABLE)
    pq.write_table(table.append_column("action", table["action"]), path / TABLE)
    refused(path, "has 2 columns 'action'")


def test_doubles_and_lists_of_any_kind_are_read(tmp_path):
    """Other writers keep float32 as double, in lists without a fixed length."""
    path = copied(tmp_path, "lerobot_v3_state")
    values = pq.read_table(path / TABLE)["observation.state"].to_pylist()
    for kind in (pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float64(), 3)):
        replace_column(path, "observation.state", pa.array(values, kind))
        episode = next(LeRobot(path, fields=TOLD).episodes())
        np.testing.assert_array_equal(
            episode.fields["state"], np.stack([truth.state(0, step) for step in range(4)])
        )


def test_whole_numbers_that_do_not_fit_are_refused(tmp_path):
    path = copied(tmp_path, "lerobot_v3_state")
    feature = {"dtype": "uint8", "shape": [3]}
    change_info(path, lambda info: info["features"].update({"observation.state": feature}))
    replace_column(path, "observation.state", pa.array([[1, 2, 300]] * 14, pa.list_(pa.int64())))
    refused(path, "holds numbers that uint8 cannot", verify=False)
    feature["dtype"] = "int64"
    change_info(path, lambda info: info["features"].update({"observation.state": feature}))
    big = pa.array([[1, 2, 2**24 + 1]] * 14, pa.list_(pa.int64()))
    replace_column(path, "observation.state", big)
    refused(path, "does not fit float32", verify=False)


def pictures_of(path: Path) -> pa.ChunkedArray:
    return pq.read_table(path / TABLE)["observation.images.top"]


def test_pictures_that_are_not_there_or_damaged_are_refused(tmp_path):
    path = copied(tmp_path, "lerobot_v3_images")
    pictures = pictures_of(path).to_pylist()
    kind = pictures_of(path).type
    flipped = bytearray(pictures[2]["bytes"])
    flipped[60] ^= 1
    cases = {
        "picture is not in the table": {"bytes": None, "path": "/etc/passwd"},
        "is damaged .a checksum": {"bytes": bytes(flipped), "path": "x"},
        "is damaged .the PNG has no end": {"bytes": pictures[2]["bytes"][:8], "path": "x"},
        "is neither PNG nor JPEG": {"bytes": b"GIF89a", "path": "x"},
    }
    for message, value in cases.items():
        replace_column(
            path, "observation.images.top", pa.array([*pictures[:2], value, *pictures[3:]], kind)
        )
        refused(path, message)


def test_pictures_of_another_size_or_mode_are_refused(tmp_path):
    path = copied(tmp_path, "lerobot_v3_images")
    shape = {"dtype": "image", "shape": [16, 12, 3], "names": ["height", "width", "channels"]}
    change_info(path, lambda info: info["features"].update({"observation.images.top": shape}))
    refused(path, "has 12 x 16 points in mode RGB, but must have 16 x 12 in mode RGB")
    shape["shape"] = [12, 16, 1]
    change_info(path, lambda info: info["features"].update({"observation.images.top": shape}))
    refused(path, "in mode RGB, but must have 12 x 16 in mode L")


def test_channels_may_come_first(tmp_path):
    """Sizes of pictures are said in either order, the pictures are the same."""
    path = copied(tmp_path, "lerobot_v3_images")
    names = ["channels", "height", "width"]
    shape = {"dtype": "image", "shape": [3, 12, 16], "names": names}
    for kept in (names, None):
        shape["names"] = kept
        change_info(path, lambda info: info["features"].update({"observation.images.top": shape}))
        importer = LeRobot(path, fields=TOLD)
        assert importer.contract.observation["top"].shape == (12, 16, 3)
        assert np.array_equal(next(importer.episodes()).fields["top"][1], truth.picture(0, 1))


def test_plain_bytes_are_pictures_too(tmp_path):
    path = copied(tmp_path, "lerobot_v3_images")
    encoded = pictures_of(path).combine_chunks().field("bytes")
    replace_column(path, "observation.images.top", encoded)
    episode = next(LeRobot(path, fields=TOLD).episodes())
    assert np.array_equal(episode.fields["top"][3], truth.picture(0, 3))


@pytest.mark.parametrize("n_frames", [1, 13])
def test_a_video_shorter_than_its_table_is_refused_by_name(tmp_path, n_frames):
    path = copied(tmp_path, "lerobot_v3_video")
    frames = np.zeros((n_frames, truth.VIDEO_HEIGHT, truth.VIDEO_WIDTH, 3), np.uint8)
    write_video(path / VIDEO, frames)
    refused(path, r"episode \d: .*file-000\.mp4 ends at .* the video is shorter than its table")


def test_a_video_of_v21_shorter_than_its_table_is_refused_by_name(tmp_path):
    path = copied(tmp_path, "lerobot_v21_video")
    frames = np.zeros((6, truth.VIDEO_HEIGHT, truth.VIDEO_WIDTH, 3), np.uint8)
    video = "videos/chunk-000/observation.images.top/episode_000001.mp4"
    write_video(path / video, frames)
    refused(path, "episode 1: .*episode_000001.mp4 ends at 0.5000 s.* shorter than its table")


def test_a_video_of_another_size_is_refused(tmp_path):
    path = copied(tmp_path, "lerobot_v3_video")
    write_video(path / VIDEO, np.zeros((14, 32, 64, 3), np.uint8))
    refused(path, "has frames of 32 x 64 points, the data set says 64 x 96")


def write_video(path: Path, frames: np.ndarray) -> None:
    writer = VideoWriter(path, rate=truth.FPS, size=frames.shape[1:3], codec="h264")
    writer.add(frames)
    writer.close()


def test_without_pyarrow_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[lerobot\]'"):
        LeRobot(truth.FILES / "lerobot_v3_state", fields=TOLD)
