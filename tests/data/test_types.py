"""Horizons, fields and contracts: what is refused, what is compared, and the way through JSON."""

import json
from dataclasses import replace

import pytest

from data.types import CONTRACT_VERSION, Contract, ContractError, Field, Horizons

STATE = Field((2,), unit=("m", "rad"), angles=(1,), low=(0.0, -3.0), high=(1.0, 3.0))
ACTION = Field((3,), unit="m", frame="table", kind="delta", discrete=(2,))
CONTRACT = Contract({"state": STATE}, ACTION, 0.1, task="push", horizons=Horizons(2, 8, 4))


def test_a_contract_comes_back_from_json():
    assert Contract.from_json(json.loads(json.dumps(CONTRACT.to_json()))) == CONTRACT


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 8, 4), r"horizons\.obs is 0, it must be at least 1"),
        ((2, 8, 0), r"horizons\.action is 0"),
        ((2, 4, 5), r"horizons\.action is 5, but a chunk has only 4 actions from now on"),
    ],
)
def test_impossible_horizons_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Horizons(*sizes)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"kind": "sideways"}, "kind is 'sideways', choose one of absolute, delta, relative"),
        ({"normalization": "z"}, "normalization is 'z', choose one of limits, gaussian, "),
        ({"angles": (2,)}, r"angles is \(2,\), the field has 2 elements"),
        ({"discrete": (-1,)}, r"discrete is \(-1,\), the field has 2 elements"),
        ({"low": (0.0,)}, "low has 1 values, the field has 2 elements"),
        ({"high": (0.0,) * 3}, "high has 3 values, the field has 2 elements"),
        ({"unit": ("m",)}, "unit has 1 entries, the field has 2 elements"),
    ],
)
def test_impossible_fields_are_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        Field((2,), **entries)


def test_impossible_contracts_are_refused():
    with pytest.raises(ContractError, match=r"control_dt is 0 s, it must be positive"):
        Contract({"state": STATE}, ACTION, 0)
    with pytest.raises(ContractError, match="at least one observation field"):
        Contract({}, ACTION, 0.1)
    with pytest.raises(ContractError, match="rename the observation"):
        Contract({"action": STATE}, ACTION, 0.1)


TOLD = Field((3,), unit="1", normalization="identity")
PER_TASK = replace(
    CONTRACT,
    observation={"state": replace(STATE, scaled_per="task"), "task": TOLD},
    action=replace(ACTION, scaled_per="task"),
)


def test_a_contract_names_the_field_that_tells_the_scale_and_keeps_it_in_json():
    assert PER_TASK.scaled_per == "task"
    assert CONTRACT.scaled_per == ""
    assert Contract.from_json(json.loads(json.dumps(PER_TASK.to_json()))) == PER_TASK
    # Contracts from before there were several sets, and for programs from before, lack the entry.
    assert "scaled_per" not in CONTRACT.to_json()["action"]
    assert Contract.from_json({**CONTRACT.to_json(), "version": 1}).action.scaled_per == ""


def test_the_way_of_scaling_is_of_one_side():
    plain = replace(PER_TASK, observation={"state": STATE, "task": TOLD}, action=ACTION)
    PER_TASK.check(plain, this="here", that="there")
    plain.check(PER_TASK, this="there", that="here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"state": Field((2,), scaled_per="robot")},
            r"state.scaled_per is 'robot', the observation has \['state', 'task'\]",
        ),
        (
            {"state": Field((2,), scaled_per="action")},
            r"state.scaled_per is 'action', the observation has",
        ),
        (
            {"state": Field((2,)), "task": replace(TOLD, scaled_per="task")},
            "task.scaled_per is 'task', which is the field itself",
        ),
        (
            {
                "state": Field((2,), scaled_per="camera"),
                "camera": Field((8, 8, 3), dtype="uint8", normalization="identity"),
            },
            r"state.scaled_per is 'camera', which is not one-hot, its shape is \(8, 8, 3\)",
        ),
        (
            {"camera": Field((8, 8, 3), dtype="uint8", scaled_per="task")},
            "camera.scaled_per is 'task', but an image is scaled without statistics",
        ),
        (
            {"robot": TOLD, "task": replace(TOLD, scaled_per="robot")},
            "state.scaled_per is 'task', which is scaled per 'robot' itself",
        ),
        (
            {"task": Field((3,))},
            "state.scaled_per is 'task', whose normalization is 'limits': .* 'identity'",
        ),
        (
            {"robot": TOLD, "arm": Field((2,), scaled_per="robot")},
            "arm.scaled_per is 'robot', but others are scaled per 'task'",
        ),
    ],
)
def test_a_scale_that_nothing_tells_is_refused(changes, message):
    with pytest.raises(ContractError, match=message):
        replace(PER_TASK, observation={**PER_TASK.observation, **changes}, action=ACTION)
    with pytest.raises(ContractError, match=r"action.scaled_per is 'task', the observation has"):
        replace(PER_TASK, observation={"state": STATE})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": CONTRACT_VERSION + 1}, "has version 2, this program reads up to 1: upgrade"),
        ({"version": "one"}, "has version 'one'"),
        ({"observation": []}, "wrong entry"),
        ({"observation": {"state": {"dtype": "float32"}}}, "wrong entry.*shape"),
        ({"observation": {"state": {"shape": [2], "color": 1}}}, r"unknown field entries \['color"),
        ({"action": None}, "wrong entry"),
        ({"action": {"shape": [2], "dtype": "float33"}}, "wrong entry"),
        ({"control_dt": "slow"}, "wrong entry"),
        ({"horizons": {"obs": 1}}, "wrong entry"),
    ],
)
def test_a_broken_json_form_is_a_contract_error(changes, message):
    with pytest.raises(ContractError, match=message):
        Contract.from_json({**CONTRACT.to_json(), **changes})


def test_a_json_form_that_is_no_object_or_lacks_an_entry_is_a_contract_error():
    with pytest.raises(ContractError, match="'text', it must be an object"):
        Contract.from_json("text")  # pyright: ignore[reportArgumentType]
    entry = CONTRACT.to_json()
    del entry["action"]
    with pytest.raises(ContractError, match=r"lacks \['action'\]"):
        Contract.from_json(entry)


@pytest.mark.parametrize(
    "changes",
    [
        {"unit": "px"},
        {"frame": "base"},
        {"kind": "absolute"},
        {"rotation": "quaternion_wxyz"},
        {"discrete": ()},
        {"dtype": "float64"},
        {"shape": (4,)},
    ],
)
def test_a_field_that_means_something_else_is_refused_naming_both_sides(changes):
    other = replace(CONTRACT, action=replace(ACTION, **changes))
    (name,) = changes
    with pytest.raises(ContractError, match=rf"action\.{name} is .* in here, but .* in there"):
        CONTRACT.check(other, this="here", that="there")


def test_horizons_statistics_and_the_period_must_agree():
    for changes in (
        {"control_dt": 0.2},
        {"horizons": Horizons(1, 8, 4)},
        {"statistics": "b"},
    ):
        mine = replace(CONTRACT, statistics="a")
        with pytest.raises(ContractError, match=f"{next(iter(changes))} is"):
            mine.check(replace(mine, **changes), this="here", that="there")


def test_more_fields_other_limits_and_another_task_are_no_disagreement():
    fuller = {"state": replace(STATE, low=None, normalization="gaussian"), "camera": Field((4,))}
    other = replace(CONTRACT, observation=fuller, task="pull", horizons=None)
    CONTRACT.check(other, this="here", that="there")
    with pytest.raises(ContractError, match=r"there needs the field 'camera'; here has"):
        other.check(CONTRACT, this="there", that="here")
