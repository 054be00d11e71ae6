"""Episodes into a store: resumed where it stopped, never twice, never of two sources."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data.codec import Jpeg
from data.importers.importer import ImportedEpisode, ImporterError
from data.importers.intake import identity, take_in
from data.store import EpisodeStore, StoreError
from data.types import Contract, ContractError, Field

CONTRACT = Contract({"state": Field((1,), unit="m")}, Field((1,), unit="m"), 0.1)


class Given:
    """An importer of five episodes whose numbers are theirs; some of them are bad."""

    n_episodes = 5
    contract = CONTRACT

    def __init__(self, path: Path, *, bad=(), interrupt=None, metadata=None, ends=5, shift=0.0):
        self.path, self.bad, self.interrupt, self.ends = path, bad, interrupt, ends
        self.shift = shift
        self.metadata, self.read = metadata or {}, []
        path.touch()

    def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
        for index in range(first, self.ends):
            if index == self.interrupt:
                raise KeyboardInterrupt
            if index in self.bad:
                raise ImporterError(f"episode {index} is bad")
            self.read.append(index)
            values = np.full((index + 1, 1), index + self.shift, np.float32)
            yield ImportedEpisode(
                {"state": values, "action": values}, {"name": f"e{index}", **self.metadata}
            )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.zarr"


def numbers(path: Path) -> list[int]:
    """The source's numbers of the stored episodes, by their metadata and by their values."""
    store = EpisodeStore.open(path)
    by_metadata = [entry["source_number"] for entry in store.episode_metadata]
    by_value = [int(store.read("state", episodes=[i])[0, 0]) for i in range(store.n_episodes)]
    assert by_metadata == by_value
    assert [entry["name"] for entry in store.episode_metadata] == [f"e{n}" for n in by_value]
    return by_value


def test_all_episodes_come_with_where_they_are_from(path, tmp_path):
    importer, heard = Given(tmp_path / "src"), []
    outcome = take_in(importer, path, progress=heard.append)
    assert (outcome.n_total, outcome.n_there, outcome.n_added, outcome.n_steps) == (5, 0, 5, 15)
    assert not outcome.left_out
    assert not outcome.is_interrupted
    assert [report.n_added for report in heard] == [1, 2, 3, 4, 5]
    assert numbers(path) == [0, 1, 2, 3, 4]
    sources = {entry["source"] for entry in EpisodeStore.open(path).episode_metadata}
    assert sources == {identity(tmp_path / "src")}


def test_ctrl_c_leaves_whole_episodes_and_the_next_import_goes_on(path, tmp_path):
    outcome = take_in(Given(tmp_path / "src", interrupt=2), path)
    assert (outcome.is_interrupted, outcome.n_added) == (True, 2)
    assert numbers(path) == [0, 1]
    importer = Given(tmp_path / "src")
    outcome = take_in(importer, path)
    # Episode 1 is read again to see that it is what is stored.
    assert (outcome.n_there, outcome.n_added, importer.read) == (2, 3, [1, 2, 3, 4])
    assert numbers(path) == [0, 1, 2, 3, 4]
    importer = Given(tmp_path / "src")
    assert take_in(importer, path).n_added == 0
    assert importer.read == [4]


def test_ctrl_c_before_the_first_episode_leaves_no_store(path, tmp_path):
    outcome = take_in(Given(tmp_path / "src", interrupt=0), path)
    assert (outcome.is_interrupted, outcome.n_added, path.exists()) == (True, 0, False)


def test_a_bad_episode_ends_the_import_unless_it_is_to_be_left_out(path, tmp_path):
    with pytest.raises(ImporterError, match=r"episode 1 is bad \(bad=leave_out"):
        take_in(Given(tmp_path / "src", bad=[1]), path)
    assert numbers(path) == [0]
    outcome = take_in(Given(tmp_path / "src", bad=[1, 3]), path, leave_out_bad=True)
    assert outcome.left_out == ("episode 1: episode 1 is bad", "episode 3: episode 3 is bad")
    assert (outcome.n_there, outcome.n_added) == (1, 2)
    assert numbers(path) == [0, 2, 4]
    # Once the source is mended, the missing ones alone are read.
    importer = Given(tmp_path / "src")
    assert take_in(importer, path).n_added == 2
    assert importer.read == [4, 1, 3]
    assert numbers(path) == [0, 2, 4, 1, 3]


def test_if_no_episode_is_good_no_store_is_made(path, tmp_path):
    outcome = take_in(Given(tmp_path / "src", bad=range(5)), path, leave_out_bad=True)
    assert (len(outcome.left_out), path.exists()) == (5, False)


def test_another_source_is_refused(path, tmp_path):
    take_in(Given(tmp_path / "src", interrupt=2), path)
    with pytest.raises(StoreError, match=r"holds src .*, this is other .*: import into another"):
        take_in(Given(tmp_path / "other"), path)
    assert numbers(path) == [0, 1]


def grown(home: Path, **settings: object) -> Given:
    """The data set, changed since it was imported."""
    importer = Given(home / "src", **settings)  # pyright: ignore[reportArgumentType]
    importer.path.write_text("grown")
    return importer


def test_a_source_that_has_grown_is_topped_up(path, tmp_path):
    first, said = Given(tmp_path / "src", ends=3), []
    first.n_episodes = 3
    assert take_in(first, path, say=said.append).n_added == 3
    assert not said
    importer = grown(tmp_path)
    outcome = take_in(importer, path, say=said.append)
    assert (outcome.n_there, outcome.n_added) == (3, 2)
    assert importer.read == [0, 1, 2, 3, 4]  # All that is there is read again.
    assert "src has changed since 3 of its episodes were imported" in said[0]
    assert numbers(path) == [0, 1, 2, 3, 4]
    sources = [entry["source"] for entry in EpisodeStore.open(path).episode_metadata]
    assert len(set(sources[:3])) == len(set(sources[3:])) == 1
    assert sources[0] != sources[4] == identity(tmp_path / "src")
    # That it is the same was seen; it is not read again.
    importer = grown(tmp_path)
    assert take_in(importer, path, say=said.append).n_added == 0
    assert (importer.read, len(said)) == ([4], 1)


def test_a_source_whose_beginning_has_changed_is_refused_by_name(path, tmp_path):
    take_in(Given(tmp_path / "src", interrupt=3), path)

    class Inserted(Given):
        def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
            for number, episode in enumerate(super().episodes(first), start=first):
                if number == 1:
                    episode.fields["action"][0] += 1
                yield episode

    importer = Inserted(tmp_path / "src")
    importer.path.write_text("changed")
    with pytest.raises(
        StoreError, match=r"holds number 1 of .*src .*its state, action would be another"
    ):
        take_in(importer, path)
    fewer = grown(tmp_path)
    fewer.n_episodes = 2
    with pytest.raises(StoreError, match=r"holds number 2 of .*src .*the last is number 1"):
        take_in(fewer, path)
    assert numbers(path) == [0, 1, 2]


def test_of_a_changed_source_every_picture_is_compared(path, tmp_path):
    class Camera(Given):
        contract = Contract({"camera": Field((8, 8, 3), "uint8")}, Field((1,), unit="m"), 0.1)
        grey = 100

        def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
            for episode in super().episodes(first):
                action = np.repeat(episode.fields["action"], 3)[:, None]
                camera = np.full((len(action), 8, 8, 3), 100, np.uint8)
                camera[1] = self.grey
                yield ImportedEpisode({"camera": camera, "action": action}, episode.metadata)

    take_in(Camera(tmp_path / "src", interrupt=2), path, codec=Jpeg(50))
    other = Camera(tmp_path / "src")
    other.path.write_text("changed")
    other.grey = 140
    with pytest.raises(StoreError, match="its camera would be another now"):
        take_in(other, path)
    other.grey = 100
    assert take_in(other, path).n_added == 3


def test_small_whole_numbers_are_no_pictures(path, tmp_path):
    class Gripper(Given):
        contract = Contract({"open": Field((1,), "uint8")}, Field((1,), unit="m"), 0.1)

        def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
            for episode in super().episodes(first):
                action = episode.fields["action"]
                is_open = np.full(action.shape, self.shift, np.uint8)
                yield ImportedEpisode({"open": is_open, "action": action - self.shift}, {})

    take_in(Gripper(tmp_path / "src", interrupt=2), path)
    with pytest.raises(StoreError, match="its open would be another now"):
        take_in(Gripper(tmp_path / "src", shift=1), path)


def test_other_settings_of_the_same_source_are_refused(path, tmp_path):
    take_in(Given(tmp_path / "src", interrupt=2), path)
    message = (
        r"holds number 1 of .*src .* \(its state, action would be another now\): give the sett"
    )
    with pytest.raises(StoreError, match=message):
        take_in(Given(tmp_path / "src", shift=0.5), path)
    fewer = Given(tmp_path / "src")
    fewer.n_episodes = 1
    with pytest.raises(StoreError, match="the last is number 0"):
        take_in(fewer, path)
    assert numbers(path) == [0, 1]
    # Another library may round otherwise.
    assert take_in(Given(tmp_path / "src", shift=1e-7), path).n_added == 3


def test_another_camera_is_refused_and_the_loss_of_a_codec_is_not(path, tmp_path):
    contract = Contract({"camera": Field((8, 8, 3), "uint8")}, Field((1,), unit="m"), 0.1)

    class Camera(Given):
        contract: Contract
        grey = 100

        def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
            for episode in super().episodes(first):
                action = episode.fields["action"]
                camera = np.full((len(action), 8, 8, 3), self.grey, np.uint8)
                yield ImportedEpisode({"camera": camera, "action": action}, episode.metadata)

    Camera.contract = contract
    take_in(Camera(tmp_path / "src", interrupt=2), path, codec=Jpeg(50))
    other = Camera(tmp_path / "src")
    other.grey = 140
    with pytest.raises(StoreError, match=r"its camera would be another now"):
        take_in(other, path)
    assert take_in(Camera(tmp_path / "src"), path).n_added == 3


def test_hidden_episodes_are_there(path, tmp_path):
    take_in(Given(tmp_path / "src", interrupt=3), path)
    with EpisodeStore.open(path, mode="a") as store:
        store.edit(hide=[0, 2], metadata={1: {"name": "relabelled"}})
    outcome = take_in(Given(tmp_path / "src"), path)
    assert (outcome.n_there, outcome.n_added) == (3, 2)
    with EpisodeStore.open(path, mode="a") as store:
        store.edit(hide=range(store.n_episodes))
    assert take_in(Given(tmp_path / "src"), path).n_added == 0
    with EpisodeStore.open(path, mode="a") as store:
        store.edit(show_all=True)
        assert [entry["source_number"] for entry in store.recorded_metadata] == [0, 1, 2, 3, 4]


def test_a_store_of_recorded_episodes_is_refused(path, tmp_path):
    store = EpisodeStore.create(path, CONTRACT)
    store.append({"state": np.zeros((1, 1), "f4"), "action": np.zeros((1, 1), "f4")}, seed=3)
    del store
    with pytest.raises(StoreError, match="holds episodes of no import"):
        take_in(Given(tmp_path / "src"), path)


def test_a_store_within_the_source_is_refused(tmp_path):
    importer = Given(tmp_path / "src")
    importer.path = tmp_path
    for inside in (tmp_path / "store.zarr", tmp_path, tmp_path / "a" / ".." / "b"):
        with pytest.raises(StoreError, match="which is imported and must not change"):
            take_in(importer, inside)
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_a_store_of_another_meaning_is_refused(path, tmp_path):
    take_in(Given(tmp_path / "src", interrupt=1), path)
    importer = Given(tmp_path / "src")
    importer.contract = Contract(CONTRACT.observation, Field((1,), unit="rad"), 0.1)
    with pytest.raises(ContractError, match=r"action.unit is 'rad' in what is imported, but 'm'"):
        take_in(importer, path)


def test_a_store_of_more_fields_is_refused(path, tmp_path):
    more = Contract({**CONTRACT.observation, "x": Field((1,))}, CONTRACT.action, 0.1)
    EpisodeStore.create(path, more)
    with pytest.raises(ContractError, match=r"holds the fields \['action', 'state', 'x'\]"):
        take_in(Given(tmp_path / "src"), path)


def test_names_that_are_used_here_are_refused(path, tmp_path):
    for name in ("source", "source_number", "episode"):
        with pytest.raises(ImporterError, match=f"a value called '{name}'"):
            take_in(Given(tmp_path / "src", metadata={name: 1}), path)


def test_a_source_that_ends_early_is_damaged(path, tmp_path):
    with pytest.raises(ImporterError, match="ends before episode 3 of 5"):
        take_in(Given(tmp_path / "src", ends=3), path)


def test_the_identity_is_of_names_sizes_and_beginnings(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"1234")
    first = identity(tmp_path / "a")
    assert first == identity(tmp_path / "a")
    assert first.startswith("a ")
    seen = {first}
    (tmp_path / "a" / "x").write_bytes(b"1235")
    seen.add(identity(tmp_path / "a"))
    (tmp_path / "a" / "x").write_bytes(b"12345")
    seen.add(identity(tmp_path / "a"))
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    seen.add(identity(tmp_path / "a"))
    assert len(seen) == 4
    with pytest.raises(ImporterError, match="cannot be read: No such file"):
        identity(tmp_path / "nothing")
