"""An episode as a picture: a strip of what the cameras saw, and curves of all numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from policy.view_source import Chunks, Source

WIDTH = 10.0  # inches
FIELD_HEIGHT, STRIP_HEIGHT = 1.8, 0.8
MOST_ELEMENTS = 10  # of a field that get a colour and a name of their own
LARGEST = 60  # fields that are drawn


def draw_episode(source: Source, about: Mapping, episode: int) -> Figure:
    """A figure of one episode.

    Args:
        source: of the episodes.
        about: what there is, as JSON.
        episode: its number.

    Raises:
        IndexError: there is no such episode.
        StoreError: it cannot be read.
    """
    numbers, fields = source.numbers(episode), about["fields"][:LARGEST]
    cameras = about["cameras"]
    heights = [*(STRIP_HEIGHT for _ in cameras), *(FIELD_HEIGHT for _ in fields)]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.6), layout="constrained")
    rows = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    told = source.episodes(episode, 1)[0]
    figure.suptitle(f"episode {episode}: {len(numbers)} steps{_success(told)}", fontsize=10)
    for index, (axes, camera) in enumerate(zip(rows, cameras, strict=False)):
        axes.imshow(imageio.imread(source.strip(episode, index)), aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(_literal(camera["name"]), fontsize=8)
    offset, chunks = 0, source.chunks(episode)
    for axes, field in zip(rows[len(cameras) :], fields, strict=True):
        part = numbers[:, offset : offset + field["size"]]
        offset += field["size"]
        _draw_field(axes, field, part, about["control_dt"])
        if field["name"] == "action":
            _draw_chunks(axes, chunks, about["control_dt"])
    rows[-1].set_xlabel("time [s]", fontsize=8)
    return figure


def write_pngs(source: Source, about: Mapping, episodes: Sequence[int], folder: Path) -> list[Path]:
    """A picture file of each episode, `episode_00003.png`; returns where they are.

    Raises:
        OSError: the folder cannot be written.
        IndexError: there is no such episode.
        StoreError: it cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for episode in episodes:
        file = folder / f"episode_{episode:05d}.png"
        draw_episode(source, about, episode).savefig(file, dpi=100)
        written.append(file)
    return written


def _draw_field(axes: Axes, field: Mapping, values: np.ndarray, control_dt: float) -> None:
    times = control_dt * np.arange(len(values))
    for element in range(values.shape[1]):
        is_named = element < MOST_ELEMENTS
        unit = field["units"][element]
        name = f"{element} [{unit}]" if unit else f"{element}"
        axes.plot(
            times,
            values[:, element],
            lw=1,
            c=f"C{element}" if is_named else "0.6",
            label=_literal(name) if is_named else None,
        )
    axes.set_ylabel(_literal(field["name"]), fontsize=8)
    axes.tick_params(labelsize=7)
    axes.margins(x=0)
    axes.grid(True, lw=0.3)
    axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _draw_chunks(axes: Axes, chunks: Chunks, control_dt: float) -> None:
    """Each chunk as it was planned, dashed; where it differs from the curve, it was not sent."""
    for tick, actions in zip(chunks.ticks, chunks.actions, strict=True):
        times = control_dt * (tick + np.arange(len(actions)))
        for element in range(min(actions.shape[1], MOST_ELEMENTS)):
            axes.plot(times, actions[:, element], lw=0.6, ls="--", c=f"C{element}", alpha=0.6)


def _success(told: Mapping) -> str:
    success = told["metadata"].get("success") if isinstance(told["metadata"], Mapping) else None
    return (
        {True: ", success", False: ", no success"}.get(success, "") if success is not None else ""
    )


def _literal(text: str) -> str:
    """A stranger's text, which is no formula."""
    return text.replace("$", r"\$")
