"""Exports stores as LeRobot data sets of the format v3.0 (github.com/huggingface/lerobot).

Vectors keep every bit. Pictures are kept as PNG in the table, without loss, unless a video is asked
for: of `images=h264_lossless` every number comes back too, `h264` and `av1` lose some. What the
contract says and LeRobot has no place for is kept in `info.json` under "cadence" (see
`data.lerobot_layout`), so that importing the data set again gives an equal store.
"""

import math
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

from data.exporters.exporter import ExporterError, ExportReport
from data.exporters.lerobot_data_set import LeRobotDataSet, Plan
from data.lerobot_layout import NUMBERS, Feature, feature_keys, is_photo
from data.parquet import pyarrow
from data.store import EpisodeStore
from data.types import Field
from data.video_frames import VideoError

Images = Literal["png", "h264_lossless", "h264", "av1"]
LOSSY = ("h264", "av1")


class LeRobotV3:
    """Writes stores in LeRobot's format v3.0.

    Args:
        images: png or h264_lossless, which lose nothing; h264 or av1, which do.
        features: field name -> key of the feature it becomes, where another one is wanted.
        robot_type: name of the robot, as LeRobot writes it; None where unknown.
        data_file_mb: size that a table should not pass.
        video_file_mb: size that a video should not pass.

    Raises:
        ExporterError: another `images`, or no size.
    """

    def __init__(
        self,
        *,
        images: Images = "png",
        features: Mapping[str, str] | None = None,
        robot_type: str | None = None,
        data_file_mb: float = 100,
        video_file_mb: float = 200,
    ):
        if images not in get_args(Images):
            raise ExporterError(
                f"images is {images!r}, choose one of {', '.join(get_args(Images))}"
            )
        for name, size in (("data_file_mb", data_file_mb), ("video_file_mb", video_file_mb)):
            if not 0 < size < math.inf:
                raise ExporterError(f"{name} is {size}, it must be positive")
        self.images: Images = images
        self._chosen = dict(features or {})
        self._robot_type = robot_type
        self._sizes = (data_file_mb, video_file_mb)

    def export(
        self, store: EpisodeStore, out: Path, *, progress: Callable[[int], object] | None = None
    ) -> ExportReport:
        """Write all episodes of a store as the data set `out`, one in memory at a time.

        It is written aside and renamed at the end: whatever interrupts this leaves nothing.

        Args:
            store: whose episodes they are.
            out: folder to write, which must not exist, or be empty.
            progress: called after every episode with the number of those written.

        Raises:
            ExporterError: `out` is taken, lies in the store or cannot be written, there is no
                episode, or a field cannot be kept in this format.
            ContractError: keys of features that LeRobot does not allow.
            StoreError: the store cannot be read.
        """
        pyarrow()
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ExporterError(f"{out} exists already: choose another out=DIR, or delete it")
        if isinstance(store.path, Path) and out.resolve().is_relative_to(store.path.resolve()):
            raise ExporterError(f"{out} lies in the store {store.path}: choose another out=DIR")
        if not store.n_episodes:
            raise ExporterError(f"{store.path} has no episodes: there is nothing to export")
        keys = feature_keys(store.contract, self._chosen)
        features = {
            keys[name]: self._feature(name, keys[name], field)
            for name, field in store.contract.fields.items()
        }
        images = self.images
        plan = Plan(
            keys=keys,
            features=features,
            codec=None if images == "png" else images,
            robot_type=self._robot_type,
            data_file_mb=self._sizes[0],
            video_file_mb=self._sizes[1],
        )
        draft = out.absolute().with_name(f".{out.absolute().name}.{uuid.uuid4().hex}")
        try:
            draft.mkdir(parents=True)
            LeRobotDataSet(draft, store, plan).write(progress)
            draft.rename(out.absolute())
        except OSError as error:
            raise ExporterError(
                f"{out} cannot be written: {error.strerror or error}: make room, or choose "
                f"another out=DIR"
            ) from error
        except VideoError as error:
            raise ExporterError(str(error)) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        files = [path for path in out.rglob("*") if path.is_file()]
        return ExportReport(
            path=out,
            n_episodes=store.n_episodes,
            n_steps=store.n_steps,
            n_bytes=sum(path.stat().st_size for path in files),
            notes=self._notes(keys, features),
        )

    def _feature(self, name: str, key: str, field: Field) -> Feature:
        if field.dtype not in NUMBERS:
            raise ExporterError(
                f"field {name!r} has dtype {field.dtype}, which LeRobot does not know: "
                f"choose from {', '.join(NUMBERS)}"
            )
        if len(field.shape) > 5:
            raise ExporterError(
                f"field {name!r} has shape {field.shape}, LeRobot knows up to 5 dimensions"
            )
        if is_photo(field):
            is_video = self.images != "png" and field.shape[2:] == (3,)
            names = ("height", "width", "channels")
            return Feature(key, "video" if is_video else "image", field.shape, names)
        shape = field.shape or (1,)
        is_vector = len(shape) == 1 and shape[0] > 1
        names = tuple(f"{name}_{place}" for place in range(shape[0])) if is_vector else ()
        return Feature(key, field.dtype, shape, names)

    def _notes(self, keys: Mapping[str, str], features: Mapping[str, Feature]) -> tuple[str, ...]:
        renamed = ", ".join(f"{name} is {key}" for name, key in keys.items() if name != key)
        notes = [f"fields there: {renamed}"] if renamed else []
        if "observation.state" not in features:
            notes.append(
                "no field is observation.state, which LeRobot's policies look for: "
                "choose one with format.features.NAME=observation.state"
            )
        if self.images in LOSSY and any(f.dtype == "video" for f in features.values()):
            notes.append(f"pictures lost detail in {self.images}: images=png keeps every number")
        return tuple(notes)
