"""What a store looks like on disk, and whether a folder or a new episode fits that.

See `data.store` for the layout and `data.writing` for how an episode becomes visible.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from data.location import zarr_store
from data.types import Contract, ContractError, Field

FORMAT_VERSION = 2
PLAIN_VERSION = 1  # Without shards and checksums; still read and appended to.


class StoreError(ValueError):
    """A store that cannot be opened, read or written."""


@dataclass(frozen=True)
class Source:
    """Where a store without a contract of its own keeps a field.

    Args:
        key: name of the array.
        elements: which elements of its steps the field is; None: all, in any shape.
    """

    key: str
    elements: Sequence[int] | None = None

    def take(self, steps: np.ndarray) -> np.ndarray:
        """The field's part of stored steps [n, ...]."""
        return steps if self.elements is None else steps[:, list(self.elements)]

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a step of the field, of a step as stored.

        Raises:
            StoreError: there are no such elements.
        """
        if self.elements is None:
            return stored
        if len(stored) != 1 or any(not 0 <= element < stored[0] for element in self.elements):
            raise StoreError(
                f"the elements {list(self.elements)} are wanted of {self.key}, of which a step has "
                f"shape {stored}: name elements of a step of one dimension"
            )
        return (len(self.elements),)


def open_group(path: Path | str, mode: Literal["r", "a"]) -> zarr.Group:
    """The zarr group in a folder or at a location, of either format."""
    if isinstance(path, Path) and not path.exists():
        raise StoreError(f"{path} does not exist: give the folder of a zarr group")
    try:
        store = zarr_store(path, read_only=mode == "r")
        return zarr.open_group(store, mode="r" if mode == "r" else "r+", use_consolidated=False)
    except ImportError as error:
        raise StoreError(f"{path} needs a library that is not there: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # Whatever zarr and remote file systems make of what they find.
        raise StoreError(
            f"{path} is not a zarr group: give the folder that holds data/ and meta/ "
            f"({type(error).__name__}: {error})"
        ) from error


def version_of(group: zarr.Group) -> Any:
    """The version of the layout, which ought to be an int."""
    return group.attrs.get("format_version", PLAIN_VERSION)


def check_version(path: Path | str, group: zarr.Group) -> None:
    """Raise StoreError where a newer program wrote the store."""
    version = version_of(group)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise StoreError(
            f"{path} has format_version {version!r}, this program reads up to {FORMAT_VERSION}: "
            f"upgrade cadence"
        )


def own_contract(path: Path | str, group: zarr.Group) -> Contract | None:
    """The contract in the attributes, None in a foreign store."""
    check_version(path, group)
    entry: Any = group.attrs.get("contract")
    if entry is None and "commit" not in group.attrs:
        return None
    try:
        return Contract.from_json(entry)  # pyright: ignore[reportArgumentType]
    except ContractError as error:
        raise StoreError(f"{path}: the contract in the attributes is broken: {error}") from error


def stored_array(path: Path | str, group: zarr.Group, key: str) -> zarr.Array:
    """The array `key` of a group, such as `data/action`."""
    try:
        array = group[key]
    except KeyError:
        parent = group.get(key.split("/")[0])
        present = sorted(parent) if isinstance(parent, zarr.Group) else []
        raise StoreError(
            f"{path} lacks the array {key}; it has {present} there: "
            f"record it, or take the field out of the contract"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # Whatever zarr makes of a damaged file.
        raise StoreError(
            f"{path}: the zarr.json of {key} is damaged ({type(error).__name__}: {error}): "
            f"restore it from a copy"
        ) from error
    if not isinstance(array, zarr.Array):
        raise StoreError(f"{path}: {key} is a group, it must be an array")
    return array


def committed_ends(path: Path | str, array: zarr.Array, *, is_own: bool) -> np.ndarray:
    """[n_episodes] int64 ends of the whole episodes, read-only."""
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise StoreError(
            f"{path}: meta/episode_ends is {array.dtype} {array.shape}, it must be int64 [n]"
        )
    ends = stored_numbers(path, array, array.shape[0]).astype(np.int64)
    if is_own and len(ends) and ends[-1] == 0:  # Grown, but not committed.
        ends = ends[:-1]
    if np.any(np.diff(ends, prepend=0) <= 0):
        index = int(np.argmax(np.diff(ends, prepend=0) <= 0))
        raise StoreError(
            f"{path}: meta/episode_ends[{index}] is {ends[index]} after "
            f"{ends[index - 1] if index else 0}: the ends must grow, restore them from a copy"
        )
    return frozen(ends)


def stored_numbers(path: Path | str, array: zarr.Array, n: int) -> np.ndarray:
    """The first `n` elements of an array of one dimension.

    Raises:
        StoreError: it has fewer, or they are damaged.
    """
    if array.ndim != 1 or array.shape[0] < n:
        raise StoreError(
            f"{path}: {array.name} has shape {array.shape}, {n} elements are needed: "
            f"restore it from a copy"
        )
    try:
        return np.asarray(array[:n])
    except MemoryError as error:  # A damaged zarr.json may ask for anything.
        raise StoreError(
            f"{path}: {array.name} needs more memory than there is ({error}): free some, or "
            f"restore its zarr.json from a copy if that is not its size"
        ) from error
    except Exception as error:  # Whatever decoders make of damaged files.
        raise StoreError(
            f"{path}: {array.name} is damaged ({type(error).__name__}: {error}): "
            f"restore it from a copy"
        ) from error


def check_array(
    array: zarr.Array,
    field: Field,
    *,
    name: str,
    n_steps: int,
    is_own: bool,
    source: Source | None = None,
) -> None:
    """Whether a stored array can be read as the contract's field."""
    where = f"{array.store_path}"
    shape = array.shape[1:] if source is None else source.shape(array.shape[1:])
    if shape != field.shape:
        raise StoreError(
            f"{where}: a step of {name} has shape {shape}, the contract says "
            f"{field.shape}: correct the contract or the store"
        )
    if not _is_readable(array.dtype, np.dtype(field.dtype), is_own=is_own):
        raise StoreError(
            f"{where}: {name} has dtype {array.dtype}, the contract says {field.dtype}: "
            f"correct the contract or convert the array"
        )
    # Rows past the last end are what an interrupted recorder of ours leaves.
    if array.shape[0] < n_steps or (array.shape[0] > n_steps and not is_own):
        raise StoreError(
            f"{where}: {name} has {array.shape[0]} steps, but meta/episode_ends ends at "
            f"{n_steps}: the store is damaged, restore it from a copy"
        )


def _is_readable(stored: np.dtype, wanted: np.dtype, *, is_own: bool) -> bool:
    """Own stores hold what they say; foreign ones may hold floats of another width or integers.

    Floats that stand for integers (images as float32) are checked value by value while reading.
    """
    if stored == wanted:
        return True
    return not is_own and stored.kind in "fiu" and (stored.kind == "f" or wanted.kind in "iu")


def checked_episode(episode: Mapping[str, np.ndarray], contract: Contract) -> dict:
    """The episode as arrays of the contract's dtypes."""
    if set(episode) != set(contract.fields):
        raise StoreError(
            f"the episode has the fields {sorted(episode)}, the contract {sorted(contract.fields)}"
        )
    rows = {}
    for name, field in contract.fields.items():
        values = np.asarray(episode[name])
        if values.shape[1:] != field.shape or values.ndim != len(field.shape) + 1:
            raise StoreError(
                f"{name} has shape {values.shape}, the contract says {('L', *field.shape)}"
            )
        if not np.can_cast(values.dtype, field.dtype, "same_kind"):
            raise StoreError(
                f"{name} has dtype {values.dtype}, the contract says {field.dtype}: convert it"
            )
        rows[name], is_good = in_dtype(values, np.dtype(field.dtype))
        if not is_good.all():
            step = int(np.argwhere(~is_good)[0][0])
            raise StoreError(
                f"{name} is not a finite number that fits {field.dtype} at step {step} of the "
                f"episode: leave the episode out, or correct the recorder"
            )
    lengths = {name: len(values) for name, values in rows.items()}
    if len(set(lengths.values())) != 1 or not lengths["action"]:
        raise StoreError(f"the fields have {lengths} steps, they need the same number, at least 1")
    return rows


def in_dtype(values: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Values [...] in another dtype, and bool [...] where they are finite and came through."""
    with np.errstate(invalid="ignore", over="ignore"):
        converted = values.astype(dtype)
    is_good = np.equal(converted, values) if dtype.kind in "iu" else np.isfinite(converted)
    return converted, is_good


def metadata_entry(metadata: Mapping[str, object]) -> str:
    """The JSON text of an episode's metadata."""

    def plain(value: object) -> object:
        if isinstance(value, np.generic):
            return value.item()
        raise StoreError(f"metadata {value!r} is not JSON: give numbers, text, lists or objects")

    return json.dumps(metadata, sort_keys=True, default=plain)


def write_rows(array: zarr.Array, start: int, values: np.ndarray) -> None:
    """Write rows from `start` on and let the array end after them.

    Raises:
        OSError: a file cannot be written.
        StoreError: what is there already is damaged.
    """
    end, chunk = start + len(values), array.chunks[0]
    array.resize((end, *array.shape[1:]))
    # One chunk a time: of several at once, some would still be written after another has failed.
    edges = [start, *range((start // chunk + 1) * chunk, end, chunk), end]
    try:
        for first, stop in itertools.pairwise(edges):
            array[first:stop] = values[first - start : stop - start]
    except (ValueError, RuntimeError) as error:  # Of decoding the chunk that is added to.
        raise StoreError(
            f"{array.store_path} is damaged at its end ({error}): restore it from a copy"
        ) from error


def frozen(values: np.ndarray) -> np.ndarray:
    """The same array, made read-only."""
    values.flags.writeable = False
    return values
