"""What a user tells of arrays, and what is made of their numbers."""

from pathlib import Path

import numpy as np
import pytest

from data.importers.arrays import ArraySpec, Selection, plain
from data.importers.importer import ImporterError
from data.importers.numbers import in_field
from data.importers.samples import ACTION, UNITS
from data.types import ContractError, Field

ARRAYS = {
    "state": ArraySpec((3,), np.dtype("f4")),
    "count": ArraySpec((), np.dtype("i8")),
    "action": ArraySpec((2,), np.dtype("f8")),
}
PATH = Path("somewhere")


def select(**settings) -> Selection:
    return Selection.of(
        PATH,
        ARRAYS,
        **{
            "take": None,
            "told": {"state": UNITS, "count": {"unit": "1"}, "action": ACTION},
            "control_dt": 0.1,
            "task": "",
        }
        | settings,
    )


def test_told_entries_are_in_the_contract():
    told = {
        "state": {"unit": ["m", "m", "rad"], "angles": [2], "frame": "base"},
        "count": {"unit": "1", "normalization": "identity"},
        "action": ACTION | {"low": [-1, -1], "high": [1, 1], "rotation": "none"},
    }
    contract = select(told=told, task="reach").contract
    assert contract.observation["state"] == Field(
        (3,), unit=("m", "m", "rad"), angles=(2,), frame="base"
    )
    assert contract.observation["count"] == Field((1,), unit="1", normalization="identity")
    assert contract.action == Field((2,), unit="m", low=(-1, -1), high=(1, 1))
    assert (contract.task, contract.control_dt) == ("reach", 0.1)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"told": {}}, r"fields.state.unit=\.\.\. .*fields.action.rotation=\.\.\."),
        ({"told": {}, "control_dt": None, "also": ["x=..."]}, r"x=\.\.\. control_dt=\.\.\."),
        ({"told": {"stat": UNITS}}, r"fields tells of \['stat'\], the data set has"),
        ({"told": {"state": {"units": "m"}}}, r"fields.state has the entries \['units'\]"),
        ({"told": {"state": {"dtype": "f4"}}}, r"entries \['dtype'\]"),
        ({"told": {"state": {"unit": ["m"]}}, "take": ["state"]}, "unit"),
        ({"take": {"state": 3}}, "take.state is 3, it must be the name of an array"),
        ({"take": {"state": {"elements": [0]}}}, "it must be the name of an array"),
        ({"take": {"state": {"key": "state", "of": 1}}}, "it must be the name of an array"),
        ({"take": {"state": {"key": "state", "elements": "ab"}}}, "elements are 'ab'"),
        ({"said": {"action": {"kind": "delta"}}}, "kind is 'absolute', but somewhere says 'delta'"),
    ],
)
def test_what_is_told_wrongly(settings, complaint):
    told = {"action": ACTION} | settings.get("told", {}) if "take" in settings else {}
    with pytest.raises(ContractError, match=complaint):
        select(**settings | ({"told": told} if told else {}))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"take": ["stat"]}, r"has no array stat; it has action, count, state"),
        ({"take": {"a": {"key": "state", "elements": [3]}}}, r"elements \[3\] are wanted of state"),
        ({"take": {"a.b": "state"}}, "'a.b' cannot be the name of a field"),
        ({"take": {"../x": "state"}}, "cannot be the name of a field"),
        ({"take": {"action": "action"}}, "besides the action, nothing is taken"),
        ({"action": "act"}, "has no array act"),
    ],
)
def test_what_cannot_be_taken(settings, complaint):
    with pytest.raises(ImporterError, match=complaint):
        select(**settings)


def test_a_single_name_may_be_taken_without_a_list():
    assert set(select(take="state", told={"state": UNITS, "action": ACTION}).sources) == {
        "state",
        "action",
    }


@pytest.mark.parametrize(
    ("values", "field", "expected"),
    [
        (np.array([True, False]), Field((1,)), np.array([[1], [0]], np.float32)),
        (np.array([[2**24]]), Field((1,)), np.array([[2**24]], np.float32)),
        (np.array([[0.1]]), Field((1,)), np.array([[0.1]], np.float32)),
        (np.array([[65504]], np.float16), Field((1,)), np.array([[65504]], np.float32)),
        (np.full((1, 2, 2, 3), 255.0), Field((2, 2, 3), "uint8"), np.full((1, 2, 2, 3), 255, "u1")),
    ],
)
def test_numbers_come_through(values, field, expected):
    found = in_field(values, field, where="it")
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("values", "field", "complaint"),
    [
        (np.array([[0], [2**24 + 1]]), Field((1,)), r"does not fit float32 .* first at step 1"),
        (np.array([[2**63 - 1]]), Field((1,)), "does not fit float32"),
        (np.array([[0], [1e39]]), Field((1,)), "does not fit float32"),
        (np.array([[0], [np.inf]]), Field((1,)), "is not a finite number .* first at step 1"),
        (np.full((1, 2, 2, 3), 0.5), Field((2, 2, 3), "uint8"), r"whole numbers 0..255 .*0.5..0.5"),
        (np.full((1, 2, 2, 3), -1.0), Field((2, 2, 3), "uint8"), "whole numbers"),
        (np.full((1, 2, 2, 3), 256.0), Field((2, 2, 3), "uint8"), "whole numbers"),
    ],
)
def test_numbers_that_would_change_are_refused(values, field, complaint):
    with pytest.raises(ImporterError, match=complaint):
        in_field(values, field, where="it")


def test_only_what_json_holds_is_kept_of_metadata():
    values = [b"ann", np.bytes_(b"a\xff"), "x" * 5000, np.int64(3), np.array([2.5]), np.bool_(True)]
    assert [plain(value) for value in values] == ["ann", "a\ufffd", "x" * 1000, 3, 2.5, True]
    assert [plain(value) for value in (np.nan, np.zeros(2), None, object())] == [None] * 4


def test_large_numbers_that_float32_does_not_tell_apart_are_refused():
    times = 1.7e9 + 0.1 * np.arange(5)[:, None]
    with pytest.raises(ImporterError, match=r"t holds numbers up to 1700000000 that differ by"):
        in_field(times, Field((1,)), where="t")
    large = 2e7 + 1e6 * np.arange(5)[:, None] + 0.3  # Their rounding is a millionth of the range.
    resting = 0.5 + 1e-9 * np.arange(5)[:, None]
    for values in (large, resting, times[:1], np.full((3, 1), 1.7e9 + 0.3)):
        read = in_field(values, Field((1,)), where="t")
        assert np.allclose(read, values, rtol=1e-7)


@pytest.mark.parametrize(
    ("shape", "dtype", "is_refused"),
    [
        ((3, 96, 96), "u1", True),
        ((1, 8, 8), "u1", True),
        ((4, 32, 20), "f4", True),
        ((96, 96, 3), "u1", False),
        ((96, 96, 6), "u1", False),
        ((3, 3, 3), "u1", False),
        ((3, 4, 9), "f4", False),
    ],
)
def test_pictures_with_channels_first_are_refused(shape, dtype, is_refused):
    arrays = {**ARRAYS, "camera": ArraySpec(shape, np.dtype(dtype))}
    told = {"action": ACTION} | ({"camera": UNITS} if dtype == "f4" else {})

    def contract():
        chosen = Selection.of(PATH, arrays, take=["camera"], told=told, control_dt=0.1, task="")
        return chosen.contract

    if is_refused:
        with pytest.raises(ImporterError, match=r"camera: a step has shape .*channels first"):
            contract()
    else:
        assert contract().fields["camera"].shape == shape
