"""Conditions on episodes: what they mean, and that nothing else is understood."""

from pathlib import Path

import numpy as np
import pytest

from data.query import Condition, select
from data.store import EpisodeStore, StoreError
from data.types import Contract, Field

CONTRACT = Contract({"state": Field((1,))}, Field((1,)), 0.1)
METADATA = [
    {"success": True, "seed": 0, "operator": "Anna", "setup": {"light": 3}},
    {"success": False, "seed": 10, "operator": "ben"},
    {"success": 1, "seed": 2.5, "operator": None, "a.b": "dotted"},
    {},
]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> EpisodeStore:
    store = EpisodeStore.create(tmp_path_factory.mktemp("query") / "store.zarr", CONTRACT)
    for index, entries in enumerate(METADATA):
        length = 10 * (index + 1)
        store.append({"state": np.zeros((length, 1)), "action": np.zeros((length, 1))}, **entries)
    return store


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("success==true", [0]),
        ("success == true", [0]),
        ("success!=true", [1, 2, 3]),
        ("success==1", [2]),
        ("seed<10", [0, 2]),
        ("seed<=10", [0, 1, 2]),
        ("seed>2.5", [1]),
        ("seed>=2.5", [1, 2]),
        ("seed==10", [1]),
        ("seed==10.0", [1]),
        ("operator==Anna", [0]),
        ('operator=="Anna"', [0]),
        ("operator==anna", []),
        ("operator~AN", [0]),
        ("operator==null", [2]),
        ("setup.light==3", [0]),
        ('setup=={"light": 3}', [0]),
        ("a.b==dotted", [2]),
        ("setup.light.more==3", []),
        ("episode>=2", [2, 3]),
        ("steps<25", [0, 1]),
        ("nothing==1", []),
        ("nothing!=1", [0, 1, 2, 3]),
        ("nothing<1", []),
        ("nothing~1", []),
    ],
)
def test_conditions(store, condition, expected):
    assert select(store, [condition]).tolist() == expected


def test_all_conditions_are_met_and_of_the_episodes_that_are_asked(store):
    assert select(store, ["seed>=0", "steps>10"]).tolist() == [1, 2]
    assert select(store, ["seed>=0"], episodes=[3, 2, 0]).tolist() == [0, 2]
    assert select(store, [], episodes=[3, 0, 3]).tolist() == [0, 3]
    assert select(store).tolist() == [0, 1, 2, 3]
    assert select(store, ["steps>10"], episodes=[]).tolist() == []


@pytest.mark.parametrize(
    "text",
    ["", "success", "==true", "success==", "success=true", "a b==1", "__import__('os')", "x=<3"],
)
def test_what_is_no_condition_is_refused(store, text):
    with pytest.raises(ValueError, match="is not KEY OPERATOR VALUE"):
        select(store, [text])


def test_a_value_is_never_run():
    value = "__import__('os').system('false')"
    assert Condition.parse(f"operator=={value}") == Condition("operator", "==", value)


@pytest.mark.parametrize("condition", ["operator<3", "success>0", "seed<text", "setup<1"])
def test_what_has_no_order_is_refused(store, condition):
    with pytest.raises(ValueError, match=r"episode \d of .* which has no order with"):
        select(store, [condition])


def test_episodes_must_exist(store):
    with pytest.raises(StoreError, match=r"episode 4 of .* which has 4: choose 0\.\.3"):
        select(store, episodes=[1, 4])
    with pytest.raises(StoreError, match=r"episode -1 of"):
        select(store, episodes=[-1])


def test_a_value_of_too_many_brackets_is_text():
    assert Condition.parse("a==" + "[" * 30000).value == "[" * 30000


def test_an_empty_store_has_no_episodes_to_meet_anything(tmp_path: Path):
    empty = EpisodeStore.create(tmp_path / "s.zarr", CONTRACT)
    assert select(empty, ["success==true"]).tolist() == []
