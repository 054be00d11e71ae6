"""`cadence frontier` on an untrained network: rows, intervals, files, going on, refusals."""

import json
from pathlib import Path

import pytest

from policy import frontier
from policy.entry import compose_config
from policy.frontier import name_of, read_rows
from policy.frontier_figure import table


def config(checkpoint, out, *more):
    rows = "[{sampler: ddim_8, set: [grid.n_steps=2], action: 8}, {sampler: rti, action: 4}]"
    small = ["episodes=2", "num_envs=2", "repeats=2", "reaction.episodes=2", "reaction.ticks=3"]
    overrides = [f"checkpoint={checkpoint}", "env=pillar", f"out={out}", f"suite.rows={rows}"]
    return compose_config("frontier", [*overrides, *small, *more])


def test_rows_files_and_going_on(pillar_checkpoint, tmp_path, capsys, monkeypatch):
    out = tmp_path / "frontier"
    results = frontier.run(config(pillar_checkpoint, out))
    first, second = json.loads((out / "frontier.json").read_text())["rows"]
    assert (first["nfe"], first["calls_per_action"]) == (2, 0.25)
    assert (second["nfe"], second["start_nfe"], second["calls_per_action"]) == (3, 8, 0.75)
    lengths = [episode[3] for episode in second["episodes"]]
    chunks = sum(-(-length // 4) for length in lengths)
    assert second["calls_per_action_in_all"] == pytest.approx((2 * 8 + 3 * chunks) / sum(lengths))
    for row in (first, second):
        assert row["success_interval"][0] <= row["success"] <= row["success_interval"][1]
        assert row["latency"]["p50_ms"] <= row["latency"]["p99_ms"]
        assert row["jump"] > 0
        assert len(row["reaction"]["curve"]) == 3
        assert set(row["modes"]) == {"left", "right"}
    assert (out / "frontier.png").stat().st_size > 10_000
    assert table(results["rows"]) in capsys.readouterr().out

    def must_not(*args):
        raise AssertionError("rows that are there are not measured again")

    monkeypatch.setattr(frontier.Bench, "measure", must_not)
    assert (
        frontier.run(config(pillar_checkpoint, out))["rows"]
        == json.loads((out / "frontier.json").read_text())["rows"]
    )
    with pytest.raises(ValueError, match="results of other settings"):
        frontier.run(config(pillar_checkpoint, out, "seed=5"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("[]", "no rows"),
        ("[{action: 8}]", "needs a sampler"),
        ("[{sampler: rti, actoin: 8}]", "actoin"),
        ("[{sampler: rti, action: 99}]", "horizons.action is 99"),
        ("[{sampler: rti, set: [restart.sigma=99.0]}]", "restart levels are 99"),
        ("[{sampler: ddim_8, action: 8, delay: 9}]", "inference_delay is 9"),
    ],
)
def test_impossible_rows_are_refused_before_anything_is_measured(
    pillar_checkpoint, tmp_path, rows, message
):
    with pytest.raises(Exception, match=message):
        frontier.run(config(pillar_checkpoint, tmp_path / "out", f"suite.rows={rows}"))
    assert not (tmp_path / "out").exists()


def test_row_names_say_everything():
    cfg = compose_config(
        "frontier",
        ["env=pillar", "suite.rows=[{sampler: rti, set: [n_steps=2], action: 4, delay: 1}]"],
    )
    (row,) = read_rows(cfg)
    assert name_of(row) == "rti n_steps=2, 4 executed late by 1"


def test_suites_are_readable():
    folder = Path(frontier.__file__).resolve().parents[1] / "configs" / "suite"
    for suite in folder.glob("*.yaml"):
        cfg = compose_config("frontier", ["env=pillar", f"suite={suite.stem}"])
        assert read_rows(cfg)
