"""Minari's data sets, made by minari: flat names, the last observation, pictures, broken ones."""

import io
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from data.importers.importer import ImporterError
from data.importers.minari import Minari
from data.importers.samples import ACTION, UNITS, episodes, write_minari

TOLD = {"robot_arm": UNITS, "action": ACTION}
LENGTHS = (4, 3, 6)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return write_minari(tmp_path_factory.mktemp("minari"), episodes(lengths=LENGTHS))


@pytest.fixture
def path(made, tmp_path) -> Path:
    """A copy to be changed."""
    target = tmp_path / "sample-v0" / "data"
    target.mkdir(parents=True)
    for file in (made / "data").iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target.parent


def opened(path: Path, **settings) -> Minari:
    return Minari(path, **{"fields": TOLD, "control_dt": 0.1} | settings)


def read(path: Path, **settings) -> list[dict[str, np.ndarray]]:
    return [episode.fields for episode in opened(path, **settings).episodes()]


def test_a_data_set_is_found_by_its_folder_or_its_file(path):
    for place in (path, path / "data", path / "data" / "main_data.hdf5"):
        assert opened(place).n_episodes == 3


def test_limits_task_and_outcome_come_from_the_data_set(path):
    importer = opened(path)
    assert importer.contract.task == "cadence/sample-v0"
    assert importer.contract.action.low == (-1, -1)
    assert importer.contract.observation["robot_arm"].high == (2, 2)
    assert [episode.metadata for episode in importer.episodes()] == [
        {"name": "episode_0", "seed": 100, "ended": "terminal", "success": True},
        {"name": "episode_1", "seed": 101, "ended": "timeout", "success": False},
        {"name": "episode_2", "seed": 102, "ended": "terminal", "success": True},
    ]
    assert opened(path, task="walk").contract.task == "walk"


def test_a_success_longer_than_its_episode_is_not_read(path):
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        del file["episode_0/infos/success"]
        file["episode_0/infos/success"] = np.ones(LENGTHS[0] + 2, bool)
    first, *others = [episode.metadata for episode in opened(path).episodes()]
    assert "success" not in first
    assert [metadata["success"] for metadata in others] == [False, True]


def test_the_observation_after_the_last_action_is_left_out(path):
    assert [len(fields["robot_arm"]) for fields in read(path)] == list(LENGTHS)
    with h5py.File(path / "data/main_data.hdf5") as file:
        arm = file["episode_0/observations/robot/arm"]
        assert isinstance(arm, h5py.Dataset)
        assert len(arm) == LENGTHS[0] + 1


def as_jpeg(path: Path, *, same_size: bool) -> None:
    """Store pictures as minari does with jpeg_encoding: a row of bytes each."""
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        for group in file.values():
            pictures = group["observations/camera"][:]
            encoded = []
            for picture in pictures:
                buffer = io.BytesIO()
                Image.fromarray(picture).save(buffer, format="JPEG")
                encoded.append(np.frombuffer(buffer.getvalue(), np.uint8))
            del group["observations/camera"]
            if same_size:
                size = max(map(len, encoded))
                rows = np.stack([np.pad(e, (0, size - len(e))) for e in encoded])
                group.create_dataset("observations/camera", data=rows)
            else:
                dtype = h5py.vlen_dtype(np.uint8)
                array = group.create_dataset("observations/camera", (len(encoded),), dtype)
                for index, row in enumerate(encoded):
                    array[index] = row


@pytest.mark.parametrize("same_size", [True, False])
def test_pictures_kept_as_jpeg_are_decoded(path, same_size):
    plain = read(path)
    as_jpeg(path, same_size=same_size)
    for found, before in zip(read(path), plain, strict=True):
        assert found["camera"].shape == before["camera"].shape
        for picture, original in zip(found["camera"], before["camera"], strict=True):
            buffer = io.BytesIO()
            Image.fromarray(original).save(buffer, format="JPEG")
            np.testing.assert_array_equal(picture, np.asarray(Image.open(buffer)))


def test_jpegs_by_minari_itself_are_decoded(tmp_path):
    import gymnasium as gym
    import minari
    from minari.data_collector import EpisodeBuffer

    pictures = episodes()[0]["camera"]
    space = gym.spaces.Box(0, 255, pictures.shape[1:], np.uint8)
    buffer = EpisodeBuffer(
        id=0,
        observations=pictures,  # pyright: ignore[reportArgumentType]
        actions=[np.zeros(2, np.float32)] * 3,
        rewards=[0.0] * 3,
        terminations=[False, False, True],
        truncations=[False] * 3,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
        with pytest.warns(UserWarning, match="description"):
            minari.create_dataset_from_buffers(
                "jpeg-v0",
                buffer=[buffer],
                observation_space=space,
                action_space=gym.spaces.Box(-1, 1, (2,), np.float32),
                jpeg_encoding=True,
            )
        (episode,) = minari.load_dataset("jpeg-v0").iterate_episodes()
    (found,) = read(tmp_path / "jpeg-v0", fields={"action": ACTION})
    np.testing.assert_array_equal(found["state"], episode.observations[:-1])


def test_a_picture_that_is_none(path):
    as_jpeg(path, same_size=True)
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        camera = file["episode_1/observations/camera"]
        assert isinstance(camera, h5py.Dataset)
        camera[2] = 0
    with pytest.raises(ImporterError, match=r"episode_1: camera, step 2 is no picture of shape"):
        read(path)
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(buffer, format="JPEG")
        rows = np.tile(np.frombuffer(buffer.getvalue(), np.uint8), (5, 1))
        del file["episode_0/observations/camera"]
        file["episode_0/observations/camera"] = rows
    with pytest.raises(ImporterError, match="8 x 9 pixels"):
        read(path)


def change(path: Path, what: str, values: object) -> None:
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        del file[what]
        if values is not None:
            file[what] = values


@pytest.mark.parametrize(
    ("what", "values", "complaint"),
    [
        (
            "episode_1/actions",
            np.zeros((2, 2), np.float32),
            "says it has 3 steps, it has 2 actions",
        ),
        (
            "episode_1/observations/robot/arm",
            np.zeros((3, 2)),
            r"robot_arm has shape \(3, 2\), 4 rows",
        ),
        ("episode_1/observations/robot/arm", np.zeros(()), r"robot_arm has shape \(\), 4 rows"),
        ("episode_1/observations/robot/arm", np.full((4, 2), np.nan), "is not a finite number"),
        ("episode_1/observations/robot/arm", np.zeros((4, 2), "f4"), "dtype float32, in the first"),
        ("episode_1/observations/robot", None, "lacks robot_arm"),
        ("episode_1/observations/robot", h5py.ExternalLink("x", "y"), "is a link to y in the file"),
        ("episode_0/observations/action", np.zeros((5, 1)), "an observation is called 'action'"),
        ("episode_0/actions/left", np.zeros((5, 1)), "the actions are a dictionary"),
        ("episode_2", None, "holds 2 episodes, metadata.json says 3"),
        ("episode_3", np.zeros(1), "holds 4 episodes"),
        ("other", np.zeros(1), "holds 'other', Minari files hold episode_NUMBER alone"),
        ("episode_1", None, "episodes are missing, the highest is 2"),
    ],
)
def test_episodes_that_cannot_be_imported(path, what, values, complaint):
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        if what == "episode_0/actions/left":
            del file["episode_0/actions"]
        file.require_group(what) if what not in file else None
    change(path, what, values)
    with pytest.raises(ImporterError, match=complaint):
        read(path)


def edit(path: Path, **entries: object) -> None:
    file = path / "data/metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"total_episodes": 4}, "holds 3 episodes, metadata.json says 4"),
        ({"total_steps": 14}, "its episodes say 13 steps, metadata.json says 14"),
        ({"observation_space": "{"}, "observation_space cannot be read"),
        ({"action_space": 3}, "action_space cannot be read"),
        ({"action_space": '{"low": -1, "shape": [3]}'}, "low has 3 values, the field has 2"),
        (
            {
                "observation_space": json.dumps(
                    {"subspaces": {"camera": {"dtype": "uint8", "shape": [8, -8, 3]}}}
                )
            },
            r"a picture has the shape \[8, -8, 3\]",
        ),
    ],
)
def test_metadata_that_lie(path, entries, complaint):
    edit(path, **entries)
    with pytest.raises(ImporterError, match=complaint):
        read(path)


@pytest.mark.parametrize(
    "space",
    [
        [],
        {},
        {"low": [-1, "a"], "shape": [2]},
        {"low": -1, "high": 1e38, "shape": [2, 1]},
        {"shape": [2]},
    ],
)
def test_limits_that_do_not_fit_are_left_out(path, space):
    edit(path, action_space=json.dumps(space))
    contract = opened(path).contract
    assert (contract.action.low, contract.action.high) == (None, None)


def test_tuples_and_discrete_observations_are_flattened(path):
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        for group in file.values():
            rows = len(group["actions"]) + 1
            del group["observations"]
            group["observations/_index_0"] = np.arange(rows)
            group["observations/_index_1/q"] = np.ones((rows, 3), np.float32)
    spaces = {"type": "Tuple", "subspaces": [{"type": "Discrete"}, {"subspaces": {"q": {}}}]}
    edit(path, observation_space=json.dumps(spaces))
    take = {"count": "_index_0", "q": "_index_1_q"}
    told = {"count": {"unit": "1"}, "q": UNITS, "action": ACTION}
    first = read(path, take=take, fields=told)[0]
    assert first["count"].tolist() == [[0], [1], [2], [3]]
    assert first["q"].shape == (4, 3)


def test_what_is_no_data_set(tmp_path, path):
    with pytest.raises(ImporterError, match=r"holds no main_data.hdf5"):
        opened(tmp_path)
    (path / "data/metadata.json").write_text("[1]")
    with pytest.raises(ImporterError, match="must be a JSON object"):
        opened(path)
    (path / "data/metadata.json").write_text("{")
    with pytest.raises(ImporterError, match=r"metadata.json cannot be read"):
        opened(path)
    (path / "data/metadata.json").unlink()
    with pytest.raises(ImporterError, match=r"metadata.json cannot be read"):
        opened(path)
    with h5py.File(path / "data/main_data.hdf5", "w"):
        pass
    (path / "data/metadata.json").write_text("{}")
    with pytest.raises(ImporterError, match="holds no episodes"):
        opened(path)


def test_metadata_too_large_to_be_any(path, monkeypatch):
    monkeypatch.setattr("data.importers.minari.JSON_BYTES", 10)
    with pytest.raises(ImporterError, match="which is no metadata"):
        opened(path)


def test_the_other_format_of_minari_is_named(path):
    (path / "data/main_data.hdf5").unlink()
    edit(path, data_format="arrow")
    with pytest.raises(ImporterError, match="in the format arrow, only hdf5 is read"):
        opened(path)
