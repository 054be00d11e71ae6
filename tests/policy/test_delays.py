"""`cadence delays`: rows are measured once, resumed, refused by name, drawn and told."""

import json

import pytest
from matplotlib import image

from policy.delays import RESULTS, read_rows, run
from policy.delays_figure import draw, table
from policy.entry import compose_config

ROWS = (
    "seams.rows=[{name: switch, sampler: ddim_8, set: {grid: {n_steps: 1}}},"
    "{name: blended, seam: blend, sampler: ddim_8, set: {grid: {n_steps: 1}}, action: 4}]"
)


def config(checkpoint, out, *overrides):
    return compose_config(
        "delays",
        [
            f"checkpoint={checkpoint}",
            f"out={out}",
            "env=pick_place",
            "+env.max_episode_steps=12",
            "episodes=1",
            "delays=[0,2]",
            ROWS,
            *overrides,
        ],
    )


def test_every_row_is_measured_at_every_delay_and_only_once(pillar_checkpoint, tmp_path, capsys):
    measured = run(config(pillar_checkpoint, tmp_path))["measured"]
    assert [(m["name"], m["delay"], m["action"]) for m in measured] == [
        ("switch", 0, 8),
        ("switch", 2, 8),
        ("blended", 0, 4),
        ("blended", 2, 4),
    ]
    assert [m["episodes"][0]["length"] for m in measured] == [12] * 4
    assert [m["timing"]["delays"] for m in measured] == [
        {"0": 1},
        {"2": 1},
        {"0": 2},
        {"2": 2},
    ]
    capsys.readouterr()
    assert (
        run(config(pillar_checkpoint, tmp_path))["measured"]
        == json.loads((tmp_path / RESULTS).read_text())["measured"]
    )
    printed = capsys.readouterr().out
    assert "switch, 0 ticks late" not in printed  # Nothing was played again.
    assert (tmp_path / "delays.txt").read_text().count("\n") == 5
    with pytest.raises(ValueError, match=r"other settings .*seed"):
        run(config(pillar_checkpoint, tmp_path, "seed=5"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("[]", "no rows"),
        ("[{sampler: ddim_8}]", "needs a name"),
        ("[{name: a, sampler: ddim_8, colour: red}]", "may have"),
        ("[{name: a, sampler: ddim_8, action: 1.5}]", "whole number"),
    ],
)
def test_a_row_that_says_too_little_or_too_much_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        read_rows(compose_config("delays", ["env=pillar", f"seams.rows={rows}"]))


def entry(name, delay, success):
    return {
        "name": name,
        "delay": delay,
        "action": 4,
        "calls_per_action": 0.5,
        "success": success,
        "success_interval": [success - 0.1, success + 0.1],
        "score": 0.9,
        "relative_jumps": {"max": 1.25, "p99": 1.5} if delay else {},
        "timing": {"n_held": 5, "n_commands": 100},
    }


def test_the_table_has_a_line_for_each_and_the_figure_shows_more_lines_with_more_rows(tmp_path):
    few = [entry("a", delay, 0.5) for delay in (0, 2)]
    more = [*few, *(entry("b", delay, 0.8) for delay in (0, 2))]
    lines = table(more).splitlines()
    assert len(lines) == 5
    first = "a 0 4 0.50 0.500 [0.400, 0.600] 0.900 0.050 - -"
    assert " ".join(lines[1].split()) == first
    assert lines[2].split()[-2:] == ["1.25", "1.50"]
    inked = []
    for number, entries in enumerate((few, more)):
        draw(entries, tmp_path / f"{number}.png", title="t")
        inked.append(int((image.imread(tmp_path / f"{number}.png")[..., :3].min(-1) < 0.9).sum()))
    assert 0 < inked[0] < inked[1]
