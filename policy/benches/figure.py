"""The figure of `cadence bench`: a panel for each table, a line for each row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

ROW, MARGIN = 0.21, 0.95  # height of a row and of the space round a panel [inches]
WIDTH, LEFT, RIGHT = 9.5, 0.35, 0.77  # inches, and shares of them
OURS, PEER, FLOOR = "tab:blue", "tab:gray", "tab:red"


@dataclass(frozen=True)
class Mark:
    """A row of a panel.

    Args:
        name: of the row.
        value: where its point is.
        is_peer: whether others are compared with it.
        worst: where a line from the point ends; None: no line.
        floor: the least that is possible; None: unknown.
        note: beside the panel.
    """

    name: str
    value: float
    is_peer: bool = False
    worst: float | None = None
    floor: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """Rows on one axis.

    Args:
        title: above the rows.
        label: of the axis.
        marks: the rows.
    """

    title: str
    label: str
    marks: Sequence[Mark]


def panels(results: Mapping) -> list[Panel]:
    """What the figure shows of a run."""
    found = [_latency(group) for group in results.get("latency", {}).get("groups", [])]
    if "train" in results:
        block = results["train"]
        title = f"training, batch {block['batch_size']}, {block['threads']} thread(s)"
        marks = [
            Mark(
                row["name"],
                row["windows_per_second"],
                is_peer=row["is_peer"],
                note=_times(row["over_peer"], "peer"),
            )
            for row in block["rows"]
        ]
        found.append(Panel(title, "windows/s (more is better)", marks))
    for section, title, key, ratio in (
        ("env", "environments", "steps_per_second", "over_one"),
        ("data", "windows read, one core", "windows_per_second", "over_other"),
    ):
        if section in results:
            unit = key.replace("_per_second", "/s (more is better)")
            rows = results[section]["rows"]
            marks = [
                # Names are "store, place": the place says enough beside the row.
                Mark(
                    row["name"],
                    row[key],
                    note=_times(row[ratio], (row.get("other") or "one").split(", ")[-1]),
                )
                for row in rows
            ]
            found.append(Panel(title, unit, marks))
    return [panel for panel in found if panel.marks]


def _latency(group: Mapping) -> Panel:
    title = f"{group['name']}, {group['device']}, batch 1: point p50, line to p99, red the floor"
    marks = [
        Mark(
            row["name"],
            row["p50_ms"],
            is_peer=row["is_peer"],
            worst=row["p99_ms"],
            floor=row["floor_ms"],
            note=_times(row["equal_calls"], "peer")
            or _times(row["per_action"], "peer-16 an action"),
        )
        for row in group["rows"]
    ]
    return Panel(title, "milliseconds (less is better)", marks)


def _times(ratio: Mapping | None, other: str) -> str:
    return "" if ratio is None else f"({_number(ratio['value'])} x {other})"


def draw(results: Mapping, path: Path) -> None:
    """Draw what was measured.

    Args:
        results: of the run.
        path: of the PNG.

    Raises:
        ValueError: nothing was measured.
    """
    shown = panels(results)
    if not shown:
        raise ValueError("nothing was measured, so there is nothing to draw")
    heights = [ROW * len(panel.marks) for panel in shown]
    total = sum(heights) + MARGIN * len(shown)
    figure = plt.figure(figsize=(WIDTH, total))
    top = total
    for panel, height in zip(shown, heights, strict=True):
        top -= 0.45 * MARGIN + height
        box = (LEFT, top / total, RIGHT - LEFT, height / total)
        top -= 0.55 * MARGIN
        _draw_panel(figure.add_axes(box), panel)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=9, loc="left")
    axes.set_xlabel(panel.label, fontsize=8)
    axes.set_xscale("log")
    for y, mark in enumerate(panel.marks):
        colour = PEER if mark.is_peer else OURS
        if mark.worst is not None:
            axes.plot([mark.value, mark.worst], [y, y], color=colour, lw=1.5, alpha=0.6)
        if mark.floor is not None:
            axes.plot([mark.floor], [y], "|", color=FLOOR, ms=8)
        axes.plot([mark.value], [y], "o", color=colour, ms=4)
        axes.annotate(
            f"{_number(mark.value)}  {mark.note}",
            (1.01, y),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
    axes.set_yticks(range(len(panel.marks)), [mark.name for mark in panel.marks], fontsize=8)
    axes.set_ylim(len(panel.marks) - 0.5, -0.5)
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.grid(True, axis="x", which="both", lw=0.3)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
