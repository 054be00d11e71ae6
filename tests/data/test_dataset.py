"""Batches against a slow loop, from every place; the split; what is refused and reported."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from data.blocks import blocks_of
from data.dataset import WindowDataset, moved, split_episodes
from data.goals import Hindsight
from data.place import Reading
from data.store import EpisodeStore, StoreError
from data.types import Batch, Contract, Field, Horizons

CONTRACT = Contract(
    observation={"state": Field((3,)), "camera": Field((6, 5, 3), dtype="uint8")},
    action=Field((2,)),
    control_dt=0.1,
)
HORIZONS = Horizons(obs=3, pred=6, action=2)
LENGTHS = (7, 1, 3, 12)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> EpisodeStore:
    rng = np.random.default_rng(0)
    store = EpisodeStore.create(tmp_path_factory.mktemp("dataset") / "store.zarr", CONTRACT)
    for length in LENGTHS:
        store.append(
            {
                "state": rng.normal(size=(length, 3)),
                "camera": rng.integers(0, 256, (length, 6, 5, 3), dtype=np.uint8),
                "action": rng.normal(size=(length, 2)),
            }
        )
    return store


def window(store: EpisodeStore, episode: int, t: int) -> tuple[dict, np.ndarray, np.ndarray]:
    """Observations, actions and padding of one window, the slow way."""
    ends = [0, *store.episode_ends]
    rows = slice(ends[episode], ends[episode + 1])
    one = {name: np.asarray(store.array(name)[rows]) for name in CONTRACT.fields}
    length = len(one["action"])
    seen = [max(t - back, 0) for back in reversed(range(HORIZONS.obs))]
    acted = [min(t + ahead, length - 1) for ahead in range(HORIZONS.pred)]
    is_pad = np.array([t + ahead >= length for ahead in range(HORIZONS.pred)])
    return {n: one[n][seen] for n in CONTRACT.observation}, one["action"][acted], is_pad


@pytest.mark.parametrize("episodes", [None, [0, 3], [2, 1]])
@pytest.mark.parametrize("place", ["device", "host", "cache", "store"])
def test_batches_equal_a_loop(store, episodes, place, tmp_path):
    reading = Reading(place=place, cache=tmp_path)
    dataset = WindowDataset(store, HORIZONS, episodes=episodes, reading=reading)
    assert dataset.place == place
    chosen = range(len(LENGTHS)) if episodes is None else sorted(episodes)
    expected = [
        window(store, episode, t)
        for episode in chosen
        for t in range(LENGTHS[episode] - HORIZONS.action + 1)
    ]
    assert len(dataset) == len(expected)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    batch = dataset.batch(order)
    for row, index in enumerate(order.tolist()):
        observation, action, is_pad = expected[index]
        for name, value in observation.items():
            np.testing.assert_array_equal(batch.observation[name][row].numpy(), value)
        np.testing.assert_array_equal(batch.action[row].numpy(), action)
        np.testing.assert_array_equal(batch.is_pad[row].numpy(), is_pad)
    assert batch.observation["camera"].dtype == torch.uint8
    assert batch.action.dtype == torch.float32


def test_short_episodes_are_counted_and_reported(store):
    dataset = WindowDataset(store, HORIZONS)
    assert dataset.short_episodes == 1
    assert "1 episodes shorter than 2 steps left out" in dataset.report
    assert "memory of the device" in dataset.report


def test_arrays_hold_the_steps_of_the_episodes_without_images(store):
    arrays = WindowDataset(store, HORIZONS, episodes=[0, 2]).arrays()
    assert set(arrays) == {"state", "action"}
    np.testing.assert_array_equal(
        arrays["state"], np.concatenate([store.array("state")[0:7], store.array("state")[8:11]])
    )


PLACES = ["device", "host", "cache", "store", "nothing in memory"]


def reading_of(place: str, folder: Path) -> Reading:
    if place == "nothing in memory":  # Numbers are read from the store too.
        return Reading(memory_fraction=0.0, threads=3, ahead=4)
    return Reading(place=place, cache=folder, threads=3, ahead=4)


def equal(batch: Batch, other: Batch) -> bool:
    return (
        batch.observation.keys() == other.observation.keys()
        and all(torch.equal(x, other.observation[k]) for k, x in batch.observation.items())
        and torch.equal(batch.action, other.action)
        and torch.equal(batch.is_pad, other.is_pad)
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("goals", [None, Hindsight("state", elements=(0, 2))])
def test_batches_made_ahead_are_those_that_are_asked_for_one_by_one(store, place, goals, tmp_path):
    plain = WindowDataset(store, HORIZONS, goals=goals)
    dataset = WindowDataset(store, HORIZONS, goals=goals, reading=reading_of(place, tmp_path))
    assert dataset.place == ("store" if place == "nothing in memory" else place)

    def asked():
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            yield torch.randint(len(plain), (5,), generator=generator), generator

    with dataset.batches(asked()) as batches:
        made = list(batches)
    assert len(made) == 20
    for batch, (indices, generator) in zip(made, asked(), strict=True):
        assert equal(batch, plain.batch(indices, generator))


def test_batches_from_the_devices_own_memory_are_made_without_threads(store, tmp_path):
    for place, has_threads in (("device", False), ("host", False), ("store", True)):
        dataset = WindowDataset(store, HORIZONS, reading=reading_of(place, tmp_path))
        asked = ((torch.tensor([0]), None) for _ in range(100))
        with dataset.batches(asked) as batches:
            next(batches)
            names = [t.name for t in threading.enumerate()]
            assert any(name.startswith("prefetch") for name in names) == has_threads


@pytest.mark.parametrize("place", PLACES)
def test_statistics_are_the_same_from_every_place(store, place, tmp_path):
    goals = Hindsight("state", elements=(0, 2))
    plain = WindowDataset(store, HORIZONS, episodes=[0, 3], goals=goals)
    dataset = WindowDataset(
        store, HORIZONS, episodes=[0, 3], goals=goals, reading=reading_of(place, tmp_path)
    )
    assert dataset.arrays().keys() == {"state", "goal", "action"}
    for name, values in plain.arrays().items():
        blocks = list(blocks_of(dataset.arrays()[name]))
        np.testing.assert_array_equal(np.concatenate(blocks), values)


def test_another_selection_reads_the_same_cache(store, tmp_path):
    reading = Reading(place="cache", cache=tmp_path)
    for episodes in ([3], [0, 2], None):
        plain = WindowDataset(store, HORIZONS, episodes=episodes)
        cached = WindowDataset(store, HORIZONS, episodes=episodes, reading=reading)
        rows = torch.arange(len(plain))
        assert equal(cached.batch(rows), plain.batch(rows))
    assert len(list(tmp_path.iterdir())) == 1


def test_the_choice_is_reported_with_its_estimate(store, tmp_path):
    def report(reading):
        return WindowDataset(store, HORIZONS, reading=reading).report

    n_bytes = sum(LENGTHS) * (3 * 4 + 6 * 5 * 3 + 2 * 4)
    assert f"{n_bytes / 1e9:.3f} GB needed" in report(Reading())
    assert "free on this machine" in report(Reading()) or "left by" in report(Reading())
    assert f"a decoded cache in {tmp_path}" in report(Reading(place="cache", cache=tmp_path))
    assert "the store itself (as configured)" in report(Reading(place="store"))


def test_an_error_of_the_store_comes_out_of_a_prefetched_batch(store, monkeypatch):
    dataset = WindowDataset(store, HORIZONS, reading=Reading(place="store"))

    def refuse(self, key, rows):
        raise StoreError("data/camera is damaged")

    monkeypatch.setattr(EpisodeStore, "read_rows", refuse)
    asked = ((torch.tensor([0]), None) for _ in range(3))
    with dataset.batches(asked) as batches, pytest.raises(StoreError, match="is damaged"):
        next(batches)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("place", ["device", "host", "cache", "store"])
def test_batches_reach_a_gpu_as_they_are(store, place, tmp_path):
    plain = WindowDataset(store, HORIZONS)
    dataset = WindowDataset(store, HORIZONS, device="cuda", reading=reading_of(place, tmp_path))
    indices = [torch.randperm(len(plain))[:5] for _ in range(10)]
    with dataset.batches((one, None) for one in indices) as batches:
        for one, batch in zip(indices, batches, strict=True):
            assert batch.action.device.type == "cuda"
            assert equal(moved(batch, torch.device("cpu")), plain.batch(one))


def test_nothing_to_learn_from_is_refused(store, tmp_path):
    with pytest.raises(StoreError, match="zero episodes"):
        WindowDataset(EpisodeStore.create(tmp_path / "empty.zarr", CONTRACT), HORIZONS)
    with pytest.raises(StoreError, match="zero episodes"):
        WindowDataset(store, HORIZONS, episodes=[])
    with pytest.raises(StoreError, match=r"none of 2 episodes has 5 steps \(the longest has 3\)"):
        WindowDataset(store, Horizons(1, 8, 5), episodes=[1, 2])
    with pytest.raises(StoreError, match="which has 4"):
        WindowDataset(store, HORIZONS, episodes=[4])


@pytest.mark.parametrize(("fraction", "n_holdout"), [(0.0, 0), (0.001, 1), (0.1, 5), (0.99, 49)])
def test_a_split_is_a_partition_and_repeats(fraction, n_holdout):
    train, holdout = split_episodes(50, fraction, seed=3)
    assert sorted([*train, *holdout]) == list(range(50))
    assert len(holdout) == n_holdout
    again = split_episodes(50, fraction, seed=3)
    assert np.array_equal(again[0], train)
    assert np.array_equal(again[1], holdout)
    if n_holdout == 5:
        assert not np.array_equal(split_episodes(50, fraction, seed=4)[1], holdout)


def test_a_single_episode_is_trained_on():
    train, holdout = split_episodes(1, 0.5, seed=0)
    assert (train.tolist(), holdout.tolist()) == ([0], [])


def test_impossible_splits_are_refused():
    with pytest.raises(ValueError, match="0 episodes cannot be split"):
        split_episodes(0, 0.1, seed=0)
    for fraction in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"is {fraction}, it must be in \[0, 1\)"):
            split_episodes(10, fraction, seed=0)
