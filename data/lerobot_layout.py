"""What a LeRobot data set is made of, for whoever reads (v2.1, v3.0) or writes (v3.0) one.

    meta/info.json      rate, paths, and the features: name -> dtype, shape, names of the elements
    meta/tasks          task number -> its words
    meta/episodes       a row an episode: its steps, tasks, statistics, where rows and frames lie
    data                tables with a row a step
    videos              mp4 files; in v3.0 tables and videos hold many episodes each

A data set that this program wrote says in `info.json`, under "cadence", what its numbers mean (the
contract), which feature a field is, and the SHA-256 of every file and of `info.json` itself: so
importing it asks nothing, and what was changed since is noticed.
"""

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from data.types import Contract, ContractError, Field

INFO = "meta/info.json"
TASKS = "meta/tasks.parquet"
STATS = "meta/stats.json"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEOS = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
OWN_EPISODES = "meta/cadence_episodes.jsonl"  # a line an episode: the metadata of the store
OWN_VERSION = 1

# Columns of every table, which count steps and hold no observation.
INDEX_DTYPES = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
PICTURES = "observation.images."
NUMBERS = ("bool", "float16", "float32", "float64")
NUMBERS += tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


class LayoutError(ValueError):
    """An entry of a data set that is not what LeRobot's layout allows."""


@dataclass(frozen=True)
class Feature:
    """A column of the table, or a video.

    Args:
        key: its name, such as observation.state.
        dtype: numpy name, "image", "video" or "string".
        shape: of a step, as stored.
        names: of the elements of a vector, or () where there are none.
        is_channel_first: whether the shape of a picture begins with the channels.
        is_depth: whether a video holds distances and not colours.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    is_channel_first: bool = False
    is_depth: bool = False

    @property
    def is_picture(self) -> bool:
        """Whether it is kept as pictures or as a video."""
        return self.dtype in ("image", "video")

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """Height, width and channels."""
        return (*self.shape[1:], self.shape[0]) if self.is_channel_first else self.shape

    @classmethod
    def from_json(cls, key: str, entry: object) -> "Feature":
        """A feature as `info.json` has it.

        Raises:
            LayoutError: an entry is missing or is not what it must be.
        """
        if not isinstance(entry, Mapping):
            raise LayoutError(f"feature {key!r} is {entry!r}, it must be an object")
        if "/" in key or "\\" in key or key in ("", ".", ".."):
            raise LayoutError(f"feature {key!r} has a name that is a path, which it may not be")
        dtype, shape = entry.get("dtype"), entry.get("shape")
        if not isinstance(dtype, str):
            raise LayoutError(f"feature {key!r} has dtype {dtype!r}, it must be text")
        if not isinstance(shape, list) or not all(_is_count(n) for n in shape):
            raise LayoutError(f"feature {key!r} has shape {shape!r}, it must be a list of numbers")
        if dtype in ("image", "video") and len(shape) != 3:
            raise LayoutError(f"feature {key!r} is a picture of shape {shape}, it must have three")
        names = _flat_names(entry.get("names"))
        notes = entry.get("info") or entry.get("video_info") or {}
        return cls(
            key=key,
            dtype=dtype,
            shape=tuple(shape),
            names=names,
            is_channel_first=dtype in ("image", "video") and _is_channel_first(shape, names),
            is_depth=isinstance(notes, Mapping) and bool(notes.get("video.is_depth_map")),
        )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 2**31


def _flat_names(names: object) -> tuple[str, ...]:
    """Names of elements; data sets have a list, or a list in an object: {"motors": [...]}."""
    if isinstance(names, Mapping) and len(names) == 1:
        names = next(iter(names.values()))
    if not isinstance(names, list):
        return ()
    return tuple(str(name) for name in names)


def _is_channel_first(shape: list[int], names: tuple[str, ...]) -> bool:
    for place in (0, -1):
        if len(names) == 3 and names[place] in ("channel", "channels"):
            return place == 0
    return shape[-1] not in (1, 3, 4) and shape[0] in (1, 3, 4)


def field_name(key: str) -> str:
    """Name of the field that a feature becomes: observation.images.top is `top`."""
    short = key.removeprefix("observation.").removeprefix("images.")
    return re.sub(r"\W", "_", short, flags=re.ASCII)


def feature_keys(contract: Contract, chosen: Mapping[str, str]) -> dict[str, str]:
    """Name of a field -> key of the feature it becomes.

    LeRobot's policies look for `observation.state`, `observation.images.*` and `action`. A field
    "state", or the only vector there is, becomes the first.

    Args:
        contract: whose fields they are.
        chosen: name -> key, where another key is wanted.

    Raises:
        ContractError: a field that there is not, a key that LeRobot does not allow, or one twice.
    """
    if unknown := sorted(set(chosen) - set(contract.fields)):
        raise ContractError(f"features names {unknown}, the store has {sorted(contract.fields)}")
    vectors = [
        name
        for name, field in contract.observation.items()
        if len(field.shape) == 1 and name not in chosen
    ]
    state = vectors[0] if len(vectors) == 1 else "state"
    if "observation.state" in chosen.values() or (len(vectors) == 1 and "state" in chosen):
        state = ""
    keys = {name: _feature_key(name, field, state) for name, field in contract.fields.items()}
    keys.update(chosen)
    for name, key in keys.items():
        if not key or any(sign in key for sign in "/\\{}") or key in INDEX_DTYPES:
            raise ContractError(
                f"field {name!r} would become feature {key!r}, which LeRobot does not allow: "
                f"give another with features.{name}=observation.NAME"
            )
        if list(keys.values()).count(key) > 1:
            both = [other for other, taken in keys.items() if taken == key]
            raise ContractError(
                f"fields {both} would all become feature {key!r}: give other ones with "
                f"features.{both[-1]}=observation.NAME"
            )
    return keys


def _feature_key(name: str, field: Field, state: str) -> str:
    if name == "action":
        return "action"
    if is_photo(field):
        return PICTURES + name
    return "observation.state" if name == state else f"observation.{name}"


def is_photo(field: Field) -> bool:
    """Whether a field can be kept as a picture file: grey, in colours, or these with opacity."""
    return field.is_image and field.shape[2] in (1, 3, 4)


@dataclass(frozen=True)
class OwnEntry:
    """What this program writes under "cadence" into `info.json`.

    Args:
        contract: meaning of the numbers.
        features: name of a field -> key of its feature.
        files: path in the data set -> SHA-256 of the file.
    """

    contract: Contract
    features: Mapping[str, str]
    files: Mapping[str, str]

    def sealed(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """`info.json` with this entry, and a digest of all of it."""
        whole = copy.deepcopy(dict(info))
        whole["cadence"] = {
            "version": OWN_VERSION,
            "contract": self.contract.to_json(),
            "features": dict(self.features),
            "files": dict(self.files),
        }
        whole["cadence"]["digest"] = _digest_of(whole)
        return whole

    @classmethod
    def read(cls, info: Mapping[str, Any], *, is_verified: bool) -> "OwnEntry | None":
        """The entry of an `info.json`, None where another program wrote it.

        Raises:
            LayoutError: it is not what was written.
        """
        entry = info.get("cadence")
        if entry is None:
            return None
        if not isinstance(entry, Mapping):
            raise LayoutError(f"the entry cadence is {entry!r}, it must be an object")
        version = entry.get("version")
        if type(version) is not int or version > OWN_VERSION:
            raise LayoutError(
                f"the entry cadence has version {version!r}, this program reads up to "
                f"{OWN_VERSION}: upgrade cadence"
            )
        if is_verified and entry.get("digest") != _digest_of(info):
            raise LayoutError(
                "it was changed since it was exported (its digest says so): export it again, "
                "or, where the change was meant, import with format.verify=false"
            )
        features, files = entry.get("features"), entry.get("files")
        if not _is_text_map(features) or not _is_text_map(files):
            raise LayoutError("the entry cadence lacks features or files: export it again")
        try:
            contract = Contract.from_json(entry.get("contract", {}))
        except ContractError as error:
            raise LayoutError(f"the entry cadence is broken: {error}") from error
        if set(features) != set(contract.fields):
            raise LayoutError(
                f"the entry cadence has features for {sorted(features)}, and a contract for "
                f"{sorted(contract.fields)}: export it again"
            )
        return cls(contract=contract, features=features, files=files)


def _is_text_map(value: object) -> TypeGuard[Mapping[str, str]]:
    return isinstance(value, Mapping) and all(isinstance(v, str) for v in value.values())


def _digest_of(info: Mapping[str, Any]) -> str:
    """SHA-256 of `info.json` but for the digest itself."""
    own = {key: value for key, value in info["cadence"].items() if key != "digest"}
    text = json.dumps({**info, "cadence": own}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
