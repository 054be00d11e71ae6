"""The report is one file that asks nothing of a network and shows the numbers it was given."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from policy.demo_report import Results, Stage, headline, panels
from policy.durable import write_text
from policy.figures import durations, rates, training_curves
from policy.report import Panel, Row, html_page, table, video
from policy.scene import Fan, Rollout, Sketch

METRICS = [
    {"step": 10, "loss": 0.5},
    {"step": 20, "loss": 0.25},
    {"step": 20, "val_loss": 0.3},
]


class Attributes(HTMLParser):
    """Collects what a page would load, its ids, and tags left open."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, page):
        super().__init__()
        self.loads, self.ids, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset") and v]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_self_contained(page):
    parsed = Attributes(page)
    assert all(load.startswith(("data:", "#")) for load in parsed.loads)
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    assert len(parsed.ids) == len(set(parsed.ids))
    assert parsed.open == []


def summary(p50, n=30):
    return {"n": n, "mean": p50, "p50": p50, "p95": 2 * p50, "p99": 3 * p50, "max": 4 * p50}


def results(*, videos=(), sketches=()):
    episodes = [
        {
            "seed": 100000 + i,
            "success": i < 90,
            "score": float(i < 90),
            "length": 40,
            "mode": 1 + i % 2,
        }
        for i in range(100)
    ]
    return Results(
        stages={
            verb: Stage(verb, f"cadence {verb} env=pillar", 30.0)
            for verb in ("collect", "train", "evaluate", "run")
        },
        metrics=METRICS,
        evaluation={
            "n_episodes": 100,
            "success": 0.9,
            "success_interval": [0.826, 0.945],
            "score": 0.91,
            "score_interval": [0.83, 0.96],
            "modes": {"left": 0.5, "right": 0.5},
            "calls_per_action": 1.0,
            "nfe": 8,
            "action_horizon": 8,
            "episodes": episodes,
        },
        control={
            "episodes": [{"seed": 7, "success": True}, {"seed": 8, "success": False}],
            "timing": {
                "n_commands": 77,
                "n_missed": 3,
                "period": summary(0.1),
                "latency": summary(0.0123),
                "delay": summary(0.001),
            },
            "samples": {
                "period": [0.1] * 29 + [0.0925],
                "latency": [0.0123] * 30,
                "delay": [0.001] * 30,
            },
        },
        n_demonstrations=200,
        videos=videos,
        sketches=sketches,
        control_dt=0.1,
        redraw="cadence demo fresh=false",
    )


def a_sketch():
    rng = np.random.default_rng(0)
    track = np.linspace([0.0, 0.0], [0.3, 0.1], 20)
    rollout = Rollout(7, {"gripper": track, "force": track[:, 0]}, track, True, "left")
    return Sketch(rollout, [], Fan(7, 4, rng.normal(size=(6, 5, 3)), []))


def demo_page(made):
    return html_page(title="t", lead="l", rows=headline(made), panels=panels(made))


def test_page_is_self_contained_and_shows_its_numbers():
    page = demo_page(results(sketches=[a_sketch()]))
    check_self_contained(page)
    for shown in (
        "0.90 [0.83, 0.94]",
        "0.91 [0.83, 0.96]",
        "left 0.50, right 0.50",
        "12.3 / 24.6 / 36.9 ms",
        "100.0 / 200.0 / 300.0 ms",
        "3 of 80",
        "1 of 2",
        "0.5 min",
        "20 steps on 200 demonstrations",
        "2.0 min",
        "largest deviation 7.50 ms",
        "seeds 100000..100099",
        "cadence train env=pillar",
    ):
        assert shown in page, shown


def test_page_without_anything_to_draw_from_above_still_stands():
    page = demo_page(results())
    check_self_contained(page)
    assert "What the policy could do next" not in page


def test_page_of_a_run_that_ended_at_once_still_stands():
    made = results()
    timing = {**made.control["timing"], "period": None, "latency": None, "n_commands": 0}
    nothing = {"period": [], "latency": [], "delay": []}
    control = {**made.control, "timing": timing, "samples": nothing, "episodes": []}
    page = demo_page(replace(made, control=control, metrics=[]))
    check_self_contained(page)
    assert "no samples" in page


def test_every_panel_says_how_it_came_about():
    for panel in panels(results(sketches=[a_sketch()])):
        assert panel.command.startswith("cadence ")
        assert re.search(r"\d", panel.source)


def test_film_is_inside_the_page(tmp_path):
    path = tmp_path / "seed_7.mp4"
    path.write_bytes(b"not really a film")
    assert base64.b64encode(b"not really a film").decode() in video(path)
    page = demo_page(results(videos=[path], sketches=[a_sketch()]))
    check_self_contained(page)
    assert "<video" in page
    assert "<animate" not in page


def test_rollout_moves_where_there_is_no_film():
    assert "<animate" in demo_page(results(sketches=[a_sketch()]))


def test_text_is_escaped():
    row, panel = Row("<a>", "&", "<b>"), Panel("<c>", "<d>", "", "<e>", "<f>")
    page = html_page(title="<t>", lead="<l>", rows=[row], panels=[panel])
    for raw in ("<a>", "<b>", "<c>", "<d>", "<e>", "<f>", "<t>", "<l>"):
        assert raw not in page


def test_terminal_table_is_aligned():
    lines = table([Row("a", "1", "x"), Row("long name", "22 ms")]).splitlines()
    assert lines == ["a          1      x", "long name  22 ms"]


def test_save_replaces_the_page(tmp_path):
    path = tmp_path / "report.html"
    write_text(path, "old")
    write_text(path, "ä new")
    assert path.read_text(encoding="utf-8") == "ä new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("svg", "words"),
    [
        (training_curves(METRICS), ["training step", "validation, averaged weights"]),
        (rates({"left": (0.25, (0.1, 0.4))}), ["left", "0.25"]),
        (
            durations([0.01, 0.02], label="latency", marks={"p50": 0.015}),
            ["p50 15.0", "latency [ms]"],
        ),
    ],
    ids=["curves", "rates", "durations"],
)
def test_charts_hold_their_words_as_text_in_the_colours_of_the_page(svg, words):
    text = re.sub(r"<[^>]*>", " ", svg)
    for word in words:
        assert word in text
    assert "var(--series-1)" in svg
    assert "#0101" not in svg
    check_self_contained(svg)


def test_the_same_chart_is_the_same_text():
    assert training_curves(METRICS) == training_curves(METRICS)
