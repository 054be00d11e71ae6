"""The table and the figure of `cadence delays`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

MARKS = "osD^vP*X"
SPREAD = 0.06  # between rows at the same delay, so that their intervals do not hide each other


def table(measured: Sequence[Mapping]) -> str:
    """One line per row and delay, for a terminal."""
    width = max(len("seam"), *(len(entry["name"]) for entry in measured))
    head = (
        f"{'seam':<{width}}{'delay':>7}{'executed':>10}{'calls':>7}{'success':>22}{'score':>8}"
        f"{'held':>7}{'jump max':>10}{'p99':>6}"
    )
    return "\n".join([head, *(_line(entry, width) for entry in measured)])


def _line(entry: Mapping, width: int) -> str:
    low, high = entry["success_interval"]
    jumps, timing = entry["relative_jumps"], entry["timing"]
    ratios = [f"{jumps[key]:.2f}" if jumps else "-" for key in ("max", "p99")]
    held = timing["n_held"] / max(1, timing["n_commands"])
    return (
        f"{entry['name']:<{width}}{entry['delay']:>7g}{entry['action']:>10}"
        f"{entry['calls_per_action']:>7.2f}{entry['success']:>7.3f} [{low:.3f}, {high:.3f}]"
        f"{entry['score']:>8.3f}{held:>7.3f}{ratios[0]:>10}{ratios[1]:>6}"
    )


def draw(measured: Sequence[Mapping], path: Path, *, title: str) -> None:
    """Success with its interval over the delay, a line per row.

    Args:
        measured: rows as `cadence delays` measures them.
        path: of the PNG.
        title: of the figure.
    """
    names = list(dict.fromkeys(entry["name"] for entry in measured))
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for number, name in enumerate(names):
        entries = sorted((e for e in measured if e["name"] == name), key=lambda e: e["delay"])
        delay = np.array([entry["delay"] for entry in entries], float)
        success = np.array([entry["success"] for entry in entries])
        low, high = np.array([entry["success_interval"] for entry in entries]).T
        axes.errorbar(
            delay + SPREAD * (number - (len(names) - 1) / 2),
            success,
            yerr=np.maximum([success - low, high - success], 0),
            marker=MARKS[number % len(MARKS)],
            markersize=5,
            linewidth=1.2,
            elinewidth=0.8,
            capsize=2,
            label=name,
        )
    axes.set(xlabel="delay of a chunk [control ticks]", ylabel="success, 95 % interval")
    axes.set_xticks(sorted({entry["delay"] for entry in measured}))
    axes.set_ylim(0, 1)
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(title, fontsize=9)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)
