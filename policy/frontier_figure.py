"""The table and the figure of `cadence frontier`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LINE_LENGTH = 46  # of a row's name


def table(rows: Sequence[Mapping]) -> str:
    """One line per row, for a terminal."""
    head = (
        f"{'sampler, executed actions':<{LINE_LENGTH}}{'success':>20}{'score':>7}{'calls':>7}"
        f"{'p50 ms':>8}{'p99 ms':>8}{'jump':>7}{'first':>7}{'half':>5}  ways"
    )
    return "\n".join([head, *(_line(row) for row in rows)])


def _line(row: Mapping) -> str:
    low, high = row["success_interval"]
    reaction = row["reaction"] or {}
    delay = reaction.get("delay")
    ways = " ".join(f"{name} {share:.2f}" for name, share in row.get("modes", {}).items())
    first = f"{reaction['first']:.2f}" if reaction else "-"
    jump = "-" if row["jump"] is None else f"{row['jump']:.3f}"
    name = _wrapped(row["name"])
    return (
        f"{name:<{LINE_LENGTH}}{row['success']:>6.3f} [{low:.3f}, {high:.3f}]{row['score']:>7.3f}"
        f"{row['calls_per_action']:>7.2f}{row['latency']['p50_ms']:>8.1f}"
        f"{row['latency']['p99_ms']:>8.1f}{jump:>7}{first:>7}"
        f"{'-' if delay is None else delay:>5}  {ways}"
    )


def _wrapped(name: str) -> str:
    """A long name on a line of its own."""
    return name if len(name) < LINE_LENGTH else f"{name}\n{'':<{LINE_LENGTH}}"


def draw(rows: Sequence[Mapping], path: Path, *, title: str) -> Figure:
    """Success against calls and against the time to react, as a picture.

    Args:
        rows: of `cadence frontier`.
        path: of the PNG.
        title: of the figure.
    """
    reacting = [row for row in rows if row["reaction"]]
    figure, axes = plt.subplots(
        1, 2 if reacting else 1, figsize=(13 if reacting else 7, 5.5), squeeze=False
    )
    numbers = {row["name"]: str(i) for i, row in enumerate(rows, start=1)}
    _scatter(axes[0][0], rows, numbers, lambda row: row["calls_per_action"])
    axes[0][0].set_xscale("log", base=2)
    axes[0][0].set_xlabel("denoiser calls per executed action")
    if reacting:
        _scatter(axes[0][1], reacting, numbers, lambda row: row["reaction"]["within_2"])
        axes[0][1].set_xlabel("share of the wanted answer executed 2 ticks after a displacement")
    legend = "\n".join(f"{number:>2}  {name}" for name, number in numbers.items())
    figure.suptitle(title, fontsize=10)
    figure.text(1.0, 0.5, legend, family="monospace", fontsize=8, va="center", ha="left")
    figure.tight_layout()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
    return figure


def _scatter(axes: Axes, rows: Sequence[Mapping], numbers: Mapping[str, str], x_of) -> None:
    """Success with its interval over a quantity, one colour per sampler."""
    samplers = sorted({row["sampler"] for row in rows})
    for i, sampler in enumerate(samplers):
        of_it = [row for row in rows if row["sampler"] == sampler]
        xs, ys = [x_of(row) for row in of_it], [row["success"] for row in of_it]
        below = [row["success"] - row["success_interval"][0] for row in of_it]
        above = [row["success_interval"][1] - row["success"] for row in of_it]
        colour = plt.get_cmap("tab10")(i % 10)
        axes.errorbar(
            xs,
            ys,
            yerr=[below, above],
            fmt="o",
            color=colour,
            ecolor=(*colour[:3], 0.35),
            label=sampler,
        )
        for x, y, row in zip(xs, ys, of_it, strict=True):
            axes.annotate(
                numbers[row["name"]], (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8
            )
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("success")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
