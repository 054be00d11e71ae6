"""The figure of the frontier: every row is named once per panel, and no label hides another."""

import itertools
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text

from policy import frontier_figure
from policy.frontier_figure import draw, from_root, merge_labels, place_labels, table, to_root

MEASURED: dict[str, Any] = {
    "success_interval": [0.9, 1.0],
    "success": 1.0,
    "score": 1.0,
    "calls_per_action": 1.0,
    "latency": {"p50_ms": 1.0, "p99_ms": 2.0},
    "jump": None,
    "reaction": None,
}


def row(number, calls, **more):
    name = {"name": f"row {number}", "sampler": "ddim_8"}
    return {**MEASURED, **name, "calls_per_action_in_all": calls, **more}


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws rows and returns the figure, which `draw` closes."""

    def figure_of(rows):
        kept = []
        monkeypatch.setattr(plt, "close", kept.append)
        draw(rows, tmp_path / "a.png", title="a title")
        monkeypatch.undo()
        assert (tmp_path / "a.png").stat().st_size > 5000
        return kept[0]

    yield figure_of
    plt.close("all")


def labels_of(axes):
    return [text.get_text() for text in axes.texts]


def test_points_at_one_place_share_a_label(drawn):
    rows = [row(1, 1.0), row(2, 4.0), row(3, 1.0), row(4, 1.0)]
    (axes,) = drawn(rows).axes
    assert sorted(labels_of(axes)) == ["1, 3, 4", "2"]


def test_labels_merge_by_place():
    places = {"1": (0.0, 0.0), "2": (100.0, 0.0), "3": (0.5, 0.5), "4": (0.0, 100.0)}
    assert [label.text for label in merge_labels(places)] == ["1, 3", "2", "4"]


def test_no_label_covers_another_or_a_point():
    """Thirty points in a strip, as near each other as labels are wide."""
    places = {str(i): (7.0 * i, float(i % 3)) for i in range(1, 31)}
    labels = merge_labels(places)
    boxes = [label.box(*at) for label, at in zip(labels, place_labels(labels), strict=True)]
    for one, other in itertools.combinations(boxes, 2):
        is_apart = one[2] <= other[0] or other[2] <= one[0]
        assert is_apart or one[3] <= other[1] or other[3] <= one[1]
    for (left, bottom, right, top), (x, y) in itertools.product(boxes, places.values()):
        assert not (left < x < right and bottom < y < top)


def test_drawn_labels_of_many_rows_near_1_lie_apart(drawn):
    """Measured by the renderer, not by the sizes that they are placed with."""
    rng = np.random.default_rng(0)
    rows = [
        row(i, 2 ** rng.uniform(-1, 2), success=1 - 0.01 * (i % 4), success_interval=[0.93, 1.0])
        for i in range(24)
    ]
    figure = drawn(rows)
    renderer = figure.canvas.get_renderer()
    # Of the text alone: an annotation's own extent holds its line too.
    boxes = [Text.get_window_extent(t, renderer) for t in figure.axes[0].texts]
    area = figure.axes[0].get_window_extent(renderer)
    for one, other in itertools.combinations(boxes, 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert width <= 1 or height <= 3  # A line of text is higher than its digits.
    assert all(area.y0 < box.y0 and box.y1 < area.y1 for box in boxes)


def test_every_row_is_named_below_the_axes(drawn):
    rows = [row(i, float(i)) for i in range(1, 12)]
    figure = drawn(rows)
    named = {text.get_text(): text.get_position()[1] for text in figure.texts}
    assert {each["name"] for each in rows} <= set(named)
    lowest = min(axes.get_position().y0 for axes in figure.axes)
    assert all(0 < named[each["name"]] < lowest for each in rows)
    assert all(axes.get_legend() is None for axes in figure.axes)


def test_calls_are_those_in_all_on_a_logarithmic_axis(drawn):
    (axes,) = drawn([row(1, 1.125, calls_per_action=1.0)]).axes
    assert axes.get_xscale() == "log"
    (annotation,) = axes.texts
    assert annotation.xy == (1.125, 1.0)


def test_share_of_the_first_way_stands_in_a_band_around_one_half(drawn):
    reaction = {"within_2": 0.5, "first": 0.2, "delay": 1, "curve": [0.2, 0.4, 0.5]}
    ways = {"left": 0.8, "right": 0.2}
    rows = [
        row(1, 1.0, modes=ways, reaction=reaction),
        row(2, 2.0, modes={"left": 0.0, "right": 0.0}, success=0.0, success_interval=[0.0, 0.1]),
    ]
    _, answers, balance = drawn(rows).axes
    assert labels_of(answers) == labels_of(balance) == ["1"]  # Without success there is no share.
    assert balance.texts[0].xy == (0.8, 1.0)
    assert "went left" in balance.get_xlabel()
    (band,) = balance.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((0.35, 0.65))


def test_only_rows_that_failed_are_drawn_and_listed(drawn):
    failed = {"name": "row 1", "error": "a prediction is not finite"}
    assert labels_of(drawn([failed]).axes[0]) == []
    assert "a prediction is not finite" in table([failed])


def test_scale_of_the_success_is_the_root_of_the_failures():
    success = np.array([0.0, 0.19, 0.75, 0.99, 1.0, 1.04])
    np.testing.assert_allclose(to_root(success), [-1, -0.9, -0.5, -0.1, 0, 0.2], atol=1e-12)
    np.testing.assert_allclose(from_root(to_root(success)), success, atol=1e-12)
    assert set(frontier_figure.TICKS) >= {0, 1}
