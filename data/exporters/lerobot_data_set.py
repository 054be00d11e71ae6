"""One LeRobot data set of the format v3.0 while it is written.

Shape legend: `L` steps of an episode, `H W` height and width.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from data.exporters.lerobot_statistics import (
    DataSetStatistics,
    Statistics,
    picture_statistics,
    statistics_of,
)
from data.exporters.lerobot_tables import (
    FILES_PER_CHUNK,
    MEGABYTE,
    FileNumber,
    TableWriter,
    episodes_table,
    steps_table,
    tasks_table,
)
from data.lerobot_layout import (
    DATA,
    EPISODES,
    INDEX_DTYPES,
    INFO,
    OWN_EPISODES,
    STATS,
    TASKS,
    VIDEOS,
    Feature,
    OwnEntry,
    file_digest,
)
from data.parquet import pyarrow
from data.store import EpisodeStore
from data.video_frames import Codec, VideoWriter

ROWS_AT_ONCE = 100  # episodes in a group of rows of their table


@dataclass(frozen=True)
class Plan:
    """What a data set is to be.

    Args:
        keys: field name -> key of its feature.
        features: key -> feature.
        codec: of the videos, None where there are none.
        robot_type: name of the robot, None where unknown.
        data_file_mb: size that a table should not pass.
        video_file_mb: size that a video should not pass.
    """

    keys: Mapping[str, str]
    features: Mapping[str, Feature]
    codec: Codec | None
    robot_type: str | None
    data_file_mb: float
    video_file_mb: float


class LeRobotDataSet:
    """Episodes of a store as files in the folder `root`."""

    def __init__(self, root: Path, store: EpisodeStore, plan: Plan):
        self.root, self.store, self.plan = root, store, plan
        index = {key: Feature(key, dtype, (1,)) for key, dtype in INDEX_DTYPES.items()}
        every = {**plan.features, **index}
        self._columns = {k: feature for k, feature in every.items() if feature.dtype != "video"}
        self._fps = _whole(1 / store.contract.control_dt)
        self._steps = TableWriter(root, DATA, max_mb=plan.data_file_mb)
        self._episodes = TableWriter(root, EPISODES, max_mb=plan.data_file_mb)
        self._videos = {
            key: _Videos(root, feature, plan.codec, _rate(self._fps), max_mb=plan.video_file_mb)
            for key, feature in plan.features.items()
            if feature.dtype == "video" and plan.codec is not None
        }
        self._tasks: dict[str, int] = {}  # words -> number
        self._statistics = DataSetStatistics()

    def write(self, progress: Callable[[int], object] | None) -> None:
        """Write all files.

        Args:
            progress: called after every episode with the number of those written.

        Raises:
            OSError: they cannot be written.
            VideoError: pictures cannot be written as the videos that are asked for.
        """
        try:
            self._write_all(progress)
        except BaseException:
            with suppress(Exception):  # What is half written may not be closable either.
                self._close()
            raise

    def _close(self) -> None:
        self._steps.close()
        self._episodes.close()
        for video in self._videos.values():
            video.close()

    def _write_all(self, progress: Callable[[int], object] | None) -> None:
        metadata = self.store.episode_metadata
        ends = self.store.episode_ends
        waiting: list[dict[str, Any]] = []
        for number, end in enumerate(ends.tolist()):
            start = int(ends[number - 1]) if number else 0
            waiting.append(self._episode(number, start, end, metadata[number]))
            if len(waiting) == ROWS_AT_ONCE or number == len(ends) - 1:
                self._write_rows(waiting)
                waiting = []
            if progress is not None:
                progress(number + 1)
        self._close()
        _, pq = pyarrow()
        pq.write_table(tasks_table(list(self._tasks)), self.root / TASKS, write_page_checksum=True)
        lines = [json.dumps(entry, sort_keys=True) + "\n" for entry in metadata]
        (self.root / OWN_EPISODES).write_text("".join(lines), encoding="utf-8")
        _write_json(self.root / STATS, self._statistics.to_json())
        own = OwnEntry(self.store.contract, self.plan.keys, self._finished_files())
        _write_json(self.root / INFO, own.sealed(self._description()))
        _flush(self.root / INFO)

    def _write_rows(self, rows: list[dict[str, Any]]) -> None:
        """Rows of the table of episodes, which say in which file of it they are."""
        self._episodes.make_room()
        number = self._episodes.number.entries("meta/episodes")
        self._episodes.write(episodes_table([{**row, **number} for row in rows]))

    def _episode(
        self, number: int, start: int, end: int, metadata: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write an episode's steps; its row of the table of episodes."""
        steps = np.arange(start, end)
        rows = {
            key: self._values(name, steps, self.plan.features[key])
            for name, key in self.plan.keys.items()
        }
        task = metadata.get("task")
        task = task if isinstance(task, str) else self.store.contract.task
        rows.update(self._index(number, steps, task))
        row: dict[str, Any] = {"episode_index": number, "tasks": [task], "length": len(steps)}
        self._steps.make_room()
        self._steps.write(steps_table(self._columns, rows))
        row.update(self._steps.number.entries("data"))
        row.update({"dataset_from_index": start, "dataset_to_index": end})
        for key, video in self._videos.items():
            row.update(video.add(rows[key]))
        statistics = {key: self._statistics_of(key, values) for key, values in rows.items()}
        self._statistics.add(statistics)
        for key, of in statistics.items():
            row.update({f"stats/{key}/{name}": values for name, values in of.items()})
        return row

    def _values(self, name: str, steps: np.ndarray, feature: Feature) -> np.ndarray:
        values = self.store.read_rows(name, steps)
        return values.reshape(len(values), *feature.shape)

    def _index(self, number: int, steps: np.ndarray, task: str) -> dict[str, np.ndarray]:
        """The columns that count steps, each [L, 1]."""
        task_number = self._tasks.setdefault(task, len(self._tasks))
        frame = np.arange(len(steps))
        columns = {
            "timestamp": frame * self.store.contract.control_dt,
            "frame_index": frame,
            "episode_index": np.full(len(steps), number),
            "index": steps,
            "task_index": np.full(len(steps), task_number),
        }
        return {
            key: values.astype(INDEX_DTYPES[key]).reshape(-1, 1) for key, values in columns.items()
        }

    def _statistics_of(self, key: str, values: np.ndarray) -> Statistics:
        is_picture = key in self.plan.features and self.plan.features[key].is_picture
        return picture_statistics(values) if is_picture else statistics_of(values)

    def _description(self) -> dict[str, Any]:
        """`info.json`, but for what this program adds."""
        return {
            "codebase_version": "v3.0",
            "robot_type": self.plan.robot_type,
            "total_episodes": self.store.n_episodes,
            "total_frames": self.store.n_steps,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": _whole(self.plan.data_file_mb),
            "video_files_size_in_mb": _whole(self.plan.video_file_mb),
            "fps": self._fps,
            "splits": {"train": f"0:{self.store.n_episodes}"},
            "data_path": DATA,
            "video_path": VIDEOS if self._videos else None,
            "features": {
                **{key: self._described(feature) for key, feature in self.plan.features.items()},
                **{k: {"dtype": d, "shape": [1], "names": None} for k, d in INDEX_DTYPES.items()},
            },
        }

    def _described(self, feature: Feature) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "dtype": feature.dtype,
            "shape": list(feature.shape),
            "names": list(feature.names) or None,
        }
        if feature.dtype == "video":
            entry["info"] = self._videos[feature.key].described(self._fps)
        return entry

    def _finished_files(self) -> dict[str, str]:
        """Path -> SHA-256 of every file, which is on the disk then."""
        files = {}
        for path in sorted(self.root.rglob("*")):
            if path.is_file():
                _flush(path)
                files[path.relative_to(self.root).as_posix()] = file_digest(path)
        return files


class _Videos:
    """The videos of one feature, each of many episodes."""

    def __init__(
        self, root: Path, feature: Feature, codec: Codec, rate: Fraction, *, max_mb: float
    ):
        self._root, self._feature, self._rate = root, feature, rate
        self._codec: Codec = codec
        self._max_bytes = max_mb * MEGABYTE
        self._number = FileNumber()
        self._writer: VideoWriter | None = None
        self._largest = 0  # episode so far [bytes]

    def add(self, frames: np.ndarray) -> dict[str, Any]:
        """Write an episode's frames [L, H, W, 3]; what its row says of them."""
        is_full = (
            self._writer is not None and self._writer.n_bytes + self._largest > self._max_bytes
        )
        if is_full:
            self.close()
            self._number.advance()
        if self._writer is None:
            path = self._number.path(self._root, VIDEOS, video_key=self._feature.key)
            path.parent.mkdir(parents=True, exist_ok=True)
            height, width, _ = self._feature.shape
            self._writer = VideoWriter(
                path, rate=self._rate, size=(height, width), codec=self._codec
            )
        before, start = self._writer.n_bytes, self._writer.n_frames
        self._writer.add(frames)
        self._largest = max(self._largest, self._writer.n_bytes - before)
        of = f"videos/{self._feature.key}"
        return {
            **self._number.entries(of),
            f"{of}/from_timestamp": float(start / self._rate),
            f"{of}/to_timestamp": float(self._writer.n_frames / self._rate),
        }

    def close(self) -> None:
        """Complete the present video."""
        writer, self._writer, self._largest = self._writer, None, 0
        if writer is not None:
            writer.close()

    def described(self, fps: float) -> dict[str, Any]:
        """What `info.json` says of the videos."""
        height, width, n_channels = self._feature.shape
        return {
            "video.height": height,
            "video.width": width,
            "video.codec": self._codec.split("_")[0],
            "video.pix_fmt": "gbrp" if self._codec == "h264_lossless" else "yuv420p",
            "video.is_depth_map": False,
            "video.fps": fps,
            "video.channels": n_channels,
            "has_audio": False,
        }


def _whole(number: float) -> float | int:
    """A number, as a whole one where it is that but for rounding."""
    return round(number) if math.isclose(number, round(number), rel_tol=1e-9) else number


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
