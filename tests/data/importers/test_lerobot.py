"""LeRobot data sets, written by lerobot itself: what comes in is what was recorded."""

import dataclasses
import json
import shutil
from pathlib import Path

import make_lerobot_files as truth
import numpy as np
import pytest

from data.importers.importer import ImporterError
from data.importers.lerobot import LeRobot
from data.types import ContractError, Field

FILES = truth.FILES
KINDS = sorted(path.name for path in FILES.glob("lerobot_*"))
VIDEO_LOSS = 4  # levels of 255 that both codecs may be off in frames of one colour
TOLD = {
    "state": {"unit": ["m", "m", "rad"]},
    "action": {"unit": "m", "kind": "delta", "rotation": "none"},
}


def opened(name: str, **settings) -> LeRobot:
    return LeRobot(FILES / name, fields=settings.pop("fields", TOLD), **settings)


def steps(of, episode: int) -> np.ndarray:
    return np.stack([of(episode, step) for step in range(truth.LENGTHS[episode])])


def test_there_are_files_of_both_versions():
    assert {
        json.loads((FILES / k / "meta/info.json").read_text())["codebase_version"] for k in KINDS
    } == {
        "v2.1",
        "v3.0",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_the_recorded_one(kind):
    importer = opened(kind)
    assert importer.n_episodes == len(truth.LENGTHS)
    episodes = list(importer.episodes())
    assert len(episodes) == len(truth.LENGTHS)
    for number, episode in enumerate(episodes):
        assert set(episode.fields) == set(importer.contract.fields)
        for name, of in (("state", truth.state), ("action", truth.action)):
            assert episode.fields[name].dtype == np.float32
            np.testing.assert_array_equal(episode.fields[name], steps(of, number))
        if kind.endswith("images"):
            np.testing.assert_array_equal(episode.fields["top"], steps(truth.picture, number))
        if "video" in kind:
            frames = episode.fields["top"]
            assert frames.dtype == np.uint8
            apart = np.abs(frames.astype(int) - steps(truth.video_frame, number))
            assert apart.max() <= VIDEO_LOSS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [1, 2, 3])
def test_earlier_episodes_are_passed_by(kind, first):
    importer = opened(kind)
    whole = list(importer.episodes())[first:]
    rest = list(importer.episodes(first))
    assert len(rest) == len(whole) == len(truth.LENGTHS) - first
    for a, b in zip(rest, whole, strict=True):
        assert a.metadata == b.metadata
        for name in a.fields:
            np.testing.assert_array_equal(a.fields[name], b.fields[name])


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_says_what_was_told_and_what_the_files_say(kind):
    contract = opened(kind).contract
    assert contract.control_dt == 1 / truth.FPS
    assert contract.task == "reach, push"
    assert contract.observation["state"] == Field((3,), unit=("m", "m", "rad"))
    assert contract.action == Field((2,), unit="m", kind="delta")
    if "video" in kind:
        size = (truth.VIDEO_HEIGHT, truth.VIDEO_WIDTH, 3)
        assert contract.observation["top"] == Field(size, "uint8")


@pytest.mark.parametrize("kind", ["lerobot_v3_state", "lerobot_v21_state"])
def test_metadata_is_the_task_and_the_success(kind):
    metadata = [episode.metadata for episode in opened(kind).episodes()]
    assert [entry["task"] for entry in metadata] == list(truth.TASKS)
    assert [entry["success"] for entry in metadata] == [False, True, False]


def test_what_is_left_out_is_said():
    left_out = opened("lerobot_v3_state").left_out
    assert set(left_out) == {"next.reward", "next.success"}
    assert "success" in left_out["next.success"]


def test_what_the_format_does_not_say_is_asked_for_with_the_names_it_gives():
    with pytest.raises(ContractError) as error:
        opened("lerobot_v3_images", fields={})
    for wanted in ("fields.state.unit=", "fields.action.unit=", "fields.action.kind="):
        assert wanted in str(error.value)
    assert "fields.top" not in str(error.value)
    assert "state: x, y, angle" in str(error.value)


def test_a_unit_too_few_is_refused():
    with pytest.raises(ContractError, match="unit has 2 entries"):
        opened("lerobot_v3_state", fields={**TOLD, "state": {"unit": ["m", "m"]}})


def test_features_are_renamed_and_cut():
    importer = opened(
        "lerobot_v3_state",
        take={"pose": {"key": "observation.state", "elements": [2, 0]}, "paid": "next.reward"},
        fields={"pose": {"unit": "1"}, "paid": {"unit": "1"}, "action": TOLD["action"]},
    )
    episode = next(importer.episodes(1))
    np.testing.assert_array_equal(episode.fields["pose"], steps(truth.state, 1)[:, [2, 0]])
    assert episode.fields["paid"][:, 0].tolist() == pytest.approx([i / 10 for i in range(7)])


@pytest.mark.parametrize("take", [["observation.state"], ["state"], "state", ["state", "action"]])
def test_some_features_are_taken(take):
    assert set(opened("lerobot_v3_images", take=take).contract.fields) == {"state", "action"}


def test_a_feature_is_left_out():
    importer = opened("lerobot_v3_video", leave_out=["observation.images.top"])
    assert set(importer.contract.fields) == {"state", "action"}
    assert importer.left_out["observation.images.top"] == "asked to"


def test_truth_values_become_numbers():
    fields = {"done": {"unit": "1"}, "action": TOLD["action"]}
    importer = opened("lerobot_v3_state", take={"done": "next.success"}, fields=fields)
    episode = next(importer.episodes(1))
    assert episode.fields["done"][:, 0].tolist() == [0] * 6 + [1]
    assert "success" not in episode.metadata


def test_the_task_and_the_rate_may_be_told_again():
    assert opened("lerobot_v3_state", task="tidy up").contract.task == "tidy up"
    assert opened("lerobot_v3_state", control_dt=0.1).contract.control_dt == 0.1


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"take": ["nothing"]}, ImporterError, "no feature 'nothing'; it has action"),
        ({"leave_out": ["nothing"]}, ImporterError, "no feature 'nothing'"),
        ({"leave_out": ["action"]}, ImporterError, "needs an action and an observation"),
        ({"leave_out": ["observation.state"]}, ImporterError, "needs an action and an obs"),
        ({"take": {"pose": 3}}, ContractError, r"take.pose is 3, it must be the name"),
        (
            {"take": {"pose": {"key": "observation.state", "elements": [3]}}},
            ImporterError,
            r"elements \[3\] are wanted",
        ),
        (
            {"take": {"pose": {"key": "observation.state", "elements": "01"}}},
            ContractError,
            "take.pose.elements are '01', they must be numbers",
        ),
        ({"control_dt": 0.05}, ContractError, "control_dt is 0.05 s, but .* fps 10"),
        ({"tolerance_s": 0.0}, ImporterError, "tolerance_s is 0.0 s, it must be positive"),
        ({"fields": {"nothing": {}}}, ContractError, "fields tells of"),
    ],
)
def test_wrong_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        opened("lerobot_v3_state", **settings)


def test_features_that_would_have_one_name_are_refused(tmp_path):
    path = Path(shutil.copytree(FILES / "lerobot_v3_images", tmp_path / "copy"))
    info = json.loads((path / "meta/info.json").read_text())
    info["features"]["observation.top"] = info["features"]["observation.images.top"]
    (path / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(ImporterError, match="would both become the field 'top'"):
        LeRobot(path, fields=TOLD)


def test_many_tasks_are_counted(tmp_path):
    path = Path(shutil.copytree(FILES / "lerobot_v21_state", tmp_path / "copy"))
    lines = [{"task_index": i, "task": f"task {i}"} for i in range(30)]
    (path / "meta/tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    importer = LeRobot(path, fields=TOLD)
    assert importer.contract.task == "30 tasks"
    assert next(importer.episodes(1)).metadata["task"] == "task 1"


def test_several_files_are_one_data_set(tmp_path):
    """Episodes of v3 in a table and a file of their own, as a size limit or a merge makes them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(shutil.copytree(FILES / "lerobot_v3_state", tmp_path / "copy"))
    meta = path / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(meta)
    moved = rows.column_names.index("data/file_index")
    rows = rows.set_column(moved, "data/file_index", pa.array([0, 1, 1]))
    pq.write_table(rows.slice(0, 2), meta)
    pq.write_table(rows.slice(2), meta.with_name("file-001.parquet"))
    steps_file = path / "data/chunk-000/file-000.parquet"
    table = pq.read_table(steps_file)
    pq.write_table(table.slice(0, 4), steps_file)
    # Row groups of two steps, so that episodes lie across their borders.
    pq.write_table(table.slice(4), steps_file.with_name("file-001.parquet"), row_group_size=2)
    for first in range(3):
        for number, episode in enumerate(LeRobot(path, fields=TOLD).episodes(first), first):
            np.testing.assert_array_equal(episode.fields["state"], steps(truth.state, number))


def test_one_episode_is_read_at_a_time(tmp_path):
    path = Path(shutil.copytree(FILES / "lerobot_v21_state", tmp_path / "copy"))
    episodes = LeRobot(path, fields=TOLD).episodes()
    next(episodes)
    (path / "data/chunk-000/episode_000001.parquet").write_bytes(b"")
    with pytest.raises(ImporterError, match=r"episode_000001\.parquet is damaged"):
        next(episodes)


def test_the_contract_is_that_of_any_other_importer():
    contract = opened("lerobot_v3_video").contract
    assert dataclasses.replace(contract).to_json()["control_dt"] == 0.1
    assert list(contract.fields)[-1] == "action"
