"""DPPO's files: physical numbers again, cameras apart, and files that are refused."""

from pathlib import Path

import numpy as np
import pytest

from data.importers.dppo import DPPO
from data.importers.importer import ImporterError
from data.importers.samples import ACTION, UNITS, episodes, write_dppo
from data.types import ContractError

TOLD = {"state": UNITS, "action": ACTION}


def opened(path: Path, **settings) -> DPPO:
    return DPPO(path, **{"fields": TOLD, "control_dt": 0.1} | settings)


def read(path: Path, **settings) -> list[dict[str, np.ndarray]]:
    return [episode.fields for episode in opened(path, **settings).episodes()]


def write(path: Path, replace: dict[str, np.ndarray | None] | None = None) -> Path:
    """Trajectories of 2 and 3 steps that are not scaled, without images."""
    arrays = {
        "states": np.linspace(-1, 1, 10).reshape(5, 2),
        "actions": np.ones((5, 1), np.float32),
        "traj_lengths": np.array([2, 3]),
        **(replace or {}),
    }
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})  # pyright: ignore
    return path


def bounds(path: Path, replace: dict[str, np.ndarray | None] | None = None) -> Path:
    arrays = {
        "obs_min": np.array([-2.0, 0.0]),
        "obs_max": np.array([2.0, 10.0]),
        "action_min": np.array([5.0]),
        "action_max": np.array([5.0]),
        **(replace or {}),
    }
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})  # pyright: ignore
    return path


def test_numbers_become_what_they_were_before_they_were_scaled(tmp_path):
    path = write(tmp_path / "train.npz")
    bounds(tmp_path / "normalization.npz")
    first = read(path)[0]
    # -1 is the smallest value; 1 is the largest, and 1e-6 more, as DPPO divides by.
    expected = (np.linspace(-1, 1, 10).reshape(5, 2)[:2] + 1) / 2 * [4 + 1e-6, 10 + 1e-6]
    np.testing.assert_allclose(first["state"], expected + np.array([-2, 0]), rtol=1e-6)
    np.testing.assert_allclose(first["action"], 5 + 1e-6)  # A constant stays what it is.


def test_whether_numbers_are_scaled_is_asked_where_nothing_tells(tmp_path):
    path = write(tmp_path / "train.npz")
    with pytest.raises(ContractError, match=r"format.normalization=.* or format.scaled=false"):
        opened(path)
    np.testing.assert_array_equal(
        read(path, scaled=False)[0]["state"][0], np.array([-1, -7 / 9], np.float32)
    )
    elsewhere = bounds(tmp_path / "elsewhere.npz")
    assert read(path, normalization=elsewhere)[0]["state"][0, 0] == -2
    with pytest.raises(ImporterError, match=r"normalization.npz does not exist"):
        opened(path, scaled=True)
    with pytest.raises(ImporterError, match="but scaled=false: leave out one"):
        opened(path, scaled=False, normalization=elsewhere)
    bounds(tmp_path / "normalization.npz")
    assert read(path, scaled=False)[0]["state"][0, 0] == -1


@pytest.mark.parametrize(
    ("replace", "complaint"),
    [
        ({"obs_min": None}, r"obs_min must be \(2,\) finite numbers"),
        ({"obs_max": np.array([1.0])}, r"obs_max must be \(2,\)"),
        ({"action_min": np.array([np.nan])}, r"action_min must be \(1,\)"),
        ({"action_max": np.array([4.0])}, "action_min is above action_max"),
        ({"obs_min": np.array([None, None])}, "dtype object"),
        ({"obs_min": np.array(["a", "b"])}, "only real numbers"),
    ],
)
def test_a_normalization_that_does_not_fit(tmp_path, replace, complaint):
    path = write(tmp_path / "train.npz")
    bounds(tmp_path / "normalization.npz", replace)
    with pytest.raises(ImporterError, match=complaint):
        opened(path)


def test_two_cameras_are_told_apart(tmp_path):
    images = np.arange(5 * 6 * 4 * 5, dtype=np.uint8).reshape(5, 6, 4, 5)
    path = write(tmp_path / "train.npz", {"images": images})
    first = read(path, scaled=False)[0]
    assert set(first) == {"state", "image_0", "image_1", "action"}
    np.testing.assert_array_equal(first["image_1"][1, 2, 3], images[1, 3:, 2, 3])
    alone = read(path, scaled=False, take=["image_1"], fields={"action": ACTION})[1]
    assert set(alone) == {"image_1", "action"}
    np.testing.assert_array_equal(alone["image_1"][2, 0, 0], images[4, 3:, 0, 0])
    gray = write(tmp_path / "gray.npz", {"images": images[:, :1]})
    assert read(gray, scaled=False)[0]["image"].shape == (2, 4, 5, 1)


@pytest.mark.parametrize(
    ("replace", "complaint"),
    [
        ({"states": None}, "has no states, it has actions, traj_lengths"),
        ({"actions": None}, "has no actions"),
        ({"traj_lengths": None}, "has no traj_lengths"),
        ({"traj_lengths": np.array([2, 4])}, "states has 5 steps, traj_lengths sum to 6"),
        ({"traj_lengths": np.array([5, 0])}, "trajectory 1 has 0 steps"),
        ({"traj_lengths": np.array([-1, 6])}, "trajectory 0 has -1 steps"),
        ({"traj_lengths": np.array([2.0, 3.0])}, "must be whole numbers"),
        ({"traj_lengths": np.array([], np.int64)}, "must be whole numbers, at least one"),
        ({"actions": np.ones((4, 1))}, "actions has 4 steps"),
        ({"actions": np.full((5, 1), np.inf)}, "trajectory|episode 0: action is not a finite"),
        ({"actions": np.array([None] * 5)}, "dtype object, objects are never unpickled"),
        ({"images": np.zeros((5, 4, 4, 3), np.uint8)}, "channels x height x width"),
        ({"images": np.zeros((5, 4), np.uint8)}, "channels x height x width"),
    ],
)
def test_files_that_cannot_be_imported(tmp_path, replace, complaint):
    with pytest.raises(ImporterError, match=complaint):
        read(write(tmp_path / "train.npz", replace), scaled=False)


def test_more_trajectories_than_there_can_be(tmp_path, monkeypatch):
    monkeypatch.setattr("data.importers.dppo.MAX_TRAJECTORIES", 1)
    with pytest.raises(ImporterError, match="declares 2 trajectories"):
        read(write(tmp_path / "train.npz"), scaled=False)


def test_older_files_are_pickles_and_refused(tmp_path):
    import pickle

    path = tmp_path / "train.npz"
    path.write_bytes(pickle.dumps({"observations": np.zeros((2, 5, 3)), "traj_length": [4, 5]}))
    with pytest.raises(ImporterError, match="it is a pickle, which could run any code"):
        opened(path)


def test_published_layout_comes_back_from_its_own_scale(tmp_path):
    made = episodes(seed=3, lengths=(7, 9))
    for found, original in zip(read(write_dppo(tmp_path, made)), made, strict=True):
        np.testing.assert_allclose(found["state"], original["state"], atol=1e-6)
        np.testing.assert_array_equal(found["image"], original["camera"])
