"""Reads what a LeRobot data set says of itself: `meta/`, in v2.1 and v3.0.

Nothing of it is believed: numbers are checked against each other and against the files.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.importers.importer import ImporterError
from data.importers.lerobot_info import (
    features_of,
    fps_of,
    place_of,
    read_info,
    read_json_lines,
    version_of,
)
from data.importers.lerobot_table import parquet_columns
from data.lerobot_layout import INFO, Feature, LayoutError, OwnEntry, file_digest


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode's frames of one camera are.

    Args:
        path: of the video.
        start: time of the episode's first frame in it [s].
    """

    path: Path
    start: float


@dataclass(frozen=True)
class EpisodeEntry:
    """Where an episode is.

    Args:
        number: of the episode.
        n_steps: its rows.
        table: file that holds them.
        first_row: of them in that file.
        first_index: what the column `index` says in the first of them.
        videos: key of a video feature -> its frames.
        described: file of `meta/` with the episode's statistics.
        line: of it there.
    """

    number: int
    n_steps: int
    table: Path
    first_row: int
    first_index: int
    videos: Mapping[str, VideoSpan]
    described: Path
    line: int


@dataclass(frozen=True)
class LeRobotMeta:
    """What a data set says of itself.

    Args:
        root: its folder.
        version: of its layout.
        fps: steps a second.
        features: key -> feature, without the columns that count steps.
        own: what this program wrote, where it wrote the data set.
        is_verified: whether what it wrote must be as it was written.
        tasks: task number -> its words.
        episodes: in order.
    """

    root: Path
    version: str
    fps: float
    features: Mapping[str, Feature]
    own: OwnEntry | None
    is_verified: bool
    tasks: dict[int, str] = field(default_factory=dict)
    episodes: list[EpisodeEntry] = field(default_factory=list)

    def check_file(self, path: Path) -> None:
        """Raise ImporterError where a file is missing, or is not the one that was exported."""
        if not path.is_file():
            raise ImporterError(
                f"{path} does not exist, but {self.root / INFO} counts on it: "
                f"copy or download the data set again"
            )
        if self.own is None or not self.is_verified:
            return
        expected = self.own.files.get(path.relative_to(self.root).as_posix())
        if expected != file_digest(path):
            raise ImporterError(
                f"{path} was changed since it was exported (its SHA-256 says so): copy the data "
                f"set again, or, where the change was meant, import with format.verify=false"
            )


def read_meta(root: Path, *, is_verified: bool = True) -> LeRobotMeta:
    """What a data set says of itself.

    Args:
        root: its folder, which holds meta/ and data/.
        is_verified: whether an export of this program must be as it was written.

    Raises:
        ImporterError: a file is missing or broken, or disagrees with another.
    """
    info = read_info(root)
    try:
        meta = LeRobotMeta(
            root=root,
            version=version_of(info),
            fps=fps_of(info),
            features=features_of(info),
            own=OwnEntry.read(info, is_verified=is_verified),
            is_verified=is_verified,
        )
    except LayoutError as error:
        raise ImporterError(f"{root / INFO}: {error}") from error
    is_v3 = meta.version == "v3.0"
    meta.tasks.update(_tasks_v3(meta) if is_v3 else _tasks_v2(meta))
    meta.episodes.extend(_episodes_v3(meta, info) if is_v3 else _episodes_v2(meta, info))
    _check_totals(meta, info)
    _check_files(meta)
    return meta


def _tasks_v2(meta: LeRobotMeta) -> dict[int, str]:
    path = meta.root / "meta/tasks.jsonl"
    meta.check_file(path)
    return _checked_tasks(
        path, [(row.get("task_index"), row.get("task")) for row in read_json_lines(path)]
    )


def _tasks_v3(meta: LeRobotMeta) -> dict[int, str]:
    path = meta.root / "meta/tasks.parquet"
    meta.check_file(path)
    columns = parquet_columns(path)
    # The words are the index of a pandas table, whose name has changed with its versions.
    words = [name for name in columns if name != "task_index"]
    if "task_index" not in columns or len(words) != 1:
        raise ImporterError(
            f"{path} has the columns {sorted(columns)}, they must be task_index and the task's "
            f"words: copy or download the data set again"
        )
    return _checked_tasks(path, list(zip(columns["task_index"], columns[words[0]], strict=True)))


def _checked_tasks(path: Path, rows: list[tuple[Any, Any]]) -> dict[int, str]:
    tasks: dict[int, str] = {}
    for number, words in rows:
        if type(number) is not int or not isinstance(words, str) or number in tasks:
            raise ImporterError(
                f"{path}: task {number!r} is {words!r}: every task needs a number of its own and "
                f"words; copy or download the data set again"
            )
        tasks[number] = words
    return tasks


def _video_keys(meta: LeRobotMeta) -> list[str]:
    return [key for key, feature in meta.features.items() if feature.dtype == "video"]


def _episodes_v2(meta: LeRobotMeta, info: Mapping[str, Any]) -> Iterator[EpisodeEntry]:
    path = meta.root / "meta/episodes.jsonl"
    meta.check_file(path)
    chunks_size = info.get("chunks_size")
    if type(chunks_size) is not int or chunks_size < 1:
        raise ImporterError(
            f"{meta.root / INFO}: chunks_size is {chunks_size!r}, it must be a number from 1 on"
        )
    n_before = 0
    for number, row in enumerate(read_json_lines(path)):
        _count(path, row, "episode_index", number)
        n_steps = _count(path, row, "length")
        names = {"episode_chunk": number // chunks_size, "episode_index": number}
        videos = {
            key: VideoSpan(place_of(meta.root, info, "video_path", {**names, "video_key": key}), 0)
            for key in _video_keys(meta)
        }
        yield EpisodeEntry(
            number=number,
            n_steps=n_steps,
            table=place_of(meta.root, info, "data_path", names),
            first_row=0,
            first_index=n_before,
            videos=videos,
            described=meta.root / "meta/episodes_stats.jsonl",
            line=number,
        )
        n_before += n_steps


def _episodes_v3(meta: LeRobotMeta, info: Mapping[str, Any]) -> Iterator[EpisodeEntry]:
    tables = sorted((meta.root / "meta/episodes").glob("*/*.parquet"))
    if not tables:
        raise ImporterError(
            f"{meta.root} has no meta/episodes/*/*.parquet: copy or download it whole"
        )
    wanted = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    wanted += ["data/chunk_index", "data/file_index"]
    for key in _video_keys(meta):
        wanted += [f"videos/{key}/{of}" for of in ("chunk_index", "file_index", "from_timestamp")]
    n_before, number = 0, 0
    starts: dict[Path, int] = {}
    for path in tables:
        meta.check_file(path)
        columns = parquet_columns(path, wanted)
        for line, values in enumerate(zip(*(columns[name] for name in wanted), strict=True)):
            row = dict(zip(wanted, values, strict=True))
            _count(path, row, "episode_index", number)
            n_steps = _count(path, row, "length")
            _count(path, row, "dataset_from_index", n_before)
            _count(path, row, "dataset_to_index", n_before + n_steps)
            table = place_of(meta.root, info, "data_path", _file_of(path, row, "data"))
            yield EpisodeEntry(
                number=number,
                n_steps=n_steps,
                table=table,
                first_row=n_before - starts.setdefault(table, n_before),
                first_index=n_before,
                videos={key: _span(meta, info, path, row, key) for key in _video_keys(meta)},
                described=path,
                line=line,
            )
            n_before, number = n_before + n_steps, number + 1


def _span(
    meta: LeRobotMeta, info: Mapping[str, Any], path: Path, row: Mapping[str, Any], key: str
) -> VideoSpan:
    names = {**_file_of(path, row, f"videos/{key}"), "video_key": key}
    entry = f"videos/{key}/from_timestamp"
    start = row[entry]
    if type(start) not in (int, float) or not math.isfinite(start) or start < 0:
        raise ImporterError(f"{path}: {entry} is {start!r}, it must be a time from 0 on [s]")
    return VideoSpan(place_of(meta.root, info, "video_path", names), float(start))


def _file_of(path: Path, row: Mapping[str, Any], what: str) -> dict[str, int]:
    return {entry: _count(path, row, f"{what}/{entry}") for entry in ("chunk_index", "file_index")}


def _count(path: Path, row: Mapping[str, Any], entry: str, expected: int | None = None) -> int:
    value = row.get(entry)
    if type(value) is not int or not 0 <= value < 2**48:
        raise ImporterError(f"{path}: {entry} is {value!r}, it must be a number from 0 on")
    if expected is not None and value != expected:
        raise ImporterError(
            f"{path}: {entry} is {value}, but the rows before make it {expected}: "
            f"an episode is missing or out of order; copy or download the data set again"
        )
    if entry == "length" and value == 0:
        raise ImporterError(f"{path}: an episode has length 0: delete it with lerobot first")
    return value


def _check_totals(meta: LeRobotMeta, info: Mapping[str, Any]) -> None:
    found = {
        "total_episodes": len(meta.episodes),
        "total_frames": sum(episode.n_steps for episode in meta.episodes),
    }
    for entry, number in found.items():
        if info.get(entry) != number:
            raise ImporterError(
                f"{meta.root / INFO}: {entry} is {info.get(entry)!r}, but the table of episodes "
                f"has {number}: copy or download the data set again"
            )


def _check_files(meta: LeRobotMeta) -> None:
    """Raise ImporterError for a missing file now, and not after hours of importing."""
    files = {span.path: e.number for e in meta.episodes for span in e.videos.values()}
    files.update({episode.table: episode.number for episode in meta.episodes})
    for path, number in files.items():
        if not path.is_file():
            raise ImporterError(
                f"{path} does not exist, but episode {number} is in it: "
                f"copy or download the data set again"
            )
