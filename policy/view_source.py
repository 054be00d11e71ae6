"""What `cadence view` shows: a store, the episodes that a run traced, and what else a run wrote.

Nothing is read before it is asked for, and then no more than that, so a large store opens at once.

Shape legend: `L` steps of an episode, `D` elements of all fields without pictures.
"""

import io
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import imageio.v2 as imageio
import numpy as np

from data.checks.episode import units_of
from data.checks.finding import Finding
from data.store import EpisodeStore
from data.types import Field

THUMBNAIL = 64  # pixels, the height of the pictures of a strip
MOST_THUMBNAILS = 24  # of a strip
MOST_LISTED = 500  # episodes that are listed at once
MOST_BLOCK_BYTES = 32 * 1024**2  # of pictures that are decoded together and kept ...
N_BLOCKS = 4  # ... so many times
METADATA_LENGTH = 20_000  # characters of an episode's metadata that are shown


@dataclass(frozen=True)
class Chunks:
    """What was planned in an episode.

    Args:
        ticks: of each chunk, the step that its first action is for.
        actions: of each chunk [Tp, Da], physical units.
    """

    ticks: Sequence[int]
    actions: Sequence[np.ndarray]

    def to_json(self) -> dict:
        """JSON form; a number that is not finite is null."""
        return {
            "ticks": [int(tick) for tick in self.ticks],
            "actions": [plain(chunk.tolist()) for chunk in self.actions],
        }


class Source(Protocol):
    """Episodes to look at, and facts about where they come from."""

    def about(self) -> dict:
        """JSON: what there is."""
        ...

    def episodes(self, first: int, n: int) -> list[dict]:
        """JSON: so many episodes from number `first` on."""
        ...

    def numbers(self, episode: int) -> np.ndarray:
        """[L, D] float32."""
        ...

    def picture(self, episode: int, step: int, camera: int) -> bytes:
        """One picture, as PNG."""
        ...

    def strip(self, episode: int, camera: int) -> bytes:
        """Pictures of an episode at even distances side by side, as PNG."""
        ...

    def chunks(self, episode: int) -> Chunks:
        """What was planned; nothing where that is not known."""
        ...


class Episodes:
    """The episodes of a store, as the page asks for them.

    Args:
        store: opened for reading.
        chunks: episode -> what was planned in it.

    Raises:
        StoreError: the metadata is broken.
    """

    def __init__(self, store: EpisodeStore, chunks: Mapping[int, Chunks] | None = None):
        self.store = store
        self._chunks = chunks or {}
        self._metadata = store.episode_metadata
        self._blocks: dict[tuple[str, int], np.ndarray] = {}
        self._lock = threading.Lock()  # One reader at a time; pictures are small.
        fields = store.contract.fields
        self.cameras = [name for name, field in fields.items() if field.is_image]
        self.names = [name for name, field in fields.items() if not field.is_image]

    def about(self) -> dict:
        """JSON: fields, cameras, how many episodes and steps."""
        contract = self.store.contract
        return {
            "task": contract.task,
            "control_dt": contract.control_dt,
            "n_episodes": self.store.n_episodes,
            "n_steps": self.store.n_steps,
            "fields": [_field(name, contract.fields[name]) for name in self.names],
            "cameras": [
                {"name": name, "shape": list(contract.fields[name].shape)} for name in self.cameras
            ],
        }

    def episodes(self, first: int, n: int) -> list[dict]:
        """JSON: number, length and metadata of some episodes."""
        stop = min(first + min(n, MOST_LISTED), self.store.n_episodes)
        return [
            {
                "index": index,
                "length": int(self.store.lengths_of([index])[0]),
                "metadata": _shortened(self._metadata[index]),
            }
            for index in range(max(first, 0), stop)
        ]

    def numbers(self, episode: int) -> np.ndarray:
        """[L, D] float32: all fields without pictures side by side.

        Raises:
            IndexError: there is no such episode.
            StoreError: it cannot be read.
        """
        rows = self._rows(episode)
        with self._lock:
            parts = [self.store.read_rows(name, rows).reshape(len(rows), -1) for name in self.names]
        with np.errstate(over="ignore"):
            return np.concatenate(parts, axis=1).astype(np.float32)

    def pictures(self, episode: int, steps: Sequence[int], camera: int) -> np.ndarray:
        """[n, H, W, 3] uint8, the given ascending steps of an episode.

        Raises:
            IndexError: there is no such episode, step or camera.
            StoreError: it cannot be read.
        """
        rows = self._rows(episode)
        if not 0 <= camera < len(self.cameras) or not all(0 <= s < len(rows) for s in steps):
            raise IndexError(f"no picture of camera {camera} at steps {list(steps)}")
        with self._lock:
            found = [self._picture(self.cameras[camera], int(rows[step])) for step in steps]
        return np.stack([_coloured(picture) for picture in found])

    def _picture(self, name: str, row: int) -> np.ndarray:
        """[H, W, C] one step of a camera; what was decoded along with it is kept for the next."""
        n_rows = int(self.store.array(name).chunks[0])
        block_bytes = n_rows * max(1, self.store.contract.fields[name].size)
        if block_bytes > MOST_BLOCK_BYTES:
            return self.store.read_rows(name, np.array([row]))[0]
        key = (name, row // n_rows)
        if key not in self._blocks:
            first = key[1] * n_rows
            span = np.arange(first, min(first + n_rows, self.store.n_steps))
            self._blocks[key] = self.store.read_rows(name, span)
            while len(self._blocks) > N_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
        return self._blocks[key][row - key[1] * n_rows]

    def picture(self, episode: int, step: int, camera: int) -> bytes:
        """One picture, as PNG."""
        return png(self.pictures(episode, [step], camera)[0])

    def strip(self, episode: int, camera: int) -> bytes:
        """Pictures at even distances side by side, as PNG."""
        n = min(MOST_THUMBNAILS, len(self._rows(episode)))
        steps = sorted({int(s) for s in np.linspace(0, len(self._rows(episode)) - 1, n)})
        pictures = self.pictures(episode, steps, camera)
        stride = max(1, math.ceil(pictures.shape[1] / THUMBNAIL))
        return png(np.concatenate(list(pictures[:, ::stride, ::stride]), axis=1))

    def chunks(self, episode: int) -> Chunks:
        """What was planned in an episode, where it is known."""
        self._rows(episode)
        return self._chunks.get(episode, Chunks([], []))

    def _rows(self, episode: int) -> np.ndarray:
        """[L] the steps of an episode in the store."""
        if not 0 <= episode < self.store.n_episodes:
            raise IndexError(f"episode {episode} of {self.store.n_episodes}")
        end = int(self.store.episode_ends[episode])
        return np.arange(end - int(self.store.lengths_of([episode])[0]), end)


def png(picture: np.ndarray) -> bytes:
    """[H, W, 3] uint8 as a PNG file."""
    file = io.BytesIO()
    imageio.imwrite(file, picture, format="png", compress_level=1)  # pyright: ignore
    return file.getvalue()


def plain(value: object) -> object:
    """A JSON value without the numbers that JSON cannot hold, which become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, str | int) else str(value)


def told(findings: Sequence[Finding]) -> list[dict]:
    """Findings as the page takes them."""
    return [finding.to_json() for finding in findings]


def _field(name: str, field: Field) -> dict:
    return {
        "name": name,
        "size": field.size,
        "units": list(units_of(field)),
        "discrete": list(field.discrete),
        "low": plain(field.low),
        "high": plain(field.high),
    }


def _shortened(metadata: object) -> object:
    """Metadata that a page can show; time stamps of long episodes are cut."""
    shown = plain(metadata)
    if len(str(shown)) <= METADATA_LENGTH:
        return shown
    entries = metadata if isinstance(metadata, Mapping) else {}
    return {str(key): f"{str(value)[:200]} ..." for key, value in list(entries.items())[:50]}


def _coloured(picture: np.ndarray) -> np.ndarray:
    """[H, W, 3] of a picture with any number of channels."""
    n_channels = picture.shape[-1]
    if n_channels >= 3:
        return picture[..., :3]
    return np.repeat(picture[..., :1], 3, axis=-1)


def store_in(path: Path) -> Path | None:
    """The store that a path is, or that lies in it as `store.zarr` or `trace.zarr`."""
    for place in (path, path / "store.zarr", path / "trace.zarr"):
        if any((place / mark).is_file() for mark in ("zarr.json", ".zgroup")):
            return place
    return None
