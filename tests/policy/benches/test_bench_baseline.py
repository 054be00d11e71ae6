"""The regression check on made-up runs."""

import copy
import json

import pytest

from policy.benches import baseline
from policy.benches.baseline import BaselineError, compare, load, other_machine, ratios_of, save
from policy.benches.table import comparison

MACHINE = {"processor": "a", "cpus": "2", "device": "cpu", "torch": "2.9"}


def interval(value, width=0.0):
    return {"value": value, "low": value - width, "high": value + width}


def row(name, **ratios):
    return {"name": name, **ratios}


def run_of(fast=4.0, width=0.0):
    """A run in which everything was measured."""
    rows = [
        row("peer, 8 calls", equal_calls=None, per_action=None),
        row("ddim_8, fused", equal_calls=interval(fast, width), per_action=interval(8.0)),
    ]
    return {
        "machine": MACHINE,
        "latency": {"groups": [{"name": "small", "rows": rows, "failures": {}}]},
        "train": {"rows": [row("fast", over_peer=interval(3.0))], "failures": {}},
        "env": {"rows": [row("arm, 32", over_one=interval(5.0))], "failures": {}},
        "data": {
            "rows": [row("store", over_other={"value": 0.5, "low": None, "high": None})],
            "failures": {},
        },
    }


def test_ratios_are_named_by_what_they_compare():
    assert {name: ratio["value"] for name, ratio in ratios_of(run_of()).items()} == {
        "small: ddim_8, fused, equal calls": 4,
        "small: ddim_8, fused, per action": 8,
        "train: fast, windows/s": 3,
        "env: arm, 32, steps/s": 5,
        "data: store, windows/s": 0.5,
    }


def kept(tmp_path, results):
    save(tmp_path / "kept" / "ratios.json", results)
    return load(tmp_path / "kept" / "ratios.json")


def test_what_is_kept_holds_ratios_and_the_machine_and_no_time(tmp_path):
    found = kept(tmp_path, run_of())
    assert set(found) == {"version", "machine", "ratios"}
    assert found["machine"] == MACHINE
    assert len(found["ratios"]) == 5


def test_a_run_like_the_kept_one_holds(tmp_path):
    compared = compare(kept(tmp_path, run_of()), run_of(), margin=0.0)
    assert [each.state for each in compared] == ["held"] * 5
    assert comparison(compared, margin=0.0) == "against the kept ratios: 5 held"


@pytest.mark.parametrize(
    ("now", "width", "state"),
    [(3.1, 0, "held"), (2.9, 0, "fell"), (2.9, 0.2, "held"), (2.7, 0.2, "fell"), (9.0, 0, "held")],
)
def test_a_ratio_falls_when_its_whole_interval_is_below_the_margin(tmp_path, now, width, state):
    compared = compare(kept(tmp_path, run_of(4.0)), run_of(now, width), margin=0.25)  # 3 is least
    assert {each.name: each.state for each in compared if each.state != "held"} == (
        {} if state == "held" else {"small: ddim_8, fused, equal calls": "fell"}
    )


def test_the_table_names_what_fell_with_both_ratios(tmp_path):
    told = comparison(compare(kept(tmp_path, run_of()), run_of(1.5), margin=0.25), margin=0.25)
    (line,) = [line for line in told.splitlines() if "ddim_8, fused, equal calls" in line]
    assert line.split()[-2:] == ["4.00", "1.50"]
    assert "may fall by 25%" in told


def test_a_rate_without_an_interval_is_compared_itself(tmp_path):
    now = run_of()
    now["data"]["rows"][0]["over_other"]["value"] = 0.3
    compared = compare(kept(tmp_path, run_of()), now, margin=0.25)
    assert [each.name for each in compared if each.is_bad] == ["data: store, windows/s"]


def test_a_row_that_fails_now_has_fallen_and_says_why(tmp_path):
    now = run_of()
    now["latency"]["groups"][0] |= {"rows": [], "failures": {"ddim_8, fused": "no compiler"}}
    compared = compare(kept(tmp_path, run_of()), now, margin=0.25)
    assert [each.state for each in compared if each.is_bad] == ["failed"] * 2
    assert "no compiler" in comparison(compared, margin=0.25)


@pytest.mark.parametrize(
    "changes", [{"rows": []}, {"name": "small, 1 thread(s)"}, {"name": "data"}]
)
def test_a_row_that_is_gone_or_renamed_has_not_been_held(tmp_path, changes):
    now = run_of()
    now["latency"]["groups"][0] |= changes
    compared = compare(kept(tmp_path, run_of()), now, margin=0.25)
    assert [each.state for each in compared] == ["not measured"] * 2 + ["held"] * 3
    assert [each.is_bad for each in compared] == [True] * 2 + [False] * 3
    told = comparison(compared, margin=0.25)
    assert told.count("not measured: measure it too, or keep new ratios") == 2


def test_a_ratio_that_is_no_number_has_not_been_held(tmp_path):
    compared = compare(kept(tmp_path, run_of()), run_of(float("nan")), margin=0.25)
    assert [each.name for each in compared if each.is_bad] == ["small: ddim_8, fused, equal calls"]


def test_sections_that_were_not_measured_are_left_out(tmp_path):
    only_env = {key: run_of()[key] for key in ("machine", "env")}
    compared = compare(kept(tmp_path, run_of()), only_env, margin=0.25)
    assert [each.name for each in compared] == ["env: arm, 32, steps/s"]


def test_nothing_in_common_is_an_error_and_no_success(tmp_path):
    before = kept(tmp_path, run_of())
    with pytest.raises(BaselineError, match="of 5 kept ratios this run measured none"):
        compare(before, {"machine": MACHINE}, margin=0.25)
    now = run_of()
    now["env"]["rows"] = []
    with pytest.raises(BaselineError, match="measured none"):
        compare(before, {"machine": MACHINE, "env": now["env"]}, margin=0.25)


@pytest.mark.parametrize("margin", [-0.1, 1.0, float("nan")])
def test_a_margin_out_of_range_is_refused(tmp_path, margin):
    with pytest.raises(ValueError, match=r"must be in 0\.\.1"):
        compare(kept(tmp_path, run_of()), run_of(), margin=margin)


def test_a_run_without_ratios_is_not_kept(tmp_path):
    with pytest.raises(BaselineError, match="no ratios to keep"):
        save(tmp_path / "a.json", {"machine": MACHINE})
    assert not (tmp_path / "a.json").exists()


SOUND = {"version": baseline.VERSION, "machine": MACHINE, "ratios": {"a": 1.5}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "holds no positive ratios"),
        (json.dumps({**SOUND, "ratios": {}}), "holds no positive ratios"),
        (json.dumps({**SOUND, "ratios": [1]}), "holds no positive ratios"),
        (json.dumps({**SOUND, "ratios": {"a": "b"}}), "holds no positive ratios"),
        (json.dumps({**SOUND, "ratios": {"a": True}}), "holds no positive ratios"),
        (json.dumps({**SOUND, "ratios": {"a": -1}}), "holds no positive ratios"),
        (json.dumps({**SOUND, "ratios": {"a": float("inf")}}), "holds no positive ratios"),
        (json.dumps({**SOUND, "machine": None}), "holds no positive ratios"),
        (json.dumps({**SOUND, "version": 99}), "is of version 99"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(BaselineError, match=message):
        load(tmp_path / "a.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BaselineError, match=r"a\.json cannot be read .* save="):
        load(tmp_path / "a.json")


def test_another_machine_is_named():
    now = copy.deepcopy(run_of())
    assert other_machine({"machine": MACHINE}, now) is None
    now["machine"]["cpus"] = "16"
    assert "cpus 2 then, 16 now" in str(other_machine({"machine": MACHINE}, now))
