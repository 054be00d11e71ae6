"""Minari's HDF5: `episode_N` with `observations` of one step more than `actions`.

The file is read itself and not by minari's library, which would follow links and hold an episode's
images twice. The last observation of an episode, which no action answers, is left out. Observations
that are dictionaries or tuples are flattened: `robot/arm` becomes the field robot_arm. Limits come
from the spaces in metadata.json; what the numbers mean it does not say.

Shape legend: `L` actions of an episode.
"""

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.importers.arrays import ArraySpec, Selection, plain
from data.importers.hdf5 import (
    attribute,
    child,
    dataset,
    leaves,
    names,
    open_hdf5,
    rows,
    spec_of,
    subgroup,
)
from data.importers.importer import ImportedEpisode, ImporterError
from data.types import Contract

if TYPE_CHECKING:
    import h5py

FILE = "main_data.hdf5"
STATE = "state"  # name of an observation that is no dictionary
COPIED = ("seed", "success", "operator")
JSON_BYTES = 256 * 1024**2


class Minari:
    """A Minari data set, opened for reading.

    Args:
        path: its folder, such as ~/.minari/datasets/D4RL/door/human-v2, or the .hdf5 file within.
        fields: field name -> entries of `Field` that the user tells.
        take: which observations become fields, by their flat names; None: all.
        control_dt: time between two steps [s], which the format does not say.
        task: in words; "" is the data set's own name.

    Raises:
        ImporterError: the data set cannot be read.
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
    ):
        self.path = _file(Path(path))
        metadata = _metadata(self.path.with_name("metadata.json"))
        self._spaces = _leaf_spaces(_space(metadata, "observation_space"))
        self._spaces["action"] = _space(metadata, "action_space")
        with open_hdf5(self.path) as file:
            self._episodes = _in_order(names(file, path=self.path), self.path)
            said = metadata.get("total_episodes")
            if said != len(self._episodes):
                raise ImporterError(
                    f"{self.path} holds {len(self._episodes)} episodes, metadata.json says {said}: "
                    f"fetch the data set again"
                )
            self._check_total(file, metadata.get("total_steps"))
            first = self._arrays(subgroup(file, self._episodes[0], path=self.path))
            arrays = {name: self._spec(name, array) for name, array in first.items()}
        limits = {name: _limits(self._spaces.get(name)) for name in arrays}
        self._selection = Selection.of(
            self.path,
            arrays,
            take=take,
            told=fields,
            control_dt=control_dt,
            task=task or str(metadata.get("dataset_id", "")),
            said={name: entries for name, entries in limits.items() if entries},
        )

    @property
    def contract(self) -> Contract:
        """Meaning of the fields."""
        return self._selection.contract

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self._episodes)

    def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
        """Episodes from number `first` on, in the order of their numbers."""
        with open_hdf5(self.path) as file:
            for name in self._episodes[first:]:
                yield self._episode(subgroup(file, name, path=self.path), name)

    def _episode(self, group: "h5py.Group", name: str) -> ImportedEpisode:
        where = f"{self.path}: {name}"
        arrays = self._arrays(group)
        if missing := sorted(set(self._selection.keys) - set(arrays)):
            raise ImporterError(f"{where} lacks {', '.join(missing)}")
        n_steps = len(arrays["action"])
        said = plain(attribute(group, "total_steps", path=self.path))
        if said is not None and said != n_steps:
            raise ImporterError(f"{where} says it has {said} steps, it has {n_steps} actions")
        self._selection.check_size(n_steps, where=where)
        fields = self._selection.episode(
            lambda key: self._read(key, arrays[key], n_steps, where), where=where
        )
        metadata: dict[str, object] = {"name": name}
        for key in COPIED:
            value = plain(attribute(group, key, path=self.path))
            if value is not None:
                metadata[key] = value
        return ImportedEpisode(fields, metadata | self._outcome(group, n_steps))

    def _outcome(self, group: "h5py.Group", n_steps: int) -> dict[str, object]:
        """How an episode ended, and whether it succeeded, as far as it is known."""
        outcome: dict[str, object] = {}
        for key, word in (("terminations", "terminal"), ("truncations", "timeout")):
            if key in names(group, path=self.path):
                flags = dataset(group, key, path=self.path)
                n_flags, spec = spec_of(flags, path=self.path)
                is_fitting = n_flags == n_steps and spec.shape == ()
                if is_fitting and rows(flags, n_steps - 1, n_steps, path=self.path).any():
                    outcome.setdefault("ended", word)
        if "infos" in names(group, path=self.path):
            infos = subgroup(group, "infos", path=self.path)
            for key in ("success", "is_success"):
                if key in names(infos, path=self.path):
                    array = dataset(infos, key, path=self.path)
                    n_rows, spec = spec_of(array, path=self.path)
                    if spec.shape == () and n_rows <= n_steps + 1:
                        outcome["success"] = bool(rows(array, 0, n_rows, path=self.path).any())
        return outcome

    def _arrays(self, group: "h5py.Group") -> dict[str, "h5py.Dataset"]:
        """Flat name -> array of an episode."""
        import h5py

        observed = child(group, "observations", path=self.path)
        if isinstance(observed, h5py.Group):
            arrays = leaves(observed, path=self.path)
        else:
            arrays = {STATE: dataset(group, "observations", path=self.path)}
        if "action" in arrays:
            raise ImporterError(f"{self.path}: an observation is called 'action': rename it")
        acted = child(group, "actions", path=self.path)
        if isinstance(acted, h5py.Group):
            raise ImporterError(
                f"{self.path}: the actions are a dictionary, only vectors can be imported: flatten "
                f"them"
            )
        return arrays | {"action": dataset(group, "actions", path=self.path)}

    def _spec(self, name: str, array: "h5py.Dataset") -> ArraySpec:
        """What a step is; of pictures that are stored as JPEG, the decoded one."""
        picture = _picture_shape(self._spaces.get(name))
        if picture is not None and array.ndim != 4:
            return ArraySpec(picture, np.dtype(np.uint8))
        return spec_of(array, path=self.path)[1]

    def _read(self, name: str, array: "h5py.Dataset", n_steps: int, where: str) -> np.ndarray:
        """[L, ...] of an array; an observation has one row more, which is left out."""
        n_rows = n_steps if name == "action" else n_steps + 1
        if not array.shape or array.shape[0] != n_rows:
            raise ImporterError(
                f"{where}: {name} has shape {array.shape}, {n_rows} rows belong to {n_steps} "
                f"actions: leave the episode out"
            )
        picture = _picture_shape(self._spaces.get(name))
        if picture is None or array.ndim == 4:
            spec_of(array, path=self.path)
            return rows(array, 0, n_steps, path=self.path)
        values = np.empty((n_steps, *picture), np.uint8)
        for step in range(n_steps):
            (encoded,) = rows(array, step, step + 1, path=self.path)
            values[step] = _decoded(encoded, picture, f"{where}: {name}, step {step}")
        return values

    def _check_total(self, file: "h5py.File", total: object) -> None:
        said = [
            plain(attribute(subgroup(file, name, path=self.path), "total_steps", path=self.path))
            for name in self._episodes
        ]
        counts = [n for n in said if isinstance(n, int)]
        if len(counts) == len(said) and sum(counts) != total:
            raise ImporterError(
                f"{self.path}: its episodes say {sum(counts)} steps, metadata.json says {total}: "
                f"fetch the data set again"
            )


def _file(path: Path) -> Path:
    """The HDF5 file of a data set."""
    candidates = [path] if path.suffix == ".hdf5" else [path / "data" / FILE, path / FILE]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    arrow = [path / "data" / "metadata.json", path / "metadata.json"]
    if any(p.is_file() and '"arrow"' in p.read_text(errors="replace")[:10_000] for p in arrow):
        raise ImporterError(
            f"{path} is a Minari data set in the format arrow, only hdf5 is read: write it again "
            f"with data_format='hdf5'"
        )
    raise ImporterError(f"{path} holds no {FILE}: give the folder of a Minari data set")


def _metadata(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > JSON_BYTES:
            raise ImporterError(f"{file} has {file.stat().st_size} bytes, which is no metadata")
        entry = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ImporterError(
            f"{file} cannot be read ({error}): it belongs beside {FILE}, fetch it again"
        ) from error
    if not isinstance(entry, dict):
        raise ImporterError(f"{file} must be a JSON object")
    return entry


def _space(metadata: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A space as metadata.json describes it; empty where that cannot be read."""
    try:
        entry = json.loads(metadata.get(key) or "{}")
    except (TypeError, ValueError, RecursionError):
        raise ImporterError(f"metadata.json: {key} cannot be read: fetch it again") from None
    return entry if isinstance(entry, dict) else {}


def _leaf_spaces(space: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Flat name -> space, named as the arrays are."""
    found: dict[str, dict[str, Any]] = {}
    subspaces = space.get("subspaces")
    if isinstance(subspaces, list):
        subspaces = {f"_index_{i}": subspace for i, subspace in enumerate(subspaces)}
    if not isinstance(subspaces, Mapping):
        return {STATE: dict(space)}
    for name, subspace in subspaces.items():
        if isinstance(subspace, Mapping):
            for rest, leaf in _leaf_spaces(subspace).items():
                found[
                    name if rest == STATE and "subspaces" not in subspace else f"{name}_{rest}"
                ] = leaf
    return found


def _picture_shape(space: Mapping[str, Any] | None) -> tuple[int, ...] | None:
    """Height, width and channels, if the space is of pictures."""
    shape = (space or {}).get("shape")
    if (space or {}).get("dtype") != "uint8" or not isinstance(shape, list) or len(shape) != 3:
        return None
    if not all(type(n) is int and 0 < n <= 2**14 for n in shape):
        raise ImporterError(f"metadata.json: a picture has the shape {shape}")
    return tuple(shape)


def _limits(space: Mapping[str, Any] | None) -> dict[str, tuple[float, ...]]:
    """Limits of a Box of vectors, where all are finite and well below what float32 holds."""
    low, high, shape = ((space or {}).get(key) for key in ("low", "high", "shape"))
    if not isinstance(shape, list) or len(shape) != 1:
        return {}
    found = {}
    for key, values in (("low", low), ("high", high)):
        numbers = values if isinstance(values, list) else [values] * shape[0]
        is_good = len(numbers) == shape[0] and all(
            isinstance(n, int | float) and math.isfinite(n) and abs(n) < 1e30 for n in numbers
        )
        if is_good:
            found[key] = tuple(float(n) for n in numbers)
    return found


def _decoded(encoded: np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
    """A picture that is stored as JPEG."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(np.asarray(encoded, np.uint8).tobytes())) as image:
            if image.size != (shape[1], shape[0]):
                raise ValueError(f"{image.size[1]} x {image.size[0]} pixels")
            picture = np.asarray(image, np.uint8).reshape(shape)
    except MemoryError:
        raise
    except Exception as error:  # A damaged picture makes PIL raise anything.
        raise ImporterError(f"{where} is no picture of shape {shape} ({error})") from error
    return picture


def _in_order(found: list[str], path: Path) -> list[str]:
    """episode_2 before episode_10."""
    numbers = {}
    for name in found:
        digits = name.removeprefix("episode_")
        if not digits.isdecimal() or len(digits) > 18:
            raise ImporterError(f"{path} holds {name!r}, Minari files hold episode_NUMBER alone")
        numbers[name] = int(digits)
    if sorted(numbers.values()) != list(range(len(numbers))):
        raise ImporterError(f"{path}: episodes are missing, the highest is {max(numbers.values())}")
    if not numbers:
        raise ImporterError(f"{path} holds no episodes")
    return sorted(numbers, key=numbers.__getitem__)
