"""Tensors and plain values of a foreign torch checkpoint, without running any code it names.

A checkpoint of `torch.save` is a zip file around a pickle, and a pickle calls whatever it names.
Here it can name tensors and ordered dictionaries; everything else becomes a stand-in, which takes
what the pickle hands it and does nothing.

    <root>/data.pkl      nested dicts, whose tensors point to ...
    <root>/data/<key>    ... the numbers of a storage: little endian, not compressed

Tensors are read when asked for, so an optimiser's state beside the weights costs nothing.

Source: the layout `{cfg, state_dicts: {model, ema_model, ...}, pickles}` is that of Diffusion
Policy (Chi et al. 2023, arXiv:2303.04137).
"""

import itertools
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
STORAGE_MODULES = ("torch", "torch.storage", "torch.cuda")

# Where OmegaConf keeps the values of a container and of a leaf.
OMEGACONF_CONTENT, OMEGACONF_VALUE = "_content", "_val"

# A published configuration has about a hundred. Few bytes can name a list within itself so often
# that all of it would not fit into memory.
MAX_VALUES = 100_000


class ForeignCheckpointError(ValueError):
    """A file cannot be read as a checkpoint; the message names it."""


@dataclass(frozen=True)
class ForeignCheckpoint:
    """What was read of a checkpoint.

    Args:
        tensors: name -> tensor of the state dict that was asked for.
        config: nested plain values of its configuration; None where a value is of another kind.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any]


def load_foreign(file: Path, *, weights: str) -> ForeignCheckpoint:
    """Read a state dict and the configuration of a checkpoint.

    Args:
        file: written by `torch.save`.
        weights: name of the state dict among its `state_dicts`, such as "ema_model".

    Raises:
        ForeignCheckpointError: there is no such file, it is of another format or damaged, or it
            lacks the state dict.
    """
    if not file.is_file():
        raise ForeignCheckpointError(f"{file}: there is no such file")
    try:
        with zipfile.ZipFile(file) as archive:
            return _read(archive, file, weights)
    except ForeignCheckpointError:
        raise
    except zipfile.BadZipFile as error:
        raise ForeignCheckpointError(
            f"{file} is no whole zip file, as torch.save writes them since version 1.6 ({error}): "
            f"give a checkpoint such as latest.ckpt"
        ) from error
    except Exception as error:  # A damaged archive raises anything.
        problem = str(error) or type(error).__name__
        raise ForeignCheckpointError(f"{file} is damaged: {problem}") from error


def _read(archive: zipfile.ZipFile, file: Path, weights: str) -> ForeignCheckpoint:
    root = _root(archive, file)
    with archive.open(f"{root}/data.pkl") as stream:
        try:
            content = _Unpickler(stream).load()
        except Exception as error:  # A damaged pickle raises anything.
            raise ForeignCheckpointError(f"{file}: its pickle cannot be read ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dicts"), dict):
        keys = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ForeignCheckpointError(
            f"{file} holds {keys}, it must hold state_dicts as Diffusion Policy does"
        )
    states = content["state_dicts"]
    if not isinstance(states.get(weights), dict):
        names = sorted(map(str, states))
        raise ForeignCheckpointError(f"{file} lacks the weights {weights!r}, it has {names}")
    strange = [str(k) for k, v in states[weights].items() if not isinstance(v, _StoredTensor)]
    if strange:
        raise ForeignCheckpointError(f"{file}: in {weights}, {strange} are no tensors")
    tensors = {str(k): v.read(archive, root) for k, v in states[weights].items()}
    config = plain(content.get("cfg"))
    return ForeignCheckpoint(tensors, config if isinstance(config, dict) else {})


def _root(archive: zipfile.ZipFile, file: Path) -> str:
    """Name of the folder that all of the archive is in."""
    names = archive.namelist()
    roots = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl")]
    if len(roots) != 1 or f"{roots[0]}/constants.pkl" in names:
        raise ForeignCheckpointError(f"{file} is a zip file, but none that torch.save wrote")
    if f"{roots[0]}/byteorder" in names and archive.read(f"{roots[0]}/byteorder") != b"little":
        raise ForeignCheckpointError(f"{file} holds big-endian numbers, which are not supported")
    return roots[0]


def plain(value: object, *, max_values: int = MAX_VALUES) -> Any:
    """Nested dicts and lists of numbers, strings, booleans and None; None for all else.

    The containers of OmegaConf are unwrapped.

    Raises:
        ValueError: there are more values than `max_values`, each counted wherever it is named.
    """
    count = itertools.count(1)

    def unwrapped(node: object) -> Any:
        if next(count) > max_values:
            raise ValueError(f"its configuration has more than {max_values} values")
        match node:
            case None | bool() | int() | float() | str():
                return node
            case Mapping():
                return {str(key): unwrapped(item) for key, item in node.items()}
            case list() | tuple():
                return [unwrapped(item) for item in node]
            case _StandIn(state=dict() as state):
                return unwrapped(state.get(OMEGACONF_CONTENT, state.get(OMEGACONF_VALUE)))
        return None

    return unwrapped(value)


class _StandIn:
    """What a pickle gets in place of a class or function: it keeps its state and does nothing."""

    state: object = None

    def __new__(cls, *arguments: object, **named: object) -> Self:
        return super().__new__(cls)

    def __call__(self, *arguments: object, **named: object) -> Self:
        return self

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    def add(self, item: object) -> None:
        pass


def _refuse_state(it: object) -> NoReturn:
    """Without this a pickle could change what was checked when it was made."""
    raise pickle.UnpicklingError(f"a {type(it).__name__} is given a state")


@dataclass(frozen=True)
class _Storage:
    """A record of the archive that holds `n` numbers."""

    key: str
    dtype: torch.dtype
    n: int

    def __setstate__(self, state: object) -> None:
        _refuse_state(self)


@dataclass(frozen=True)
class _StoredTensor:
    """Where a tensor lies; sizes and offset in numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __setstate__(self, state: object) -> None:
        _refuse_state(self)

    def read(self, archive: zipfile.ZipFile, root: str) -> Tensor:
        """The tensor, with memory of its own."""
        if 0 in self.shape:
            return torch.zeros(self.shape, dtype=self.storage.dtype)
        name = f"{root}/data/{self.storage.key}"
        entry = archive.getinfo(name)
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed, which torch.save never does")
        size = entry.file_size
        if size != self.storage.n * self.storage.dtype.itemsize:
            raise ValueError(
                f"{name} has {size} bytes, {self.storage.n} numbers of {self.storage.dtype} need "
                f"{self.storage.n * self.storage.dtype.itemsize}"
            )
        last = sum(stride * (n - 1) for n, stride in zip(self.shape, self.stride, strict=True))
        if any(stride < 0 for stride in self.stride) or self.offset + last >= self.storage.n:
            raise ValueError(f"a tensor of shape {self.shape} does not fit into {name}")
        if any(n > 1 and stride == 0 for n, stride in zip(self.shape, self.stride, strict=True)):
            raise ValueError(f"{name} is expanded to {self.shape}, which weights are not")
        numbers = torch.frombuffer(bytearray(archive.read(name)), dtype=self.storage.dtype)
        return numbers.as_strided(self.shape, self.stride, self.offset).clone()


class _Unpickler(pickle.Unpickler):
    """Builds dicts, lists, numbers, strings and references to tensors; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle gets for a name: one of ours, or a stand-in. Nothing is imported."""
        # Bound methods, whose attributes a pickle cannot change.
        if module in STORAGE_MODULES and name in DTYPES:
            return DTYPES[name]
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return self._tensor
            case "torch._utils", "_rebuild_parameter":
                return self._parameter
        return type("StandIn", (_StandIn,), {})

    def persistent_load(self, pid: object) -> _Storage:
        """The storage that a tensor names."""
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), _, int(n)):
                return _Storage(key, dtype, n)
        # Not what it is: in full that may be longer than any memory.
        raise pickle.UnpicklingError(f"a tensor refers to a {type(pid).__name__}, no storage")

    def _tensor(self, *arguments: object) -> _StoredTensor:
        match arguments:
            case (_Storage() as storage, int(offset), tuple(shape), tuple(stride), *_):
                if all(isinstance(n, int) for n in (*shape, *stride)):
                    return _StoredTensor(storage, offset, shape, stride)
        raise pickle.UnpicklingError("a tensor lacks its storage, offset, shape or stride")

    def _parameter(self, tensor: _StoredTensor, *others: object) -> _StoredTensor:
        return tensor
