"""Charts of a report, as SVG text that takes its colours and its font from the page around it.

Matplotlib draws with placeholder colours; `to_svg` replaces them by CSS variables, so that one
drawing is right on a light and on a dark page. Durations are drawn in milliseconds.
"""

import io
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, MUTED, GRID, SERIES = "#010101", "#020202", "#030303", ("#040404", "#050505")
CSS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    SERIES[0]: "var(--series-1)",
    SERIES[1]: "var(--series-2)",
}
STYLE: dict = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cadence",  # The same figure gives the same text.
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


def training_curves(metrics: Sequence[Mapping]) -> str:
    """Training and validation loss over steps, both axes' numbers as in metrics.jsonl.

    Args:
        metrics: lines with "step" and "loss" or "val_loss".
    """
    with rc_context(STYLE):
        figure, axes = _one_axes(height=3.0)
        for key, label, colour in (
            ("loss", "training", SERIES[0]),
            ("val_loss", "validation, averaged weights", SERIES[1]),
        ):
            points = [(entry["step"], entry[key]) for entry in metrics if key in entry]
            if points:
                marker = "o" if len(points) < 40 else ""
                axes.plot(*zip(*points, strict=True), c=colour, label=label, marker=marker, ms=3)
        axes.set(xlabel="training step", ylabel="loss", yscale="log", xlim=(0, None))
        axes.grid(True, axis="y", which="both", lw=0.5)
        axes.legend()
        return to_svg(figure, "Training and validation loss")


def rates(rows: Mapping[str, tuple[float, tuple[float, float]]]) -> str:
    """Rates with their intervals, one below the other.

    Args:
        rows: name -> (rate, (low, high)), all in [0, 1].
    """
    with rc_context(STYLE):
        figure, axes = _one_axes(height=0.7 + 0.45 * len(rows))
        for row, (name, (rate, (low, high))) in enumerate(rows.items()):
            colour = SERIES[0] if row == 0 else MUTED
            axes.plot([low, high], [row, row], c=colour, lw=3, solid_capstyle="round", alpha=0.5)
            axes.plot([rate], [row], "o", c=colour, ms=8)
            axes.annotate(
                f"{rate:.2f}", (rate, row), (0, 8), textcoords="offset points", ha="center"
            )
            axes.annotate(name, (-0.02, row), ha="right", va="center", annotation_clip=False)
        axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.7), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.grid(True, axis="x", lw=0.5)
        return to_svg(figure, "Rates with 95 % intervals")


def durations(seconds: Sequence[float], *, label: str, marks: Mapping[str, float]) -> str:
    """Histogram of durations with marked values.

    Args:
        seconds: samples, at least one.
        label: what lasts so long.
        marks: name -> seconds, drawn as vertical lines.
    """
    with rc_context(STYLE):
        figure, axes = _one_axes(height=2.6)
        milliseconds = 1e3 * np.asarray(seconds)
        n_bins = int(np.clip(np.sqrt(len(milliseconds)) * 2, 10, 60))
        axes.hist(milliseconds, bins=n_bins, color=SERIES[0], alpha=0.75)
        top = axes.get_ylim()[1]
        # Labels take turns in height, since percentiles often nearly coincide.
        for i, (name, value) in enumerate(sorted(marks.items(), key=lambda mark: mark[1])):
            axes.axvline(1e3 * value, c=INK, lw=1, ls=(0, (4, 3)))
            height = top * (1.04 + 0.11 * (i % 4))
            axes.text(1e3 * value, height, f" {name} {1e3 * value:.1f}", fontsize=9)
        axes.set(xlabel=f"{label} [ms]", ylabel="count", ylim=(0, top))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        return to_svg(figure, f"Histogram of {label}")


def to_svg(figure: Figure, label: str) -> str:
    """A figure as an `<svg>` element to stand in a page: no header, no links, ids of its own.

    Args:
        figure: drawn with the colours of this file.
        label: what a screen reader says.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)  # HTML knows these without an address.
    svg = svg.replace("xlink:href", "href")
    prefix = re.sub(r"\W+", "-", label.lower())
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    for placeholder, variable in CSS.items():
        svg = svg.replace(placeholder, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _one_axes(*, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, height))
    return figure, figure.add_subplot()
