"""The table and the figure of `cadence frontier`.

In the figure rows are numbered points; what the numbers mean stands below the axes. Points that lie
on each other share a label, and no label covers another or a point.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from numpy.typing import ArrayLike

LINE_LENGTH = 46  # of a row's name

# Sizes in the figure [points].
PANEL_WIDTH, PANEL_HEIGHT = 390.0, 330.0
LEFT, BOTTOM, TOP, GAP = 48.0, 42.0, 28.0, 50.0
FONT_SIZE, LINE_HEIGHT = 8.0, 11.0
CHARACTER = 0.64 * FONT_SIZE  # width of a digit
MARKER = 3.0  # half the width of a point; points as near as that share a label
INCH = 72.0

# Of the ways in the demonstrations of an environment that has two of them.
BALANCE, TOLERANCE = 0.5, 0.15

TICKS = (0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1)  # of the success

Colour = tuple[float, float, float, float]
Quantity = Callable[[Mapping], float]


def table(rows: Sequence[Mapping]) -> str:
    """One line per row, for a terminal."""
    head = (
        f"{'sampler, executed actions':<{LINE_LENGTH}}{'success':>20}{'score':>7}{'calls':>7}"
        f"{'p50 ms':>8}{'p99 ms':>8}{'jump':>7}{'first':>7}{'by 2':>6}{'half':>5}  ways"
    )
    return "\n".join([head, *(_line(row) for row in rows)])


def _line(row: Mapping) -> str:
    name = _wrapped(row["name"])
    if "error" in row:
        return f"{name:<{LINE_LENGTH}}{row['error']}"
    low, high = row["success_interval"]
    ways = " ".join(f"{name} {share:.2f}" for name, share in row.get("modes", {}).items())
    return (
        f"{name:<{LINE_LENGTH}}{row['success']:>6.3f} [{low:.3f}, {high:.3f}]{row['score']:>7.3f}"
        f"{row['calls_per_action']:>7.2f}{row['latency']['p50_ms']:>8.1f}"
        f"{row['latency']['p99_ms']:>8.1f}{_number(row['jump'], 3):>7}{_reaction(row)}  {ways}"
    )


def _reaction(row: Mapping) -> str:
    """Shares at once and after two ticks, and the ticks to a half; "-" is not measured."""
    reaction = row["reaction"]
    if not reaction:
        return f"{'-':>7}{'-':>6}{'-':>5}"
    later = f">{len(reaction['curve']) - 1}"
    delay = later if reaction["delay"] is None else str(reaction["delay"])
    return f"{_number(reaction['first'], 2):>7}{_number(reaction['within_2'], 2):>6}{delay:>5}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _wrapped(name: str) -> str:
    """A long name on a line of its own."""
    return name if len(name) < LINE_LENGTH else f"{name}\n{'':<{LINE_LENGTH}}"


@dataclass(frozen=True)
class Label:
    """A label and the points it belongs to.

    Args:
        text: numbers of the rows.
        x: of the points [points of the page].
        y: the same.
    """

    text: str
    x: float
    y: float

    def box(self, dx: float, dy: float) -> tuple[float, float, float, float]:
        """Left, bottom, right and top of the text and a gap, if it begins so far from here."""
        left, bottom = self.x + dx, self.y + dy
        return left - 1, bottom, left + CHARACTER * len(self.text) + 1.5, bottom + FONT_SIZE


def merge_labels(places: Mapping[str, tuple[float, float]]) -> list[Label]:
    """One label for all points that lie on each other, such as "3, 7, 12".

    Args:
        places: number of a row -> x, y of its point [points of the page].
    """
    groups: list[tuple[float, float, list[str]]] = []
    for number, (x, y) in places.items():
        for x_group, y_group, numbers in groups:
            if abs(x - x_group) <= MARKER and abs(y - y_group) <= MARKER:
                numbers.append(number)
                break
        else:
            groups.append((x, y, [number]))
    return [Label(", ".join(numbers), x, y) for x, y, numbers in groups]


def place_labels(labels: Sequence[Label]) -> list[tuple[float, float]]:
    """Where each text begins, from its points: the nearest place that is free."""
    taken = [(p.x - MARKER, p.y - MARKER, p.x + MARKER, p.y + MARKER) for p in labels]
    offsets = {}
    for i in sorted(range(len(labels)), key=lambda i: (labels[i].x, labels[i].y)):
        label = labels[i]
        middle = -CHARACTER * len(label.text) / 2
        heights = [MARKER + 1 + LINE_HEIGHT * line for line in range(12)]
        tries = [(MARKER + 2, -FONT_SIZE / 2), (middle, heights[0])]
        tries += [(dx, dy) for dy in heights for dx in (MARKER + 2, middle)]
        tries += [(middle, -dy - FONT_SIZE) for dy in heights]
        free = (o for o in tries if not any(_overlap(label.box(*o), box) for box in taken))
        offsets[i] = next(free, tries[0])
        taken.append(label.box(*offsets[i]))
    return [offsets[i] for i in range(len(labels))]


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two boxes (left, bottom, right, top) share an area."""
    is_beside = one[0] >= other[2] or other[0] >= one[2]
    return not (is_beside or one[1] >= other[3] or other[1] >= one[3])


def draw(rows: Sequence[Mapping], path: Path, *, title: str) -> None:
    """Success against calls, against the reaction, and against the balance of ways, as a picture.

    Args:
        rows: of `cadence frontier`.
        path: of the PNG.
        title: of the figure.
    """
    whole = {str(i): row for i, row in enumerate(_finished(rows), start=1)}
    panels: list[tuple[str, dict[str, Mapping], Quantity]] = [
        (
            "denoiser calls per executed action, starts included",
            whole,
            lambda row: row["calls_per_action_in_all"],
        )
    ]
    reacting = {i: row for i, row in whole.items() if _answer(row) is not None}
    if reacting:
        label = "share of the wanted answer executed 2 ticks after a displacement"
        panels.append((label, reacting, lambda row: row["reaction"]["within_2"]))
    branching = {i: row for i, row in whole.items() if _has_two_ways(row) and row["success"] > 0}
    if branching:
        first = next(iter(next(iter(branching.values()))["modes"]))
        label = f"share of the successes that went {first} (band: one half ± {TOLERANCE})"
        panels.append((label, branching, lambda row: next(iter(row["modes"].values()))))
    figure, all_axes = _figure(len(panels), n_lines=-(-len(whole) // len(panels)))
    figure.suptitle(title, fontsize=10, y=1 - 6 / (INCH * figure.get_figheight()), va="top")
    colours = _colours(list(whole.values()))
    for axes, (label, chosen, x_of) in zip(all_axes, panels, strict=True):
        axes.set_xlabel(label, fontsize=9)
        _limit(axes, list(whole.values()))
        if axes is all_axes[0]:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        if chosen is branching:
            axes.set_xlim(-0.03, 1.03)
            axes.axvspan(BALANCE - TOLERANCE, BALANCE + TOLERANCE, color="tab:green", alpha=0.1)
            axes.axvline(BALANCE, color="tab:green", alpha=0.4, linewidth=0.8)
        _scatter(axes, chosen, colours, x_of)
    _list_names(figure, whole, colours, n_columns=len(panels))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _finished(rows: Sequence[Mapping]) -> list[Mapping]:
    return [row for row in rows if "error" not in row]


def _answer(row: Mapping) -> float | None:
    return row["reaction"]["within_2"] if row["reaction"] else None


def _has_two_ways(row: Mapping) -> bool:
    return len(row.get("modes", {})) == 2


def _colours(rows: Sequence[Mapping]) -> dict[str, Colour]:
    """A colour for each sampler."""
    samplers = sorted({row["sampler"] for row in rows})
    palette = plt.get_cmap("tab10" if len(samplers) <= 10 else "tab20")
    return {sampler: palette(i % palette.N) for i, sampler in enumerate(samplers)}


def _figure(n_panels: int, *, n_lines: int) -> tuple[Figure, list[Axes]]:
    """Panels side by side, with room for so many lines of text below."""
    width = n_panels * (PANEL_WIDTH + GAP) + 10
    text = BOTTOM + (n_lines + 1) * LINE_HEIGHT
    height = text + PANEL_HEIGHT + TOP
    figure = plt.figure(figsize=(width / INCH, height / INCH))
    lefts = [LEFT + i * (PANEL_WIDTH + GAP) for i in range(n_panels)]
    size = PANEL_WIDTH / width, PANEL_HEIGHT / height
    return figure, [figure.add_axes((left / width, text / height, *size)) for left in lefts]


def to_root(success: ArrayLike) -> Any:
    """The scale of the success: minus the root of the failures; of as much above 1, the root.

    Rows near 1 stand apart, and an interval is about as long wherever it is.
    """
    return np.sign(np.subtract(success, 1)) * np.sqrt(np.abs(np.subtract(success, 1)))


def from_root(root: ArrayLike) -> Any:
    """Inverse of `to_root`."""
    return 1 + np.sign(root) * np.square(root)


def _limit(axes: Axes, rows: Sequence[Mapping]) -> None:
    """The success from the lowest interval to the highest, with room for labels."""
    low = min((row["success_interval"][0] for row in rows), default=0.0)
    high = max((row["success_interval"][1] for row in rows), default=1.0)
    bottom, top = to_root(low), to_root(high)
    margin = 0.05 * (top - bottom) + 0.01
    bottom, top = from_root(bottom - margin), from_root(top + 3 * margin)
    axes.set_yscale("function", functions=(to_root, from_root))
    axes.set_yticks([tick for tick in TICKS if bottom <= tick <= top])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom, top)
    axes.set_ylabel("success with 95 % interval, root scale", fontsize=9)
    axes.grid(alpha=0.3)
    axes.margins(x=0.08)


def _scatter(
    axes: Axes, rows: Mapping[str, Mapping], colours: Mapping[str, Colour], x_of: Quantity
) -> None:
    """Success with its interval over a quantity, one colour per sampler, numbered."""
    for row in rows.values():
        x, y, (low, high) = x_of(row), row["success"], row["success_interval"]
        colour = colours[row["sampler"]]
        axes.plot([x, x], [low, high], color=(*colour[:3], 0.35), linewidth=1.2, zorder=2)
        axes.plot([x], [y], "o", color=colour, markersize=2 * MARKER, zorder=3)
    axes.autoscale_view(scaley=False)
    figure = axes.get_figure(root=True)
    assert figure is not None
    scale = INCH / figure.dpi  # pixels to points
    to_page = axes.transData.transform
    pixels = {number: to_page((x_of(row), row["success"])) for number, row in rows.items()}
    labels = merge_labels({number: (x * scale, y * scale) for number, (x, y) in pixels.items()})
    for label, (dx, dy) in zip(labels, place_labels(labels), strict=True):
        first, *others = (rows[number] for number in label.text.split(", "))
        axes.annotate(
            label.text,
            (x_of(first), first["success"]),
            textcoords="offset points",
            xytext=(dx, dy),
            fontsize=FONT_SIZE,
            color="black" if others else colours[first["sampler"]],
            zorder=4,
            arrowprops={"arrowstyle": "-", "color": "grey", "linewidth": 0.5, "shrinkA": 0}
            if abs(dy) > LINE_HEIGHT
            else None,
        )


def _list_names(
    figure: Figure, rows: Mapping[str, Mapping], colours: Mapping[str, Colour], *, n_columns: int
) -> None:
    """What the numbers mean, in columns below the axes, in the colours of the points."""
    width, height = (INCH * size for size in figure.get_size_inches())
    n_lines = max(1, -(-len(rows) // n_columns))
    for i, (number, row) in enumerate(rows.items()):
        column, line = divmod(i, n_lines)
        x = (LEFT + column * (PANEL_WIDTH + GAP)) / width
        y = (n_lines - line) * LINE_HEIGHT / height
        for text, colour in (("\u25cf", colours[row["sampler"]]), (f"  {number:>2}  ", "black")):
            figure.text(x, y, text, color=colour, family="monospace", fontsize=7, va="center")
        figure.text(x + 30 / width, y, row["name"], family="monospace", fontsize=7, va="center")
