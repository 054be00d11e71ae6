"""DPPO's npz: `states`, `actions`, `traj_lengths`, and `images` of channels first.

Its numbers are scaled to -1..1 by the `normalization.npz` that lies beside it, and are scaled back
with that; where there is none, it must be said that they are physical (`format.scaled=false`).
Images of 6 channels are two cameras. Older files, which are pickles whatever their name, are
refused.

Shape legend: `N` steps of all episodes, `C` channels.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data.importers.archive import (
    MEMBER_BYTES,
    NpzArray,
    NpzRows,
    check_sums,
    npz_arrays,
    open_zip,
    read_npz,
)
from data.importers.arrays import CHANNELS, ArraySpec, Selection
from data.importers.importer import ImportedEpisode, ImporterError
from data.types import Contract

NORMALIZATION = "normalization.npz"
EPSILON = 1e-6  # what DPPO adds to the range it divides by
MAX_TRAJECTORIES = 10**8
SCALED = {"state": "obs", "action": "action"}  # field -> prefix in normalization.npz
KEYS = {"state": "states", "action": "actions"}


class DPPO:
    """A DPPO data set, opened for reading.

    Args:
        path: of train.npz.
        fields: field name -> entries of `Field` that the user tells.
        take: which fields of state, image, image_0, image_1 ... are taken; None: all.
        control_dt: time between two steps [s], which the format does not say.
        task: what is done, in words.
        normalization: of the scale; None: normalization.npz beside the file.
        scaled: whether states and actions are scaled to -1..1; None: they are if there is a
            normalization.

    Raises:
        ImporterError: the file cannot be read.
        ContractError: something must be told.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fields: Mapping[str, Mapping] | None = None,
        take: Mapping[str, object] | Sequence[str] | None = None,
        control_dt: float | None = None,
        task: str = "",
        normalization: str | Path | None = None,
        scaled: bool | None = None,
    ):
        self.path = Path(path)
        with open_zip(self.path, member_bytes=MEMBER_BYTES) as archive:
            self._arrays = npz_arrays(self.path, archive)
            check_sums(self.path, archive)  # Rows are used before the end, where it is checked.
            self._ends = self._read_ends(NpzRows(archive, self._needed("traj_lengths")))
        for name in (*KEYS.values(), "images"):
            array = self._arrays.get(name)
            if array is None and name != "images":
                self._needed(name)
            if array is not None and array.n_rows != self._ends[-1]:
                raise ImporterError(
                    f"{self.path}: {name} has {array.n_rows} steps, traj_lengths sum to "
                    f"{self._ends[-1]}"
                )
        self._scales = self._read_scales(normalization, scaled)
        is_known = scaled is not None or bool(self._scales)
        self._selection = Selection.of(
            self.path,
            self._specs(),
            take=take,
            told=fields,
            control_dt=control_dt,
            task=task,
            also=[]
            if is_known
            else [f"format.normalization=.../{NORMALIZATION} or format.scaled=false"],
        )

    @property
    def contract(self) -> Contract:
        """Meaning of the fields."""
        return self._selection.contract

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self._ends)

    def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
        """Episodes from number `first` on, in the order of the file."""
        with contextlib.ExitStack() as stack:
            # One archive for each array, so that each is read from its begin to its end.
            readers = {}
            for key in {_stored(name) for name in self._selection.keys}:
                archive = stack.enter_context(open_zip(self.path, member_bytes=MEMBER_BYTES))
                readers[key] = NpzRows(archive, self._needed(key))
            starts = np.concatenate([[0], self._ends[:-1]])
            for index in range(first, self.n_episodes):
                start, stop = int(starts[index]), int(self._ends[index])
                where = f"{self.path}: episode {index}"
                self._selection.check_size(stop - start, where=where)
                stored = {key: reader.rows(start, stop) for key, reader in readers.items()}
                fields = self._selection.episode(
                    lambda name, stored=stored: self._physical(name, stored[_stored(name)]),
                    where=where,
                )
                yield ImportedEpisode(fields, {"name": f"trajectory_{index}"})

    def _physical(self, name: str, values: np.ndarray) -> np.ndarray:
        """Numbers of a field as they were before they were scaled; images with channels last."""
        if name.startswith("image"):
            camera = int(name.removeprefix("image_")) if "_" in name else 0
            values = np.moveaxis(values, 1, -1)
            channels = self._selection.arrays[name].shape[-1]
            return values[..., camera * channels : (camera + 1) * channels]
        if name not in self._scales:
            return values
        low, high = self._scales[name]
        return (values.astype(np.float64) + 1) / 2 * (high - low + EPSILON) + low

    def _needed(self, name: str) -> NpzArray:
        if name not in self._arrays:
            raise ImporterError(
                f"{self.path} has no {name}, it has {', '.join(sorted(self._arrays))}: DPPO files "
                f"hold states, actions and traj_lengths"
            )
        return self._arrays[name]

    def _read_ends(self, reader: NpzRows) -> np.ndarray:
        array = self._needed("traj_lengths")
        if array.spec.shape or array.spec.dtype.kind not in "iu" or not array.n_rows:
            raise ImporterError(f"{self.path}: traj_lengths must be whole numbers, at least one")
        if array.n_rows > MAX_TRAJECTORIES:
            raise ImporterError(f"{self.path} declares {array.n_rows} trajectories")
        lengths = reader.rows(0, array.n_rows).astype(np.int64)
        if lengths.min() < 1:
            index = int(np.argmin(lengths))
            raise ImporterError(
                f"{self.path}: trajectory {index} has {lengths[index]} steps, it needs at least 1"
            )
        return np.cumsum(lengths)

    def _read_scales(
        self, normalization: str | Path | None, scaled: bool | None
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Field -> smallest and largest value; empty where numbers are not scaled."""
        file = self.path.with_name(NORMALIZATION) if normalization is None else Path(normalization)
        if scaled is False:
            if normalization is not None:
                raise ImporterError("normalization is given, but scaled=false: leave out one")
            return {}
        if not file.exists():
            if normalization is None and scaled is None:
                return {}
            raise ImporterError(f"{file} does not exist: give the path of {NORMALIZATION}")
        arrays, scales = read_npz(file), {}
        for name, prefix in SCALED.items():
            size = self._arrays[KEYS[name]].spec.shape
            both = []
            for key in (f"{prefix}_min", f"{prefix}_max"):
                values = arrays.get(key)
                if values is None or values.shape != size or not np.isfinite(values).all():
                    raise ImporterError(f"{file}: {key} must be {size} finite numbers")
                both.append(values.astype(np.float64))
            if np.any(both[0] > both[1]):
                raise ImporterError(f"{file}: {prefix}_min is above {prefix}_max")
            scales[name] = (both[0], both[1])
        return scales

    def _specs(self) -> dict[str, ArraySpec]:
        """Field -> what a step of it is."""
        specs = {name: self._arrays[key].spec for name, key in KEYS.items()}
        for name in self._scales:
            specs[name] = ArraySpec(specs[name].shape, np.dtype(np.float64))
        images = self._arrays.get("images")
        if images is None:
            return specs
        shape = images.spec.shape
        if len(shape) != 3 or (shape[0] != 1 and shape[0] % CHANNELS) or not shape[0]:
            raise ImporterError(
                f"{self.path}: a step of images has shape {shape}, channels x height x width with "
                f"1 channel or a multiple of {CHANNELS} is read"
            )
        channels = min(shape[0], CHANNELS)
        n_cameras = shape[0] // channels
        for camera in range(n_cameras):
            name = "image" if n_cameras == 1 else f"image_{camera}"
            specs[name] = ArraySpec((*shape[1:], channels), images.spec.dtype)
        return specs


def _stored(name: str) -> str:
    """The array that holds a field."""
    return KEYS.get(name, "images")
