"""Episodes as a file of the Rerun viewer (`rerun FILE.rrd`), an extra: pictures, numbers, chunks.

Everything of episode 3 lies below `episode_3`, on the timelines `step` and `time`. Chunks overlap,
so they take turns in lanes, `episode_3/planned/0` and so on, as few as keep them apart.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from policy.view_source import Chunks, Source


def write_rerun(
    source: Source,
    about: Mapping,
    *,
    episodes: Sequence[int],
    file: Path,
    progress: Callable[[], object] = lambda: None,
) -> None:
    """Write some episodes as an .rrd file.

    Args:
        source: of the episodes.
        about: what there is, as JSON.
        episodes: their numbers.
        file: to be written.
        progress: called after every episode.

    Raises:
        ImportError: Rerun is not installed.
        OSError: the file cannot be written.
        IndexError: there is no such episode.
        StoreError: it cannot be read.
    """
    rerun = _rerun()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab"):  # Rerun reports a file that cannot be written by a log line alone.
        pass
    recording = rerun.RecordingStream("cadence")
    recording.save(str(file))
    for episode in episodes:
        _log_episode(rerun, recording, source, about, episode)
        progress()
    recording.flush()
    recording.disconnect()


def _rerun() -> ModuleType:
    try:
        import rerun  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "a file for Rerun needs rerun-sdk: pip install -e '.[rerun]', or write a page with "
            "out=FILE.html, or pictures with png=DIR"
        ) from error
    return rerun


def _log_episode(
    rerun: ModuleType, recording, source: Source, about: Mapping, episode: int
) -> None:
    root, dt = f"episode_{episode}", about["control_dt"]
    numbers = source.numbers(episode)
    told = source.episodes(episode, 1)[0]
    recording.log(f"{root}/metadata", rerun.TextDocument(str(told["metadata"])), static=True)
    offset = 0
    for field in about["fields"]:
        values = numbers[:, offset : offset + field["size"]]
        offset += field["size"]
        names = [f"{i} [{unit}]" if unit else str(i) for i, unit in enumerate(field["units"])]
        path = f"{root}/{_part(field['name'])}"
        recording.log(path, rerun.SeriesLines(names=names), static=True)
        _send(rerun, recording, path, np.arange(len(values)), values, dt)
    for index, camera in enumerate(about["cameras"]):
        for step in range(len(numbers)):
            recording.set_time("step", sequence=step)
            recording.set_time("time", duration=step * dt)
            picture = source.picture(episode, step, index)
            image = rerun.EncodedImage(contents=picture, media_type="image/png")
            recording.log(f"{root}/{_part(camera['name'])}", image)
    for lane, tick, actions in in_lanes(source.chunks(episode)):
        steps = tick + np.arange(len(actions))
        _send(rerun, recording, f"{root}/planned/{lane}", steps, actions, dt)


def _send(
    rerun: ModuleType, recording, path: str, steps: np.ndarray, values: np.ndarray, dt: float
) -> None:
    """Numbers [n, D] at their steps."""
    indexes = [
        rerun.TimeColumn("step", sequence=steps),
        rerun.TimeColumn("time", duration=dt * steps),
    ]
    columns = rerun.Scalars.columns(scalars=np.asarray(values, np.float64))
    recording.send_columns(path, indexes, columns)


def in_lanes(chunks: Chunks) -> list[tuple[int, int, np.ndarray]]:
    """Lane, tick and actions of each chunk; those of a lane do not overlap.

    Args:
        chunks: in the order in which they were planned.
    """
    ends: list[int] = []  # of each lane
    placed = []
    for tick, actions in zip(chunks.ticks, chunks.actions, strict=True):
        lane = next((i for i, end in enumerate(ends) if end <= tick), len(ends))
        ends[lane : lane + 1] = [tick + len(actions)]
        placed.append((lane, tick, actions))
    return placed


def _part(name: str) -> str:
    """A name as a part of an entity's path, in which a slash would part it."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
