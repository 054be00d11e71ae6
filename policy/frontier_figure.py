"""The table and the figure of `cadence frontier`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

LINE_LENGTH = 46  # of a row's name


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


def draw(rows: Sequence[Mapping], path: Path, *, title: str) -> None:
    """Success against calls, against the reaction, and against the balance of ways, as a picture.

    Args:
        rows: of `cadence frontier`.
        path: of the PNG.
        title: of the figure.
    """
    whole = [row for row in rows if "error" not in row]
    reacting = [row for row in whole if row["reaction"] and row["reaction"]["within_2"] is not None]
    branching = [row for row in whole if len(row.get("modes", {})) > 1 and row["success"] > 0]
    panels: list[tuple[str, list[Mapping], Callable[[Mapping], float]]] = [
        ("denoiser calls per executed action", whole, lambda row: row["calls_per_action"])
    ]
    if reacting:
        label = "share of the wanted answer executed 2 ticks after a displacement"
        panels.append((label, reacting, lambda row: row["reaction"]["within_2"]))
    if branching:
        label = "share of the way taken less often"
        panels.append((label, branching, lambda row: min(row["modes"].values())))
    figure, all_axes = plt.subplots(1, len(panels), figsize=(6.5 * len(panels), 5.5), squeeze=False)
    numbers = {row["name"]: str(i) for i, row in enumerate(whole, start=1)}
    colours = {s: plt.get_cmap("tab20")(i % 20) for i, s in enumerate(_samplers(whole))}
    for axes, (label, chosen, x_of) in zip(all_axes[0], panels, strict=True):
        _scatter(axes, chosen, numbers, colours, x_of)
        axes.set_xlabel(label)
    all_axes[0][0].set_xscale("log", base=2)
    legend = "\n".join(f"{number:>2}  {name}" for name, number in numbers.items())
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.text(1.0, 0.5, legend, family="monospace", fontsize=8, va="center", ha="left")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _samplers(rows: Sequence[Mapping]) -> list[str]:
    return sorted({row["sampler"] for row in rows})


def _scatter(
    axes: Axes,
    rows: Sequence[Mapping],
    numbers: Mapping[str, str],
    colours: Mapping[str, tuple],
    x_of: Callable[[Mapping], float],
) -> None:
    """Success with its interval over a quantity, one colour per sampler."""
    for sampler in _samplers(rows):
        of_it = [row for row in rows if row["sampler"] == sampler]
        xs, ys = [x_of(row) for row in of_it], [row["success"] for row in of_it]
        below = [max(0.0, row["success"] - row["success_interval"][0]) for row in of_it]
        above = [max(0.0, row["success_interval"][1] - row["success"]) for row in of_it]
        faint = (*colours[sampler][:3], 0.35)
        axes.errorbar(
            xs,
            ys,
            yerr=[below, above],
            fmt="o",
            color=colours[sampler],
            ecolor=faint,
            label=sampler,
        )
        for x, y, row in zip(xs, ys, of_it, strict=True):
            axes.annotate(
                numbers[row["name"]], (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8
            )
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("success")
    axes.grid(alpha=0.3)
    if rows:
        axes.legend(fontsize=7)
