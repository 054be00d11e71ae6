"""Batches against a slow loop, from every place; the split; what is refused and reported."""

import numpy as np
import pytest
import torch

from data.dataset import WindowDataset, choose_place, field_bytes, free_memory, split_episodes
from data.store import EpisodeStore, StoreError
from data.types import Contract, Field, Horizons

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
@pytest.mark.parametrize("memory_fraction", [0.5, 0.0])
def test_batches_equal_a_loop(store, episodes, memory_fraction):
    dataset = WindowDataset(store, HORIZONS, episodes=episodes, memory_fraction=memory_fraction)
    assert dataset.place == ("disk" if memory_fraction == 0 else "device")
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


def test_nothing_to_learn_from_is_refused(store, tmp_path):
    with pytest.raises(StoreError, match="zero episodes"):
        WindowDataset(EpisodeStore.create(tmp_path / "empty.zarr", CONTRACT), HORIZONS)
    with pytest.raises(StoreError, match="zero episodes"):
        WindowDataset(store, HORIZONS, episodes=[])
    with pytest.raises(StoreError, match=r"none of 2 episodes has 5 steps \(the longest has 3\)"):
        WindowDataset(store, Horizons(1, 8, 5), episodes=[1, 2])
    with pytest.raises(StoreError, match="which has 4"):
        WindowDataset(store, HORIZONS, episodes=[4])


@pytest.mark.parametrize(
    ("device_free", "host_free", "place"), [(10, 0, "device"), (9, 10, "host"), (9, 9, "disk")]
)
def test_the_fastest_memory_that_is_large_enough_is_chosen(device_free, host_free, place):
    chosen, reason = choose_place(
        5_000_000_000, device_free=device_free * 10**9, host_free=host_free * 10**9, fraction=0.5
    )
    assert chosen == place
    assert "5.000 GB needed" in reason


def test_bytes_of_the_fields():
    assert field_bytes(CONTRACT, 10) == 10 * (3 * 4 + 6 * 5 * 3 + 2 * 4)


def test_free_memory_is_a_sensible_number():
    assert 10**7 < free_memory(torch.device("cpu")) < 10**14


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
