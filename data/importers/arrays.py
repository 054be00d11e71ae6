"""From the arrays of a foreign data set to the fields of a contract.

What becomes of their numbers is said in `data.importers.numbers`. A number per step becomes a
vector of one element. Arrays of anything else (objects, text, structures, foreign byte order) are
refused.

Shape legend: `L` steps of an episode.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from data.importers.importer import ImporterError, asked_of, told_fields
from data.importers.numbers import in_field
from data.layout import Source, StoreError
from data.types import Contract, ContractError, Field

EPISODE_BYTES = 4 * 1024**3  # More, as stored, is no episode but an archive that exhausts memory.
CHANNELS = 3
MOST_CHANNELS = 4  # of a picture: colours and opacity, or depth
SMALLEST_PICTURE = 16  # points of a side, of pictures of floats
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True)
class ArraySpec:
    """An array of a data set.

    Args:
        shape: of a step, without time.
        dtype: of its numbers.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def step_bytes(self) -> int:
        """Bytes of a step, counted without overflow."""
        size = self.dtype.itemsize
        for length in self.shape:
            size *= int(length)
        return size


@dataclass(frozen=True)
class Selection:
    """Which arrays of a data set become which fields.

    Args:
        path: of the data set, for messages.
        contract: meaning of the fields.
        sources: field name -> array, or elements of one.
        arrays: array name -> what it is.
    """

    path: Path
    contract: Contract
    sources: Mapping[str, Source]
    arrays: Mapping[str, ArraySpec]

    @classmethod
    def of(
        cls,
        path: Path,
        arrays: Mapping[str, ArraySpec],
        *,
        take: Mapping[str, object] | Sequence[str] | None,
        told: Mapping[str, Mapping] | None,
        control_dt: float | None,
        task: str,
        said: Mapping[str, Mapping] | None = None,
        action: str = "action",
        also: Sequence[str] = (),
    ) -> Self:
        """The selection that a user makes.

        Args:
            path: of the data set.
            arrays: array name -> what it is, without those that are never fields.
            take: names of the arrays to take; or field name -> name of an array, or -> key and
                elements; None: all. The action is taken in any case.
            told: field name -> entries of `Field` that the user tells.
            control_dt: time between two steps [s], None if nobody has said it.
            task: what is done, in words.
            said: field name -> entries of `Field` that the data set says of it.
            action: name of the array that is the action unless `take` names another.
            also: further settings that must be given and are not, as the user writes them.

        Raises:
            ContractError: something must be told, does not exist or contradicts the data set.
            ImporterError: an array cannot be a field.
        """
        sources = _sources(path, arrays, take, action)
        told, said = dict(told or {}), dict(said or {})
        found = {}
        for name, source in sources.items():
            spec = arrays[source.key]
            check_dtype(spec.dtype, where=f"{path}: {source.key}")
            try:
                shape = source.shape(spec.shape)
            except StoreError as error:
                raise ImporterError(f"{path}: {error}") from error
            entries = said.get(name, {}) if source.elements is None else {}
            found[name] = _field(replace(spec, shape=shape), entries, where=f"{path}: {name}")
            _check_told(name, entries, told.get(name, {}), path)
        needed = {
            name: [entry for entry in entries if entry not in said.get(name, {})]
            for name, entries in asked_of(found).items()
        }
        missing = [*also, *(["control_dt=..."] if control_dt is None else [])]
        try:
            fields = told_fields(found, told, needed=needed, also=missing)
        except (TypeError, ContractError):
            raise
        except ValueError as error:  # Such as a unit with too many entries.
            raise ContractError(f"fields: {error}") from error
        observed = {name: field for name, field in fields.items() if name != "action"}
        assert control_dt is not None
        contract = Contract(observed, fields["action"], float(control_dt), task=task)
        return cls(path, contract, sources, arrays)

    @property
    def keys(self) -> list[str]:
        """Names of the arrays that are read."""
        return sorted({source.key for source in self.sources.values()})

    def check_size(self, n_steps: int, *, where: str) -> None:
        """Raise ImporterError where an episode has no steps or too many bytes to be one."""
        if n_steps < 1:
            raise ImporterError(f"{where} has {n_steps} steps, it needs at least 1: leave it out")
        n_bytes = n_steps * sum(self.arrays[key].step_bytes for key in self.keys)
        if n_bytes > EPISODE_BYTES:
            raise ImporterError(
                f"{where} declares {n_bytes / 1e9:.1f} GB, an episode may have "
                f"{EPISODE_BYTES / 1e9:.1f} GB: the data set is damaged, or split the episode"
            )

    def episode(self, read: Callable[[str], np.ndarray], *, where: str) -> dict[str, np.ndarray]:
        """The fields of an episode.

        Args:
            read: array name -> [L, ...].
            where: what the episode is called, for messages.

        Raises:
            ImporterError: shapes, lengths or numbers are wrong.
        """
        arrays = {key: read(key) for key in self.keys}
        lengths = {key: len(values) for key, values in arrays.items()}
        if len(set(lengths.values())) != 1 or not min(lengths.values()):
            raise ImporterError(
                f"{where}: its arrays have {lengths} steps, they need the same number, at least 1: "
                f"leave it out"
            )
        for key, values in arrays.items():
            spec = self.arrays[key]
            if values.shape[1:] != spec.shape or values.dtype != spec.dtype:
                raise ImporterError(
                    f"{where}: {key} has steps of shape {values.shape[1:]} and dtype "
                    f"{values.dtype}, in the first episode they have {spec.shape} and "
                    f"{spec.dtype}: leave it out, or convert it"
                )
        return {
            name: in_field(
                source.take(arrays[source.key]),
                self.contract.fields[name],
                where=f"{where}: {source.key}",
            )
            for name, source in self.sources.items()
        }


def check_dtype(dtype: np.dtype, *, where: str) -> None:
    """Raise ImporterError for a dtype that is not plain numbers of this machine's byte order."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ImporterError(
            f"{where} has dtype {dtype}, only real numbers of up to 8 bytes are read: leave the "
            f"array out with take=[...], or convert it"
        )
    if not dtype.isnative:
        raise ImporterError(
            f"{where} has dtype {dtype.str}, numbers in foreign byte order: convert it first"
        )


def check_name(name: str, *, path: Path) -> None:
    """Raise ImporterError for a name that cannot be a field's."""
    if NAME.fullmatch(name) is None:
        raise ImporterError(
            f"{path}: {name!r} cannot be the name of a field (a letter, then letters, digits and "
            f"_): give it another one with take.NAME={name!r}"
        )


def plain(value: object) -> object:
    """A value of a data set as JSON; None for what is no number, text or truth value."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(()).item()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return value[:1000]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, bool | int) else None


def _sources(
    path: Path,
    arrays: Mapping[str, ArraySpec],
    take: Mapping[str, object] | Sequence[str] | None,
    action: str,
) -> dict[str, Source]:
    """Field name -> where it comes from."""
    if isinstance(take, str):
        take = [take]
    if not isinstance(take, Mapping):
        names = take if take else [name for name in arrays if name != action]
        take = {str(name): str(name) for name in names if name not in (action, "action")}
    chosen = {str(name): told_source(str(name), entry) for name, entry in take.items()}
    chosen.setdefault("action", Source(action))
    if missing := sorted({s.key for s in chosen.values()} - set(arrays)):
        raise ImporterError(
            f"{path} has no array {', '.join(missing)}; it has {', '.join(sorted(arrays))}: "
            f"choose some of these with take=[...], or take.NAME=ARRAY"
        )
    for name in chosen:
        check_name(name, path=path)
    if len(chosen) < 2:
        raise ImporterError(f"{path}: besides the action, nothing is taken: give take=[...]")
    return chosen


def told_source(name: str, entry: object) -> Source:
    """Where a field comes from, as the user tells it.

    Args:
        name: of the field.
        entry: name of an array, or "key" and "elements".

    Raises:
        ContractError: it is neither.
    """
    if isinstance(entry, str):
        return Source(entry)
    if not isinstance(entry, Mapping) or "key" not in entry or set(entry) - {"key", "elements"}:
        raise ContractError(
            f"take.{name} is {entry!r}, it must be the name of an array, or "
            f"take.{name}.key=ARRAY take.{name}.elements=[0,1]"
        )
    elements = entry.get("elements")
    if elements is None:
        return Source(str(entry["key"]))
    is_list = isinstance(elements, Sequence) and not isinstance(elements, str)
    if not is_list or not elements or any(type(element) is not int for element in elements):
        raise ContractError(f"take.{name}.elements are {elements!r}, they must be numbers: [0,1]")
    return Source(str(entry["key"]), list(elements))


def _field(spec: ArraySpec, said: Mapping, *, where: str) -> Field:
    """A field for the steps of an array."""
    if any(length < 1 for length in spec.shape):
        raise ImporterError(f"{where}: a step has shape {spec.shape}, it holds nothing")
    shape = spec.shape or (1,)
    if _is_channels_first(shape, spec.dtype):
        raise ImporterError(
            f"{where}: a step has shape {shape}, a picture with channels first, where height x "
            f"width x channels are read: transpose it, or leave it out with take=[...]"
        )
    is_picture = len(shape) == 3 and shape[2] == CHANNELS and spec.dtype.kind in "uf"
    if is_picture or (len(shape) == 3 and spec.dtype == np.uint8):
        return Field(shape, dtype="uint8")
    try:
        return Field(shape, **said)
    except ValueError as error:
        raise ImporterError(f"{where}: {error}") from error


def _is_channels_first(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether steps must be pictures with channels first; floats may be anything if small."""
    if len(shape) != 3 or shape[0] > MOST_CHANNELS:
        return False
    return shape[2] > MOST_CHANNELS if dtype == np.uint8 else min(shape[1:]) >= SMALLEST_PICTURE


def _check_told(name: str, said: Mapping, told: Mapping, path: Path) -> None:
    """Raise ContractError where the user contradicts the data set."""
    for entry in ("kind", "rotation"):
        if entry in said and entry in told and told[entry] != said[entry]:
            raise ContractError(
                f"fields.{name}.{entry} is {told[entry]!r}, but {path} says {said[entry]!r}: "
                f"leave the setting out, or take another array"
            )
