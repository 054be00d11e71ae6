"""`cadence frontier` on an untrained network: rows, intervals, files, going on, refusals."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from policy import frontier
from policy.agent import Agent, NotFiniteError
from policy.checkpoint import load
from policy.entry import compose_config
from policy.fingerprint import fingerprint
from policy.frontier_figure import table
from policy.frontier_rows import name_of, read_rows
from policy.play import Executor
from policy.sampler_fit import FILE, SamplerFit, save_fit


def config(checkpoint, out, *more):
    rows = "[{sampler: ddim_8, set: {grid: {n_steps: 2}}, action: 8}, {sampler: rti, action: 4}]"
    small = [
        "episodes=2",
        "num_envs=2",
        "repeats=2",
        "reaction.episodes=2",
        "reaction.ticks=3",
        "reaction.samples=2",
        "+reaction.reference.set.grid.n_steps=2",
    ]
    overrides = [f"checkpoint={checkpoint}", "env=pillar", f"out={out}", f"suite.rows={rows}"]
    return compose_config("frontier", [*overrides, *small, *more])


NO_REACTION = "reaction.episodes=0"  # Most of the time that a row takes.


def test_rows_files_and_going_on(pillar_checkpoint, tmp_path, capsys, monkeypatch):
    out = tmp_path / "frontier"
    results = frontier.run(config(pillar_checkpoint, out))
    first, second = json.loads((out / "frontier.json").read_text())["rows"]
    assert (first["nfe"], first["calls_per_action"]) == (2, 0.25)
    # Three steps, and one call for the gripper.
    assert (second["nfe"], second["start_nfe"], second["calls_per_action"]) == (4, 8, 1.0)
    lengths = [episode[3] for episode in second["episodes"]]
    chunks = sum(-(-length // 4) for length in lengths)
    assert second["calls_per_action_in_all"] == pytest.approx((2 * 8 + 4 * chunks) / sum(lengths))
    for row in (first, second):
        assert row["success_interval"][0] <= row["success"] <= row["success_interval"][1]
        assert row["latency"]["p50_ms"] <= row["latency"]["p99_ms"]
        assert row["jump"] is None or row["jump"] > 0  # Untrained, an episode ends in 1 or 2 steps.
        assert len(row["reaction"]["curve"]) == 3
        assert set(row["modes"]) == {"left", "right"}
    assert (out / "frontier.png").stat().st_size > 10_000
    assert table(results["rows"]) in capsys.readouterr().out

    def must_not(*args):
        raise AssertionError("rows that are there are not measured again")

    monkeypatch.setattr(frontier.Rig, "measure", must_not)
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
        ("[{sampler: rti, set: {restart: {sigma: 99.0}}}]", "restart levels are 99"),
        ("[{sampler: ddim_8, action: 8, delay: 9}]", "inference_delay is 9"),
        ("[{sampler: ddim_8, action: 4.0}]", "must be whole numbers"),
        ("[{sampler: ddim_8, set: null}]", "must be settings"),
        ("[{sampler: ddim_8, set: {n_stepz: 2}}]", "n_stepz"),
        ("[{sampler: ../env/pillar}]", r"sampler is '\.\./env/pillar', there are .*ddim_8"),
        ("[{sampler: rti, set: {restart: {sigma: inf}}}]", "its numbers must be finite"),
        ("[{sampler: rti, goal_weight: nan}]", "its numbers must be finite"),
        ("[null]", "a row is None: it needs a sampler"),
    ],
)
def test_impossible_rows_are_refused_before_anything_is_measured(
    pillar_checkpoint, tmp_path, rows, message
):
    with pytest.raises(Exception, match=message):
        frontier.run(config(pillar_checkpoint, tmp_path / "out", f"suite.rows={rows}"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("reaction.ticks=2", "reaction.ticks is 2"),
        ("repeats=0", "repeats is 0"),
        ("reaction.first_tick=0", "reaction.first_tick is 0"),
        ("reaction.samples=3", "reaction.samples is 3"),
        ("+reaction.reference.set.sigma=inf", "reaction is .*must be finite"),
    ],
)
def test_settings_that_would_fail_late_are_refused(pillar_checkpoint, tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        frontier.run(config(pillar_checkpoint, tmp_path / "out", setting))


@pytest.mark.parametrize(
    "content", ['{"settings": {', "{}", "[]", "3", '{"settings": 1, "rows": [], "fingerprint": {}}']
)
def test_a_folder_with_results_that_cannot_be_read_is_refused(pillar_checkpoint, tmp_path, content):
    file = tmp_path / "frontier.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"frontier\.json holds no results .*choose another"):
        frontier.run(config(pillar_checkpoint, tmp_path))
    assert file.read_text() == content


ONE_ROW = "suite.rows=[{sampler: ddim_8, set: {grid: {n_steps: 1}}, action: 8}]"


def test_results_of_other_fitted_tensors_are_not_taken_over(pillar_checkpoint, tmp_path):
    """Anchors that have changed, while the grids stay."""
    loaded = load(shutil.copytree(pillar_checkpoint, tmp_path / "run", symlinks=True))
    chunk = loaded.horizons.pred, loaded.contract.action.size
    grids = {1: torch.tensor([20.0, 0.0])}
    save_fit(loaded.path, SamplerFit(grids, torch.zeros(2, *chunk)))
    cfg = config(tmp_path / "run", tmp_path / "out", ONE_ROW, NO_REACTION)
    before = frontier.run(cfg)["settings"]["files"]
    assert len(frontier.run(cfg)["rows"]) == 1
    save_fit(loaded.path, SamplerFit(grids, torch.ones(2, *chunk)))
    with pytest.raises(ValueError, match=r"results of other settings \(files\)"):
        frontier.run(cfg)
    cfg.out = str(tmp_path / "other")
    after = frontier.run(cfg)["settings"]["files"]
    assert [name for name in after if after[name] != before[name]] == [FILE]


def test_rows_keep_the_fingerprint_of_the_programs_that_measured_them(
    pillar_checkpoint, tmp_path, monkeypatch
):
    frontier.run(config(pillar_checkpoint, tmp_path, ONE_ROW, NO_REACTION))
    monkeypatch.setattr(frontier, "fingerprint", lambda: {"cadence": "newer"})
    both = ONE_ROW.replace("]", ", {sampler: ddim_8, set: {grid: {n_steps: 2}}, action: 8}]")
    results = frontier.run(config(pillar_checkpoint, tmp_path, both, NO_REACTION))
    old, new = [row["fingerprint"] for row in results["rows"]]
    assert old == fingerprint()
    assert new == results["fingerprint"] == {"cadence": "newer"}
    # Rows of a file from before they had one each.
    file = tmp_path / "frontier.json"
    written = json.loads(file.read_text())
    for row in written["rows"]:
        del row["fingerprint"]
    file.write_text(json.dumps(written))
    results = frontier.run(config(pillar_checkpoint, tmp_path, both, NO_REACTION))
    assert [row["fingerprint"] for row in results["rows"]] == [{"cadence": "newer"}] * 2


def test_success_and_score_are_those_of_all_episodes(pillar_checkpoint, tmp_path, monkeypatch):
    play = frontier.Rig._play

    def played(rig, agent):
        episodes, executor = play(rig, agent)
        outcomes = [(0.25, False, 0), (1.0, True, 1), (0.75, False, 0), (0.5, True, 2)]
        for episode, (score, success, mode) in zip(episodes, outcomes, strict=True):
            episode.score, episode.success, episode.mode = score, success, mode
        return episodes, executor

    monkeypatch.setattr(frontier.Rig, "_play", played)
    cfg = config(pillar_checkpoint, tmp_path, ONE_ROW, "episodes=4", NO_REACTION)
    (row,) = frontier.run(cfg)["rows"]
    _, scores, successes, lengths, modes = zip(*row["episodes"], strict=True)
    assert row["n_episodes"] == len(row["episodes"]) == 4
    assert row["score"] == sum(scores) / 4 == 0.625
    assert row["success"] == sum(successes) / 4 == 0.5
    assert row["mean_length"] == sum(lengths) / 4
    assert row["modes"] == {"left": 0.5, "right": 0.5}
    assert modes == (0, 1, 0, 2)


def test_jump_is_of_differences_so_that_an_offset_of_the_scale_has_no_part():
    """Jumps of 1 and -3 in the first element and 0 and 2 in the second, scaled by 2 and 0.5."""
    scale, offset = torch.tensor([2.0, 0.5]), torch.tensor([7.0, -5.0])
    policy = SimpleNamespace(chunk=lambda actions, told: actions * scale + offset)
    agent = cast(Agent, SimpleNamespace(policy=policy, device=torch.device("cpu")))
    jumps = [np.array([[1.0, 0.0]], np.float32), np.array([[-3.0, 2.0]], np.float32)]
    jumps.append(np.zeros((0, 2), np.float32))
    executor = cast(Executor, SimpleNamespace(jumps=jumps, told=[{}] * 3))
    squares = [2.0**2, 0.0, 6.0**2, 1.0**2]
    assert frontier._jump(agent, executor) == pytest.approx(math.sqrt(sum(squares) / 4))
    assert frontier._jump(agent, cast(Executor, SimpleNamespace(jumps=[], told=[]))) is None


def test_an_interrupted_run_goes_on_with_the_rows_that_are_missing(
    pillar_checkpoint, tmp_path, monkeypatch
):
    measure, names = frontier.Rig.measure, []

    def interrupted(rig, row):
        names.append(row["name"])
        if len(names) == 2:
            raise KeyboardInterrupt
        return measure(rig, row)

    monkeypatch.setattr(frontier.Rig, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        frontier.run(config(pillar_checkpoint, tmp_path, NO_REACTION))
    assert (tmp_path / "frontier.txt").exists()
    assert len(frontier.run(config(pillar_checkpoint, tmp_path, NO_REACTION))["rows"]) == 2
    assert names[1:] == [names[1]] * 2


def test_a_row_that_fails_is_kept_with_its_error(pillar_checkpoint, tmp_path, monkeypatch):
    def broken(rig, agent):
        raise NotFiniteError("a prediction is not finite")

    monkeypatch.setattr(frontier.Rig, "_play", broken)
    (first, _) = frontier.run(config(pillar_checkpoint, tmp_path, NO_REACTION))["rows"]
    assert first["error"] == "a prediction is not finite"
    assert "a prediction is not finite" in (tmp_path / "frontier.txt").read_text()
    monkeypatch.undo()
    rows = frontier.run(config(pillar_checkpoint, tmp_path, NO_REACTION))["rows"]
    assert not any("error" in row for row in rows)


def test_rows_without_executed_actions_take_the_trained_ones(pillar_checkpoint, tmp_path):
    one = "sampler: ddim_8, set: {grid: {n_steps: 1}}"
    rows = f"suite.rows=[{{{one}, action: 4}}, {{{one}}}]"
    results = frontier.run(config(pillar_checkpoint, tmp_path, rows, NO_REACTION))
    assert [row["action"] for row in results["rows"]] == [4, 8]


def test_row_names_say_everything():
    cfg = compose_config(
        "frontier",
        ["env=pillar", "suite.rows=[{sampler: rti, set: {n_steps: 2}, action: 4, delay: 1}]"],
    )
    (row,) = read_rows(cfg)
    assert name_of(row) == "rti n_steps=2, 4 executed, 1 late"


def test_suites_are_readable():
    folder = Path(frontier.__file__).resolve().parents[1] / "configs" / "suite"
    for suite in folder.glob("*.yaml"):
        cfg = compose_config("frontier", ["env=pillar", f"suite={suite.stem}"])
        assert read_rows(cfg)
