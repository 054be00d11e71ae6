"""Several stores as one: against one store of the same episodes, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.blocks import blocks_of
from data.dataset import WindowDataset
from data.goals import Hindsight
from data.joint_contract import TASK, task_field
from data.mixture import Mixture, split, visits_of
from data.normalize import Normalizer
from data.place import Reading
from data.store import EpisodeStore, StoreError
from data.types import Contract, ContractError, Field, Horizons

STATE = Field((3,), unit="m", low=(-9.0,) * 3, high=(9.0,) * 3)
CONTRACT = Contract(
    observation={
        "state": STATE,
        "camera": Field((4, 5, 3), dtype="uint8"),
    },
    action=Field((2,)),
    control_dt=0.1,
)
HORIZONS = Horizons(obs=2, pred=4, action=2)
LENGTHS = {"reach": (7, 3), "push": (1, 12, 5), "pull": (4,)}


def episode(rng: np.random.Generator, length: int, contract: Contract, size: float) -> dict:
    return {
        name: rng.integers(0, 256, (length, *field.shape), np.uint8)
        if field.is_image
        else rng.normal(0, size, (length, *field.shape)).astype(field.dtype)
        for name, field in contract.fields.items()
    }


def make(path, *, task: str = "", lengths=(4, 6), contract=CONTRACT, size=1.0) -> EpisodeStore:
    rng = np.random.default_rng(len(task))
    store = EpisodeStore.create(path, replace(contract, task=task))
    for length in lengths:
        store.append(episode(rng, length, contract, size))
    return store


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[EpisodeStore]:
    folder = tmp_path_factory.mktemp("mixture")
    return [make(folder / name, task=name, lengths=LENGTHS[name]) for name in LENGTHS]


@pytest.fixture(scope="module")
def joined(stores, tmp_path_factory) -> EpisodeStore:
    """One store of the same episodes in the same order, with the task as a field."""
    field = task_field(list(LENGTHS))
    told = {**CONTRACT.observation, TASK: field}
    contract = replace(CONTRACT, task="all", observation=told)
    joined = EpisodeStore.create(tmp_path_factory.mktemp("joined") / "store.zarr", contract)
    for number, store in enumerate(stores):
        for own in range(store.n_episodes):
            fields = {name: store.read(name, episodes=[own]) for name in CONTRACT.fields}
            told = np.tile(np.eye(3, dtype=np.float32)[number], (len(fields["action"]), 1))
            joined.append({**fields, TASK: told})
    return joined


@pytest.mark.parametrize("memory_fraction", [0.5, 0.0])
@pytest.mark.parametrize("episodes", [None, [0, 3, 5], [1], [4, 1]])
def test_windows_equal_those_of_one_store(stores, joined, episodes, memory_fraction):
    options = {"episodes": episodes, "reading": Reading(memory_fraction=memory_fraction)}
    mixed = WindowDataset(Mixture(stores, tell_task=True), HORIZONS, **options)
    plain = WindowDataset(joined, HORIZONS, **options)
    assert mixed.place == ("store" if memory_fraction == 0 else "device")
    assert mixed.short_episodes == plain.short_episodes
    assert len(mixed) == len(plain)
    everything = torch.arange(len(plain))
    a, b = mixed.batch(everything), plain.batch(everything)
    assert list(a.observation) == list(b.observation)
    for name, values in b.observation.items():
        assert torch.equal(a.observation[name], values)
    assert torch.equal(a.action, b.action)
    assert torch.equal(a.is_pad, b.is_pad)
    for name, values in plain.arrays().items():
        ours, theirs = (np.concatenate(list(blocks_of(x))) for x in (mixed.arrays()[name], values))
        np.testing.assert_array_equal(ours, theirs)


def test_it_is_read_as_one_store(stores, joined):
    mixture = Mixture(stores)
    np.testing.assert_array_equal(mixture.episode_ends, joined.episode_ends)
    assert (mixture.n_episodes, mixture.n_steps) == (joined.n_episodes, joined.n_steps)
    for episodes in ([0], [5, 2], [1, 3, 4]):
        np.testing.assert_array_equal(mixture.rows_of(episodes), joined.rows_of(episodes))
        np.testing.assert_array_equal(mixture.lengths_of(episodes), joined.lengths_of(episodes))
    rows = np.array([0, 9, 10, 22, 31])
    np.testing.assert_array_equal(
        mixture.read_rows("camera", rows), joined.read_rows("camera", rows)
    )
    np.testing.assert_array_equal(mixture.read("state"), joined.read("state"))


def test_statistics_are_those_of_all_stores(tmp_path):
    small, large = make(tmp_path / "a", size=0.1), make(tmp_path / "b", size=5.0)
    mixture = Mixture([small, large])
    normalizer = Normalizer.fit(mixture.contract, WindowDataset(mixture, HORIZONS).arrays())
    values = np.concatenate([small.read("state"), large.read("state")])
    scaled = normalizer.normalize("state", torch.from_numpy(values))
    assert scaled.amin(0).numpy() == pytest.approx(-1, abs=1e-6)
    assert scaled.amax(0).numpy() == pytest.approx(1, abs=1e-6)


@pytest.fixture
def uneven(tmp_path) -> list[EpisodeStore]:
    """Two stores whose numbers differ a thousandfold."""
    lengths, sizes = (6, 5), {"near": 0.01, "far": 10.0}
    return [make(tmp_path / t, task=t, lengths=lengths, size=s) for t, s in sizes.items()]


def test_statistics_of_each_task_are_those_of_its_store(uneven):
    mixture = Mixture(uneven, weights=[5, 1], tell_task=True, statistics="task")
    contract = mixture.contract
    scaled_per = {name: field.scaled_per for name, field in contract.fields.items()}
    assert scaled_per == {"state": TASK, "camera": "", TASK: "", "action": TASK}
    normalizer = Normalizer.fit(contract, WindowDataset(mixture, HORIZONS).arrays())
    for number, store in enumerate(uneven):
        alone = Normalizer.fit(store.contract, WindowDataset(store, HORIZONS).arrays())
        for name in ("state", "action"):
            own = torch.from_numpy(store.read(name))
            sets = torch.full((len(own),), number)
            scaled = normalizer.normalize(name, own, sets)
            assert torch.equal(scaled, alone.normalize(name, own))
            assert scaled.amin(0).numpy() == pytest.approx(-1, abs=1e-6)
            assert scaled.amax(0).numpy() == pytest.approx(1, abs=1e-6)
            back = normalizer.unnormalize(name, scaled, sets)
            assert torch.equal(back, alone.unnormalize(name, scaled))


def test_a_goal_is_scaled_as_what_it_is_a_part_of(uneven):
    mixture = Mixture(uneven, tell_task=True, statistics="task")
    goals = Hindsight(source="state", elements=(2, 0))
    dataset = WindowDataset(mixture, HORIZONS, goals=goals)
    normalizer = Normalizer.fit(dataset.contract, dataset.arrays())
    for statistic in ("center", "scale"):
        whole, part = (normalizer.get_buffer(f"{n}/{statistic}") for n in ("state", "goal"))
        assert torch.equal(part, whole[:, [2, 0]])


def test_environments_need_not_know_how_their_task_is_scaled(uneven):
    """Nor do the contents of the stores change by it."""
    kinds = ("joint", "task")
    joint, per_task = (Mixture(uneven, tell_task=True, statistics=kind) for kind in kinds)
    per_task.contract.check(joint.contract, this="checkpoint", that="environment")
    assert joint.contract.scaled_per == ""
    assert joint.digest() == per_task.digest()


def test_statistics_of_tasks_need_tasks_that_are_told(uneven, tmp_path):
    with pytest.raises(ValueError, match="'task', but no task is told: set tell_task=true, or"):
        Mixture(uneven, statistics="task")
    again = [uneven[0], make(tmp_path / "again", task="near")]
    message = "all episodes are of the task 'near': give stores of several tasks, or set stat"
    with pytest.raises(ValueError, match=message):
        Mixture(again, tell_task=True, statistics="task")
    with pytest.raises(ValueError, match="statistics is 'each', choose joint or task"):
        Mixture(uneven, tell_task=True, statistics="each")  # pyright: ignore[reportArgumentType]


def test_limits_are_the_widest_and_absent_where_one_has_none(tmp_path):
    def limited(low, high):
        state = Field((2,), low=low, high=high)
        return replace(CONTRACT, observation={"state": state})

    pair = limited((-1.0, 0.0), (1.0, 2.0)), limited((-3.0, 1.0), (0.0, 5.0))
    a, b = (make(tmp_path / str(i), contract=contract) for i, contract in enumerate(pair))
    state = Mixture([a, b]).contract.observation["state"]
    assert (state.low, state.high) == ((-3.0, 0.0), (1.0, 5.0))
    open_ended = make(tmp_path / "open", contract=limited(None, None))
    assert Mixture([a, open_ended]).contract.observation["state"].low is None


def test_tasks_are_numbered_as_they_appear_and_named_in_the_contract(stores, tmp_path):
    again = make(tmp_path / "again", task="reach", lengths=(2,))
    mixture = Mixture([*stores, again], tell_task=True)
    assert mixture.tasks == ("reach", "push", "pull")
    told = mixture.read(TASK, episodes=[0, 6])
    np.testing.assert_array_equal(told, np.tile([1, 0, 0], (7 + 2, 1)))
    assert mixture.contract.observation[TASK].frame == "reach, push, pull"
    assert mixture.contract.task == "reach, push, pull"
    assert TASK not in Mixture(stores).contract.observation


def test_the_task_of_an_episode_comes_first_from_its_metadata(tmp_path):
    store = EpisodeStore.create(tmp_path / "s", replace(CONTRACT, task="several"))
    for task in ("b", "a", "b"):
        store.append(episode(np.random.default_rng(0), 2, CONTRACT, 1.0), task=task)
    mixture = Mixture([store], tell_task=True)
    assert mixture.tasks == ("b", "a")
    assert mixture.read(TASK)[::2].argmax(1).tolist() == [0, 1, 0]


def test_a_checkpoint_of_other_tasks_or_another_order_does_not_fit(stores):
    a, b = (Mixture(order, tell_task=True).contract for order in (stores, stores[::-1]))
    with pytest.raises(ContractError, match=r"task\.frame is 'reach, push, pull' in x, but 'pull"):
        a.check(b, this="x", that="y")


def test_each_store_is_split(stores):
    mixture = Mixture(stores)
    learn, hold = split(mixture, 0.3, seed=1)
    assert sorted([*learn, *hold]) == list(range(6))
    # One of two, one of three, none of a single one.
    assert sum(hold < 2) == 1
    assert sum((hold >= 2) & (hold < 5)) == 1
    assert 5 in learn


def test_visits_follow_the_weights_of_the_stores(stores):
    mixture = Mixture(stores, weights=[1, 1, 2])
    dataset = WindowDataset(mixture, HORIZONS)
    visits = visits_of(mixture, dataset.episodes, HORIZONS)
    assert visits is not None
    # Windows: 6 + 2 of reach, 0 + 11 + 4 of push, 3 of pull.
    assert visits.counts == (8, 15, 3)
    assert visits.quotas == (round(26 / 4), round(26 / 4), round(26 / 2))
    pull = dataset.batch(visits(0)[-visits.quotas[2] :]).observation["state"][:, -1]
    own = torch.from_numpy(stores[2].read("state"))
    assert all(any(torch.equal(seen, step) for step in own) for seen in pull)


def test_without_weights_all_windows_are_visited_once(stores):
    assert visits_of(Mixture(stores), np.arange(6), HORIZONS) is None
    assert visits_of(stores[0], np.arange(2), HORIZONS) is None


def test_the_digest_covers_all_stores_and_what_is_told(stores):
    orders = [stores, stores[::-1], stores[:2]]
    digests = {Mixture(order, tell_task=t).digest() for order in orders for t in (True, False)}
    assert len(digests) == 6
    assert Mixture(stores).digest() == Mixture(stores).digest()


def observing(**fields: Field) -> Contract:
    return replace(CONTRACT, observation=fields)


CAMERA = CONTRACT.observation["camera"]
OTHER = {
    "control_dt is 0.1 s in .*a, but 0.2": replace(CONTRACT, control_dt=0.2),
    "state.unit is 'm' in .*a, but 'mm'": observing(state=Field((3,), unit="mm"), camera=CAMERA),
    "a needs the field 'camera'; .*b has": observing(state=STATE),
    "b needs the field 'force'; .*a has": observing(state=STATE, camera=CAMERA, force=Field((1,))),
    "action.normalization is 'limits' in .*a, but 'gaussian' in .*b": replace(
        CONTRACT, action=Field((2,), normalization="gaussian")
    ),
}


@pytest.mark.parametrize("message", OTHER)
def test_stores_that_mean_something_else_are_refused_by_name(tmp_path, message):
    a, b = make(tmp_path / "a"), make(tmp_path / "b", contract=OTHER[message])
    with pytest.raises(ContractError, match=message):
        Mixture([a, b])


def test_stores_that_are_scaled_per_something_else_are_refused(tmp_path):
    robot = Field((2,), normalization="identity")
    a, b = (
        make(tmp_path / n, contract=observing(state=replace(STATE, scaled_per=s), robot=robot))
        for n, s in {"a": "", "b": "robot"}.items()
    )
    with pytest.raises(ContractError, match=r"state\.scaled_per is '' in .*a, but 'robot' in .*b"):
        Mixture([a, b])


def test_a_field_of_this_name_is_not_overwritten(tmp_path):
    told = {**CONTRACT.observation, TASK: task_field(["a", "b"])}
    contract = replace(CONTRACT, observation=told)
    stores = [make(tmp_path / name, task=name, contract=contract) for name in ("a", "b")]
    with pytest.raises(ContractError, match="tell_task=false"):
        Mixture(stores, tell_task=True)


def test_a_single_task_is_not_told(tmp_path):
    """Nothing that a policy of it would have to be told where it is used."""
    stores = [make(tmp_path / name, task="reach") for name in ("a", "b")]
    mixture = Mixture(stores, tell_task=True)
    assert mixture.tasks == ()
    assert mixture.contract.observation == CONTRACT.observation
    assert mixture.digest() == Mixture(stores).digest()


def test_a_task_that_nobody_names_is_refused(tmp_path):
    with pytest.raises(StoreError, match="nor the metadata of episode 0"):
        Mixture([make(tmp_path / "a")], tell_task=True)


def test_no_stores_or_empty_ones_are_refused(tmp_path):
    with pytest.raises(StoreError, match="zero stores"):
        Mixture([])
    with pytest.raises(StoreError, match="zero episodes"):
        Mixture([make(tmp_path / "a", lengths=())])


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, 0.0, 1.0], [1.0, float("inf"), 1.0], 3, ["a", "b", "c"], "abc"]
)
def test_impossible_weights_are_refused(stores, weights):
    with pytest.raises(ValueError, match="weights"):
        Mixture(stores, weights=weights)


def test_a_path_in_place_of_a_list_is_refused():
    with pytest.raises(ValueError, match=r"paths is 'a/store\.zarr', it must be a list"):
        Mixture.open("a/store.zarr")


def test_a_weight_without_windows_is_refused(stores):
    mixture = Mixture(stores, weights=[1, 1, 1])
    with pytest.raises(StoreError, match="no episode of 9 steps"):
        visits_of(mixture, np.arange(6), Horizons(obs=1, pred=9, action=9))


def test_episodes_and_steps_that_do_not_exist_are_refused(stores):
    mixture = Mixture(stores)
    with pytest.raises(StoreError, match=r"episode 6 of .* which has 6"):
        mixture.rows_of([6])
    with pytest.raises(StoreError, match=r"rows 0\.\.32 of .*, of 32 steps"):
        mixture.read_rows("state", np.array([0, 32]))
