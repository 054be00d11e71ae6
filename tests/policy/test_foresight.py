"""Observations are moved on by decided actions, and late chunks are planned from there."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from data.normalize import Normalizer
from data.types import Contract, Field
from policy.agent import NotFiniteError
from policy.checkpoint import CheckpointError
from policy.foresight import (
    FILE,
    Foresight,
    dynamics_for,
    load_foresight,
    save_foresight,
    wrapped,
)
from policy.nets.dynamics import Dynamics
from policy.types import Request
from tests.policy.test_planning import FakeAgent, planner_of

CONTRACT = Contract(
    {
        "place": Field(shape=(2,), normalization="identity"),
        "turn": Field(shape=(1,), angles=(0,)),
    },
    Field(shape=(2,), normalization="identity"),
    control_dt=0.1,
)


def normalizer_of(contract):
    steps = {
        name: np.linspace(-1, 1, 8 * field.size).reshape(8, *field.shape).astype(field.dtype)
        for name, field in contract.fields.items()
    }
    return Normalizer.fit(contract, steps)


def mover(contract=CONTRACT, *, turn=1.0):
    """Place moves by the mean of the last command and this one; turn by a constant."""

    def changes(features, before, action):
        assert features.shape[1] == 4  # Two numbers, a cosine and a sine.
        return torch.cat([(before + action) / 2, torch.full((len(features), 1), turn)], dim=1)

    return Foresight(contract, normalizer_of(contract), changes, torch.ones(3))


def seen(n_obs, turn=0.0):
    return {
        "place": np.arange(2.0 * n_obs, dtype=np.float32).reshape(n_obs, 2),
        "turn": np.full((n_obs, 1), turn, np.float32),
    }


def test_an_observation_is_moved_on_by_each_decided_action():
    decided = np.array([[0.0, 0.0], [2.0, 4.0], [4.0, 0.0]])  # The first is the last command.
    foreseen = mover()(seen(1), decided)
    # (0, 1) + (1, 2) + (3, 2)
    assert foreseen["place"].tolist() == [[4.0, 5.0]]
    assert foreseen["turn"].tolist() == [[2.0]]
    assert foreseen["place"].dtype == np.float32


def test_a_history_ends_in_what_is_foreseen():
    decided = np.array([[0.0, 0.0], [2.0, 4.0]])
    foreseen = mover()(seen(3), decided)
    assert foreseen["place"].tolist() == [[2.0, 3.0], [4.0, 5.0], [5.0, 7.0]]


def test_without_decided_actions_it_is_what_was_seen():
    history = seen(3)
    foreseen = mover()(history, np.zeros((1, 2)))
    assert all((foreseen[name] == history[name]).all() for name in history)


def test_angles_stay_within_half_a_turn():
    foreseen = mover(turn=1.0)(seen(1, turn=3.0), np.zeros((2, 2)))
    assert foreseen["turn"][0, 0] == pytest.approx(4.0 - 2 * math.pi, abs=1e-6)
    assert wrapped(torch.tensor([-4.0])).item() == pytest.approx(2 * math.pi - 4, abs=1e-6)


def test_changes_are_in_units_of_their_scale():
    def ones(features, before, action):
        return torch.ones(len(features), 3)

    foresight = Foresight(CONTRACT, normalizer_of(CONTRACT), ones, torch.tensor([0.5, 0.0, 0.25]))
    foreseen = foresight(seen(1), np.zeros((2, 2)))
    assert foreseen["place"].tolist() == [[0.5, 1.0]]
    assert foreseen["turn"].tolist() == [[0.25]]


def test_whole_numbers_stay_whole():
    contract = Contract(
        {"count": Field(shape=(1,), dtype="int64", normalization="identity")},
        Field(shape=(1,), normalization="identity"),
        control_dt=0.1,
    )

    def more(features, before, action):
        return torch.full((len(features), 1), 0.75)

    foresight = Foresight(contract, normalizer_of(contract), more, torch.ones(1))
    # An odd number that float32 does not hold: only the change is rounded.
    for count in (3, 2**24 + 1):
        foreseen = foresight({"count": np.array([[count]])}, np.zeros((2, 1)))
        assert foreseen["count"].tolist() == [[count + 1]]
        assert foreseen["count"].dtype == np.int64


@pytest.mark.parametrize(
    ("dtype", "change", "values", "expected"),
    [
        ("uint8", -5.0, [3, 200], [0, 195]),
        ("uint8", 100.0, [3, 200], [103, 255]),
        ("bool", -1.0, [False, True], [False, False]),
        ("bool", 1.0, [False, True], [True, True]),
        ("float64", 0.0, [0.1, 1 / 3], [0.1, 1 / 3]),
    ],
)
def test_numbers_stay_in_the_range_of_their_type(dtype, change, values, expected):
    contract = Contract(
        {"x": Field(shape=(2,), dtype=dtype, normalization="identity")},
        Field(shape=(1,), normalization="identity"),
        control_dt=0.1,
    )
    foresight = Foresight(
        contract, normalizer_of(contract), lambda *_: torch.full((1, 2), change), torch.ones(2)
    )
    foreseen = foresight({"x": np.array([values], dtype)}, np.zeros((2, 1)))
    assert foreseen["x"].tolist() == [expected]
    assert foreseen["x"].dtype == np.dtype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "int64"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_not_finite_is_never_planned_from(dtype, number):
    contract = Contract(
        {"x": Field(shape=(1,), dtype=dtype, normalization="identity")},
        Field(shape=(1,), normalization="identity"),
        control_dt=0.1,
    )
    foresight = Foresight(
        contract, normalizer_of(contract), lambda *_: torch.full((1, 1), number), torch.ones(1)
    )
    with pytest.raises(NotFiniteError, match="after 3 decided actions is not finite"):
        foresight({"x": np.zeros((1, 1), dtype)}, np.zeros((4, 1)))


@pytest.mark.parametrize(
    ("field", "told"),
    [
        (Field(shape=(8, 8, 3), dtype="uint8"), "is a picture"),
        (Field(shape=(2,), scaled_per="task"), "scaled per 'task'"),
    ],
)
def test_what_cannot_be_foreseen_is_refused(field, told):
    task = Field(shape=(2,), normalization="identity")
    contract = Contract({"x": field, "task": task}, Field(shape=(2,)), control_dt=0.1)
    with pytest.raises(ValueError, match=told):
        Foresight(contract, Normalizer(contract), lambda *_: torch.zeros(0), torch.zeros(0))


def test_actions_relative_to_an_observation_cannot_be_foreseen():
    action = Field(shape=(2,), kind="relative", normalization="identity")
    contract = Contract(CONTRACT.observation, action, control_dt=0.1)
    with pytest.raises(ValueError, match="only absolute actions and changes"):
        mover(contract)


def test_at_first_the_network_says_that_nothing_changes():
    net = Dynamics(n_features=4, n_actions=2, n_changes=3, size=8)
    assert (net(torch.randn(5, 4), torch.randn(5, 2), torch.randn(5, 2)) == 0).all()
    with pytest.raises(ValueError, match="size"):
        Dynamics(n_features=4, n_actions=2, n_changes=3, size=0)


def saved(folder):
    torch.manual_seed(0)
    normalizer = normalizer_of(CONTRACT)
    net = dynamics_for(CONTRACT, normalizer, size=8, n_blocks=2)
    torch.nn.init.normal_(net.out.weight)
    save_foresight(folder, net, torch.tensor([1.0, 2.0, 3.0]), normalizer=normalizer)
    return normalizer, Foresight(CONTRACT, normalizer, net, torch.tensor([1.0, 2.0, 3.0]))


def test_a_saved_model_foresees_the_same(tmp_path):
    normalizer, made = saved(tmp_path)
    loaded = load_foresight(tmp_path, CONTRACT, normalizer)
    decided = np.ones((4, 2))
    a, b = made(seen(2), decided), loaded(seen(2), decided)
    assert all((a[name] == b[name]).all() for name in a)
    assert a["place"].tolist() != seen(2)["place"].tolist()


def test_a_file_that_does_not_tell_its_statistics_is_read(tmp_path):
    normalizer, made = saved(tmp_path)
    tensors = load((tmp_path / FILE).read_bytes())
    del tensors["statistics"]
    (tmp_path / FILE).write_bytes(save(tensors))
    foreseen = load_foresight(tmp_path, CONTRACT, normalizer)(seen(1), np.ones((2, 2)))
    assert foreseen["place"].tolist() == made(seen(1), np.ones((2, 2)))["place"].tolist()


def test_a_checkpoint_without_a_model_names_the_verb(tmp_path):
    with pytest.raises(CheckpointError, match="cadence foresee checkpoint="):
        load_foresight(tmp_path, CONTRACT, normalizer_of(CONTRACT))


@pytest.mark.parametrize("damage", ["cut", "nan", "scale", "number", "bias", "other", "statistics"])
def test_a_damaged_model_is_refused(tmp_path, damage):
    normalizer, _ = saved(tmp_path)
    file, contract = tmp_path / FILE, CONTRACT
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "statistics":  # The same fields, of another store.
        steps = {name: np.full((2, *field.shape), 3.0) for name, field in contract.fields.items()}
        limits = Field(shape=(2,))
        contract = Contract({**CONTRACT.observation, "place": limits}, limits, control_dt=0.1)
        normalizer = Normalizer.fit(contract, steps)
    elif damage == "other":
        field = Field(shape=(5,), normalization="identity")
        contract = Contract({"place": field}, CONTRACT.action, control_dt=0.1)
        normalizer = normalizer_of(contract)
    else:
        tensors = load(file.read_bytes())
        tensors["net.first.bias" if damage == "bias" else "scale"] = torch.tensor(
            {"nan": [1.0, math.nan, 1.0], "scale": [1.0], "number": 1.0, "bias": 1.0}[damage]
        )
        file.write_bytes(save(tensors))
    with pytest.raises(CheckpointError, match="damaged or of another policy"):
        load_foresight(tmp_path, contract, normalizer)


class Echo(FakeAgent):
    """Its chunk counts on from what it last saw."""

    contract = Contract(
        {"place": Field(shape=(2,))}, Field(shape=(2,), dtype="float32"), control_dt=0.1
    )

    def chunk(self, streams, observation):
        steps = np.arange(8, dtype=np.float32)[:, None]
        return (observation["place"][0, -1] + steps)[None]


class Ahead:
    """Moves every observation by the sum of what is decided."""

    def __call__(self, history, decided):
        moved = decided[1:].sum(axis=0)
        return {name: (values + moved).astype(values.dtype) for name, values in history.items()}


def test_a_late_chunk_is_planned_from_where_the_decided_actions_lead():
    agent = Echo()
    planner = planner_of(agent, foresight=Ahead())
    history = {"place": np.zeros((3, 2), np.float32)}
    decided = np.array([[9.0, 9.0], [1.0, 2.0], [3.0, 4.0]])
    chunk = planner(Request(history, 10, delay=2, decided=decided))
    assert chunk.tick0 == 10
    # What is decided, then the chunk from (4, 6) on, as long as any.
    expected = [[1, 2], [3, 4], *([4 + i, 6 + i] for i in range(6))]
    assert chunk.actions.tolist() == expected
    assert chunk.actions.dtype == np.float32


def test_the_stream_moves_on_by_the_ticks_between_what_chunks_are_planned_from():
    agent = Echo()
    planner = planner_of(agent, Echo(), Echo(), foresight=Ahead())
    history = {"place": np.zeros((3, 2), np.float32)}
    planner(Request(history, 0))  # From tick 0.
    planner(Request(history, 4, delay=2, decided=np.zeros((3, 2))))  # From tick 6.
    planner(Request(history, 8, delay=1, decided=np.zeros((2, 2))))  # From tick 9.
    planner(Request(history, 9, delay=0, decided=np.zeros((1, 2))))  # From tick 9 again.
    planner(Request(history, 9, delay=1, decided=np.zeros((2, 2))))
    assert agent.shifts == [6, 3, 0, 1]
    assert agent.renewed == []


def test_a_stream_that_foresaw_more_than_is_decided_now_begins_anew():
    # Its actions are for later ticks: nothing of them may be taken for those of now.
    agent = Echo()
    planner = planner_of(agent, foresight=Ahead())
    history = {"place": np.zeros((3, 2), np.float32)}
    planner(Request(history, 0))
    planner(Request(history, 4, delay=3, decided=np.zeros((4, 2))))  # From tick 7.
    planner(Request(history, 5))  # From tick 5.
    planner(Request(history, 9))  # From tick 9.
    assert (agent.shifts, agent.renewed) == ([7, 4], [0])


def test_without_decided_actions_it_plans_from_what_was_seen():
    agents = Echo(), Echo()
    planner = planner_of(*agents, foresight=Ahead())
    history = {"place": np.ones((3, 2), np.float32)}
    chunk = planner(Request(history, 0, delay=1))
    assert chunk.actions[0].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="came after one for tick 0"):
        planner(Request(history, -1))
