"""Imports LeRobot data sets of the formats v2.1 and v3.0 (github.com/huggingface/lerobot).

`observation.state` becomes the field `state`, `observation.images.top` the field `top` (pictures
as uint8, also of videos), `action` the action; other features are left out, but for `next.success`,
which says whether an episode succeeded. The rate gives `control_dt`. The format says neither units
nor whether actions are absolute, so these are asked. An export of this program says all of it.

What is checked: that rows count up, that times fit the rate, that videos have a frame at each time,
the checksums of pictures and (where there are any) of pages of tables, and that numbers agree with
the episode's statistics. In a table without checksums or a video, a change small enough goes
unnoticed; exports of this program carry a digest of every file.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from data.importers.importer import ImportedEpisode, ImporterError
from data.importers.lerobot_checks import (
    check_count,
    check_rate,
    check_size,
    check_statistics,
)
from data.importers.lerobot_choice import SUCCESS, Take, chosen, success_feature
from data.importers.lerobot_info import read_json_lines
from data.importers.lerobot_meta import EpisodeEntry, read_meta
from data.importers.lerobot_stated import Stated, stated_in
from data.importers.lerobot_table import TableReader
from data.importers.numbers import in_field
from data.lerobot_layout import OWN_EPISODES, Feature
from data.video_frames import VideoError, VideoFrames

SOURCE = ("source", "source_number")  # what an import notes of every episode


class LeRobot:
    """A LeRobot data set, opened for reading; see the module's docstring.

    Args:
        path: folder that holds meta/ and data/.
        fields: field name -> entries of `Field` that the data set does not say, such as unit.
        take: features to take; or field name -> feature, or -> key and elements; None: all
            observations. The action is taken in any case.
        control_dt: time between two steps, None to believe the data set's rate [s].
        task: what is done, in words; "" to believe the data set.
        leave_out: features that are not taken.
        tolerance_s: how far times may be from the rate, and frames from their times [s].
        verify: whether an export of this program must be as it was written, and the numbers of any
            data set must have the statistics it states.

    Raises:
        ImporterError: it is not such a data set, of another version, or broken.
        ContractError: what its numbers mean is not told.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fields: Mapping[str, Mapping] | None = None,
        take: Take = None,
        control_dt: float | None = None,
        task: str = "",
        leave_out: Sequence[str] = (),
        tolerance_s: float = 1e-4,
        verify: bool = True,
    ):
        if not 0 < tolerance_s < float("inf"):
            raise ImporterError(f"tolerance_s is {tolerance_s} s, it must be positive")
        self.path = Path(path)
        self._tolerance, self._is_verified = tolerance_s, verify
        self._meta = read_meta(self.path, is_verified=verify)
        choice = chosen(
            self._meta,
            take=take,
            leave_out=leave_out,
            told=fields or {},
            control_dt=control_dt,
            task=task,
        )
        self.contract, self.left_out = choice.contract, choice.left_out
        self._sources, self._features = choice.sources, choice.features
        self._success = success_feature(self._meta, choice.features)
        self._own_metadata = self._read_own_metadata()

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self._meta.episodes)

    def _read_own_metadata(self) -> list[Mapping[str, Any]]:
        """Metadata of the episodes of an export of ours."""
        if self._meta.own is None:
            return []
        path = self.path / OWN_EPISODES
        self._meta.check_file(path)
        lines = read_json_lines(path)
        if len(lines) > self.n_episodes:
            raise ImporterError(
                f"{path} has {len(lines)} lines, the data set {self.n_episodes} episodes: "
                f"export it again, or delete the entry cadence of meta/info.json to import it as "
                f"any other data set"
            )
        return lines

    def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
        """Episodes from number `first` on, one in memory at a time.

        Raises:
            ImporterError: a file is missing or damaged, rows do not count up, times do not fit the
                rate, a video is shorter than its table, numbers are not finite.
        """
        described: Path | None = None
        statistics: list[Stated] = []
        with ExitStack() as opened:
            videos: dict[str, VideoFrames] = {}
            opened.callback(lambda: [video.close() for video in videos.values()])
            entries = self._meta.episodes[first:]
            for _, group in itertools.groupby(entries, key=lambda entry: entry.table):
                for entry, rows in self._rows(list(group)):
                    if entry.described != described:
                        described, statistics = entry.described, self._statistics(entry.described)
                    if entry.line < len(statistics):
                        check_statistics(entry, rows, statistics[entry.line])
                    yield self._episode(entry, rows, videos)

    def _rows(
        self, entries: Sequence[EpisodeEntry]
    ) -> Iterator[tuple[EpisodeEntry, dict[str, np.ndarray]]]:
        """Column -> [L, ...] of the episodes of one table."""
        columns = [f for f in self._features.values() if f.dtype != "video"]
        columns += [] if self._success is None else [self._success]
        self._meta.check_file(entries[0].table)
        reader = TableReader(entries[0].table, columns)
        try:
            self._check_end(reader, entries[-1])
            self._check_listed(reader)
            for entry in entries:
                check_size(entry, self._features.values())
                rows = reader.read(entry.first_row, entry.n_steps)
                check_count(entry, rows)
                check_rate(entry, rows, fps=self._meta.fps, tolerance=self._tolerance)
                yield entry, rows
        finally:
            reader.close()

    def _check_end(self, reader: TableReader, last: EpisodeEntry) -> None:
        """Raise ImporterError where the table has more rows than episodes."""
        n_rows = last.first_row + last.n_steps
        if reader.n_rows > n_rows:
            raise ImporterError(
                f"{reader.path} has {reader.n_rows} rows, its episodes {n_rows}: the table of "
                f"episodes lacks one; finish or repair the recording with lerobot"
            )

    def _check_listed(self, reader: TableReader) -> None:
        """Raise ImporterError where a feature is listed, taken or not, that the table lacks."""
        listed = {key for key, feature in self._meta.features.items() if feature.dtype != "video"}
        if self._is_verified and (missing := sorted(listed - reader.columns)):
            raise ImporterError(
                f"{reader.path} lacks the columns {missing} that info.json lists: copy or download "
                f"the data set again, or believe the table with format.verify=false"
            )

    def _statistics(self, described: Path) -> list[Stated]:
        """What is said of the numbers of a file's episodes; an export has digests instead."""
        if not self._is_verified or self._meta.own is not None or not described.is_file():
            return []
        keys = [key for key, feature in self._features.items() if not feature.is_picture]
        return stated_in(self._meta, described, keys)

    def _episode(
        self,
        entry: EpisodeEntry,
        rows: dict[str, np.ndarray],
        videos: dict[str, VideoFrames],
    ) -> ImportedEpisode:
        times = rows["timestamp"][:, 0].astype(np.float64)
        for key, feature in self._features.items():
            if feature.dtype == "video":
                rows[key] = self._frames(entry, times, feature, videos)
        where = f"{entry.table}: episode {entry.number}"
        fields = {
            name: in_field(
                source.take(rows[source.key]),
                self.contract.fields[name],
                where=f"{where}: {source.key}",
            )
            for name, source in self._sources.items()
        }
        return ImportedEpisode(fields, self._metadata(entry, rows))

    def _frames(
        self,
        entry: EpisodeEntry,
        times: np.ndarray,
        feature: Feature,
        videos: dict[str, VideoFrames],
    ) -> np.ndarray:
        """The episode's frames; keeps the video open, as the next episode is often in it."""
        span = entry.videos[feature.key]
        try:
            if feature.key not in videos or videos[feature.key].path != span.path:
                if feature.key in videos:
                    videos.pop(feature.key).close()
                self._meta.check_file(span.path)
                height, width, _ = feature.picture_shape
                videos[feature.key] = VideoFrames(span.path, size=(height, width))
            return videos[feature.key].at(span.start + times, tolerance=self._tolerance)
        except VideoError as error:
            raise ImporterError(
                f"episode {entry.number}: {error}: copy or download the data set again, or leave "
                f"the video out with format.leave_out=[{feature.key}]"
            ) from error

    def _metadata(self, entry: EpisodeEntry, rows: Mapping[str, np.ndarray]) -> dict[str, object]:
        # Episodes that lerobot has added to an export have no line.
        if entry.number < len(self._own_metadata):
            return _renamed(self._own_metadata[entry.number])
        numbers = list(dict.fromkeys(rows["task_index"][:, 0].tolist()))
        if unknown := [number for number in numbers if number not in self._meta.tasks]:
            raise ImporterError(
                f"{entry.table}: episode {entry.number} has the tasks {unknown}, known are "
                f"{sorted(self._meta.tasks)}: copy or download the data set again"
            )
        metadata: dict[str, object] = {
            "name": f"episode {entry.number}",
            "task": ", ".join(self._meta.tasks[number] for number in numbers),
        }
        if self._success is not None:
            metadata["success"] = bool(rows[SUCCESS].any())
        return metadata


def _renamed(metadata: Mapping[str, Any]) -> dict[str, object]:
    """Metadata of an exported episode; where it was imported from before is not its source now."""
    renamed = {key: value for key, value in metadata.items() if key not in SOURCE}
    for key in SOURCE:
        if key in metadata:
            renamed.setdefault(f"original_{key}", metadata[key])
    return renamed
