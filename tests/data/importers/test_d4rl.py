"""D4RL's files: where episodes end, and broken files."""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest

from data.importers.d4rl import D4RL
from data.importers.importer import ImporterError
from data.importers.samples import ACTION, UNITS
from data.types import ContractError

TOLD = {"state": UNITS, "action": ACTION}


def write(path: Path, replace: Mapping[str, object] | None = None) -> Path:
    """Eight steps: three until a terminal, two until a time-out, three that are cut off."""
    arrays = {
        "observations": np.arange(16, dtype=np.float32).reshape(8, 2),
        "actions": np.arange(8, dtype=np.float32)[:, None],
        "rewards": np.ones(8, np.float32),
        "terminals": np.isin(np.arange(8), [2]),
        "timeouts": np.isin(np.arange(8), [4]),
        **(replace or {}),
    }
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            if values is not None:
                file[name] = values
    return path


def found(path: Path, **settings) -> list[tuple[list[float], str]]:
    """Actions of each episode, and how it ended."""
    importer = D4RL(path, **{"fields": TOLD, "control_dt": 0.1} | settings)
    assert importer.n_episodes == len(list(importer.episodes()))
    return [
        (episode.fields["action"][:, 0].tolist(), str(episode.metadata["ended"]))
        for episode in importer.episodes()
    ]


def test_episodes_end_where_the_flags_are(tmp_path):
    assert found(write(tmp_path / "a.hdf5")) == [
        ([0, 1, 2], "terminal"),
        ([3, 4], "timeout"),
        ([5, 6, 7], "cut"),
    ]


def test_an_episode_that_ends_with_the_file_is_whole(tmp_path):
    timeouts = np.isin(np.arange(8), [4, 7])
    assert found(write(tmp_path / "a.hdf5", {"timeouts": timeouts}))[-1] == ([5, 6, 7], "timeout")


def test_flags_in_blocks_and_as_columns_of_numbers(tmp_path, monkeypatch):
    whole = found(write(tmp_path / "a.hdf5"))
    monkeypatch.setattr("data.importers.d4rl.BLOCK", 3)
    columns = {"terminals": np.isin(np.arange(8), [2]).astype(np.float32)[:, None]}
    assert found(write(tmp_path / "b.hdf5", columns)) == whole


def test_without_time_outs_the_length_must_be_told(tmp_path):
    path = write(tmp_path / "a.hdf5", {"timeouts": None})
    with pytest.raises(ContractError, match=r"format.max_steps=\.\.\."):
        found(path)
    assert found(path, max_steps=0) == [([0, 1, 2], "terminal"), ([3, 4, 5, 6, 7], "cut")]
    assert found(path, max_steps=2) == [
        ([0, 1], "timeout"),
        ([2], "terminal"),
        ([3, 4], "timeout"),
        ([5, 6], "timeout"),
        ([7], "cut"),
    ]
    assert found(path, max_steps=5)[-1] == ([3, 4, 5, 6, 7], "timeout")


def test_infos_may_be_taken(tmp_path):
    extra = {"infos/goal": np.full((8, 3), 7.0), "metadata/algorithm": np.bytes_("SAC")}
    path = write(tmp_path / "a.hdf5", extra)
    told = {"goal": UNITS, "action": ACTION}
    importer = D4RL(path, take={"goal": "infos_goal"}, fields=told, control_dt=0.1)
    assert next(iter(importer.episodes(2))).fields["goal"].tolist() == [[7, 7, 7]] * 3


@pytest.mark.parametrize(
    ("replace", "complaint"),
    [
        ({"observations": None}, "has no observations, it has actions, rewards"),
        ({"terminals": None}, "has no terminals"),
        ({"actions": np.zeros((7, 1), "f4")}, "its arrays have .* steps, not the same"),
        ({"observations": np.zeros((7, 1), "f4")}, "not the same"),
        ({"timeouts": np.zeros((8, 2))}, "timeouts must be one 0 or 1 for each step"),
        ({"terminals": np.full(8, 2)}, "terminals must be one 0 or 1"),
        (
            {"observations": np.full((8, 2), np.nan, "f4")},
            "episode 0: observations is not a finite",
        ),
        ({"observations": np.array(["a"] * 8, h5py.string_dtype())}, "dtype object"),
        ({"observations": h5py.SoftLink("/actions")}, "is a link to /actions"),
        ({"infos": h5py.ExternalLink("other.hdf5", "/")}, "link to / in the file 'other.hdf5'"),
        ({"infos": np.zeros(8)}, "infos is an array, it must be a group"),
    ],
)
def test_files_that_cannot_be_imported(tmp_path, replace, complaint):
    with pytest.raises(ImporterError, match=complaint):
        found(write(tmp_path / "a.hdf5", replace))


def test_a_file_of_no_steps(tmp_path):
    empty = {name: np.zeros((0, 1), "f4") for name in ("observations", "actions", "rewards")}
    flags = {name: np.zeros(0, bool) for name in ("terminals", "timeouts")}
    with pytest.raises(ImporterError, match="holds no steps"):
        found(write(tmp_path / "a.hdf5", empty | flags))
    (tmp_path / "b.hdf5").touch()
    with pytest.raises(ImporterError, match="it is empty"):
        found(tmp_path / "b.hdf5")
    with h5py.File(tmp_path / "c.hdf5", "w"):
        pass
    with pytest.raises(ImporterError, match="has no observations, it has nothing"):
        found(tmp_path / "c.hdf5")


@pytest.mark.parametrize("max_steps", [-1, 2.5, True, "4"])
def test_a_length_that_is_none_is_refused(tmp_path, max_steps):
    with pytest.raises(ImporterError, match=r"max_steps is .*, it must be a number of steps, or 0"):
        found(write(tmp_path / "a.hdf5", {"timeouts": None}), max_steps=max_steps)
