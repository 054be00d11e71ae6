"""Every importer on a file made by the format's own library: numbers, order, memory, questions."""

import tracemalloc

import numpy as np
import pytest

from data.importers.d4rl import D4RL
from data.importers.diffusion_policy import DiffusionPolicy
from data.importers.dppo import DPPO
from data.importers.folder import Folder
from data.importers.minari import Minari
from data.importers.robomimic import Robomimic
from data.importers.samples import SAMPLES, episodes
from data.types import ContractError

CLASSES = {
    "diffusion_policy": DiffusionPolicy,
    "robomimic": Robomimic,
    "d4rl": D4RL,
    "minari": Minari,
    "dppo": DPPO,
    "npz": Folder,
    "csv": Folder,
}


@pytest.fixture(params=SAMPLES)
def name(request):
    return request.param


def test_episodes_come_as_they_were_made(name, tmp_path):
    made, sample = episodes(), SAMPLES[name]
    importer = sample.open(sample.write(tmp_path, made))
    assert importer.n_episodes == len(made)
    found = list(importer.episodes())
    for episode, original in zip(found, made, strict=True):
        expected = sample.expected(original)
        assert set(episode.fields) == set(expected) == set(importer.contract.fields)
        for field, values in expected.items():
            assert episode.fields[field].dtype == importer.contract.fields[field].dtype
            np.testing.assert_array_equal(episode.fields[field], values)
    names = [episode.metadata["name"] for episode in found]
    assert len(set(names)) == len(made)


def test_later_episodes_are_found_without_the_earlier_ones(name, tmp_path):
    made, sample = episodes(), SAMPLES[name]
    importer = sample.open(sample.write(tmp_path, made))
    for first in range(len(made) + 1):
        found = [episode.fields["action"] for episode in importer.episodes(first)]
        assert len(found) == len(made) - first
        for action, original in zip(found, made[first:], strict=True):
            np.testing.assert_array_equal(action, original["action"])


def test_more_episodes_than_ten_stay_in_order(name, tmp_path):
    made, sample = episodes(lengths=(2,) * 12), SAMPLES[name]
    importer = sample.open(sample.write(tmp_path, made))
    for episode, original in zip(importer.episodes(), made, strict=True):
        np.testing.assert_array_equal(episode.fields["action"], original["action"])


def test_all_that_is_not_said_is_asked_for_at_once(name, tmp_path):
    sample = SAMPLES[name]
    path = sample.write(tmp_path, episodes())
    with pytest.raises(ContractError) as error:
        CLASSES[name](path)
    said = sample.open(path).contract.fields
    for field in said:
        assert (f"fields.{field}.unit=..." in str(error.value)) == (not said[field].is_image)
    assert "fields.action.rotation=..." in str(error.value)
    # robomimic's file says the rate, and that the actions are deltas.
    is_said = name == "robomimic"
    assert ("control_dt=..." in str(error.value)) != is_said
    assert ("fields.action.kind=..." in str(error.value)) != is_said


def test_some_arrays_alone_under_other_names(name, tmp_path):
    sample = SAMPLES[name]
    path, made = sample.write(tmp_path, episodes()), episodes()
    key = {"robomimic": "eef_pos", "minari": "robot_arm", "d4rl": "observations"}.get(name, "state")
    kind = {} if name == "robomimic" else {"kind": "absolute"}
    importer = CLASSES[name](
        path,
        take={"second": {"key": key, "elements": [1]}},
        fields={
            "second": {"unit": "m"},
            "action": {"unit": "m", "rotation": "none", **kind},
        },
        control_dt=0.1,
    )
    (first, *_) = importer.episodes()
    assert set(first.fields) == {"second", "action"}
    np.testing.assert_array_equal(first.fields["second"], made[0]["state"][:, 1:])


def peak_memory(importer) -> int:
    """Bytes that were allocated at once while all episodes were read."""
    tracemalloc.start()
    try:
        for _ in importer.episodes():
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "csv"])  # It is slow.
def test_one_episode_at_a_time_is_in_memory(name, tmp_path):
    sample, peaks = SAMPLES[name], []
    length = 100 if sample.has_pictures else 2000
    for n_episodes in (2, 12):
        home = tmp_path / str(n_episodes)
        home.mkdir()
        importer = sample.open(sample.write(home, episodes(lengths=(length,) * n_episodes)))
        peak_memory(importer)  # What is imported and compiled once does not count.
        peaks.append(peak_memory(importer))
    one = sum(v.nbytes for v in sample.expected(episodes(lengths=(length,))[0]).values())
    assert peaks[1] < peaks[0] + 3 * one + 50_000 < peaks[0] + 10 * one
