"""Goals in hindsight: where in the episode they come from, what they mean, what is refused."""

import numpy as np
import pytest
import torch

from data.dataset import WindowDataset
from data.goals import Hindsight
from data.normalize import Normalizer
from data.place import Reading
from data.store import EpisodeStore
from data.types import Contract, ContractError, Field, Horizons
from data.windows import window_table

CONTRACT = Contract(
    observation={
        "arm": Field(
            (4,),
            unit=("m", "m", "rad", "1"),
            frame="table",
            angles=(2,),
            discrete=(3,),
            low=(-1, -2, -3, 0),
            high=(1, 2, 3, 1),
            normalization="gaussian",
        ),
        "camera": Field((4, 5, 3), dtype="uint8"),
        "turn": Field((4,), rotation="quaternion_wxyz"),
    },
    action=Field((2,)),
    control_dt=0.1,
)
HORIZONS = Horizons(obs=3, pred=6, action=2)
LENGTHS = (7, 20)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> EpisodeStore:
    """Element 1 of the arm counts the steps of the whole store."""
    rng = np.random.default_rng(0)
    store = EpisodeStore.create(tmp_path_factory.mktemp("goals") / "store.zarr", CONTRACT)
    for start, length in zip(np.cumsum([0, *LENGTHS]), LENGTHS, strict=False):
        arm = rng.normal(size=(length, 4))
        arm[:, 1] = start + np.arange(length)
        store.append(
            {
                "arm": arm,
                "camera": rng.integers(0, 256, (length, 4, 5, 3), dtype=np.uint8),
                "turn": rng.normal(size=(length, 4)),
                "action": rng.normal(size=(length, 2)),
            }
        )
    return store


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("least", "most"), [(1, 4), (0, 0), (3, None), (5, 5), (30, None)])
def test_goals_come_from_the_range_and_never_from_another_episode(least, most):
    table = window_table(np.cumsum(LENGTHS), HORIZONS)
    goals = Hindsight("arm", least_ahead=least, most_ahead=most)
    seen = [goals.rows(table, generator(seed)) for seed in range(400)]
    for now, stop, *rows in zip(table.now, table.stop, *seen, strict=True):
        last = int(stop) - 1
        lowest = min(int(now) + least, last)
        highest = last if most is None else min(int(now) + most, last)
        assert set(map(int, rows)) == set(range(lowest, highest + 1))  # all of them, and no other


def test_goals_are_uniform_in_time():
    n, ahead = 60_000, 5
    table = window_table(np.array([n + 8]), Horizons(1, 1, 1)).select(torch.arange(n))
    rows = Hindsight("arm", least_ahead=1, most_ahead=ahead).rows(table, generator())
    counts = torch.bincount(rows - table.now, minlength=ahead + 1)[1:]
    expected = n / ahead
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert chi2 < 18.5  # 0.999 quantile of chi-squared with 4 degrees of freedom


@pytest.mark.parametrize("memory_fraction", [0.5, 0.0])
def test_a_batch_holds_one_goal_of_the_own_episode_at_all_observed_steps(store, memory_fraction):
    goals = Hindsight("arm", elements=(1, 0), least_ahead=2, most_ahead=4)
    dataset = WindowDataset(
        store, HORIZONS, goals=goals, reading=Reading(memory_fraction=memory_fraction)
    )
    batch = dataset.batch(torch.arange(len(dataset)), generator())
    goal = batch.observation["goal"]
    assert goal.shape == (len(dataset), 3, 2)
    assert torch.equal(goal, goal[:, :1].expand(-1, 3, -1))
    now = batch.observation["arm"][:, -1, 1]
    end = torch.tensor([float(LENGTHS[0] if row < LENGTHS[0] else sum(LENGTHS)) for row in now])
    ahead = goal[:, 0, 0] - now
    assert ((ahead >= 2) | (goal[:, 0, 0] == end - 1)).all()
    assert ((ahead <= 4) & (goal[:, 0, 0] < end)).all()
    rows = goal[:, 0, 0].long().numpy()
    np.testing.assert_array_equal(goal[:, 0, 1].numpy(), store.read("arm")[rows, 0])


def test_the_generator_alone_decides(store):
    dataset = WindowDataset(store, HORIZONS, goals=Hindsight("arm"))
    indices = torch.arange(len(dataset))
    first, again, other = (
        dataset.batch(indices, generator(seed)).observation["goal"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_goals_nothing_is_drawn_or_added(store):
    dataset, untouched = WindowDataset(store, HORIZONS), generator()
    batch = dataset.batch(torch.arange(4), untouched)
    assert torch.equal(untouched.get_state(), generator().get_state())
    assert set(batch.observation) == {"arm", "camera", "turn"}
    assert dataset.contract is store.contract


def test_an_image_can_be_the_goal(store):
    dataset = WindowDataset(store, HORIZONS, goals=Hindsight("camera", field="wanted"))
    goal = dataset.batch(torch.arange(5), generator()).observation["wanted"]
    assert (goal.shape, goal.dtype) == ((5, 3, 4, 5, 3), torch.uint8)
    assert dataset.contract.observation["wanted"] == CONTRACT.observation["camera"]
    assert "wanted" not in dataset.arrays()


def test_statistics_of_the_goal_are_those_of_its_elements(store):
    dataset = WindowDataset(store, HORIZONS, goals=Hindsight("arm", elements=[3, 1]))
    normalizer = Normalizer.fit(dataset.contract, dataset.arrays())
    arm = torch.randn(5, 4, generator=generator())
    whole = normalizer.normalize("arm", arm)  # elements 0, 1, 3, then cosine and sine of 2
    torch.testing.assert_close(normalizer.normalize("goal", arm[:, [3, 1]]), whole[:, [2, 1]])


def test_the_goal_means_what_its_elements_mean():
    contract = Hindsight("arm", elements=(2, 3, 0)).contract(CONTRACT)
    assert list(contract.observation) == ["arm", "camera", "turn", "goal"]
    assert contract.observation["goal"] == Field(
        (3,),
        unit=("rad", "1", "m"),
        frame="table",
        angles=(0,),
        discrete=(1,),
        low=(-3, 0, -1),
        high=(3, 1, 1),
        normalization="gaussian",
    )


def test_a_goal_of_another_width_is_refused_and_both_sides_are_named():
    policy = Hindsight("arm", elements=(0, 1)).contract(CONTRACT)
    goal = Field((3,), unit="m", frame="table")
    env = Contract({**CONTRACT.observation, "goal": goal}, CONTRACT.action, control_dt=0.1)
    with pytest.raises(ContractError, match=r"goal.*\(2,\) in the policy.*\(3,\) in the env"):
        policy.check(env, this="the policy", that="the env")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "leg"}, r"source is 'leg', the store has \['arm', 'camera', 'turn'\]"),
        ({"source": "arm", "field": "camera"}, "'camera', but the store has a field of that name"),
        ({"source": "arm", "field": "action"}, "'action', but the store has a field of that name"),
        ({"source": "arm", "elements": (0, 4)}, r"\(0, 4\), the field 'arm' has shape \(4,\)"),
        ({"source": "camera", "elements": (0,)}, r"'camera' has shape \(4, 5, 3\)"),
        ({"source": "turn", "elements": (0, 1)}, "holds a rotation"),
    ],
)
def test_goals_that_do_not_fit_the_store_are_refused(settings, message):
    with pytest.raises(ContractError, match=message):
        Hindsight(**settings).contract(CONTRACT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"least_ahead": -1}, "least_ahead is -1"),
        ({"least_ahead": 5, "most_ahead": 4}, "most_ahead is 4, it must be at least .* 5"),
        ({"elements": (1, 1)}, r"elements is \(1, 1\)"),
        ({"elements": ()}, r"elements is \(\)"),
        ({"elements": [0.5]}, r"elements is \(0\.5,\), give whole numbers"),
        ({"elements": [True]}, r"elements is \(True,\), give whole numbers"),
        ({"elements": 1}, "elements is 1, give a list"),
        ({"least_ahead": "a"}, "least_ahead is 'a', it must be a whole number"),
        ({"most_ahead": 2.5}, r"most_ahead is 2\.5, it must be a whole number"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Hindsight("arm", **settings)
