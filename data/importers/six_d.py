"""An importer whose rotations become 6-D: any importer, with parts of its fields rewritten.

Which elements of a field are a rotation, the user says by the first of them; how they represent it,
the field's own `rotation` says. An action that takes two arms has two: `to_6d.action=[3,10]`.

Shape legend: `L` steps of an episode, `D` elements of a field.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data.importers.importer import ImportedEpisode, Importer, ImporterError
from data.rotation import RotationError, is_angular, size_of, to_6d
from data.types import Contract, ContractError, Field

SIX_D = "rotation_6d"


class InSixD:
    """An importer with rotations in 6-D.

    Args:
        importer: whose fields are rewritten.
        firsts: field name -> first elements of its rotations, in the source.

    Raises:
        ContractError: a field does not exist, says no rotation, or has no such elements; or angles
            are not in radians.
    """

    def __init__(self, importer: Importer, firsts: Mapping[str, Sequence[int]]):
        self._importer = importer
        fields = importer.contract.fields
        if unknown := sorted(set(firsts) - set(fields)):
            raise ContractError(f"to_6d names {unknown}, the data set has {sorted(fields)}")
        self._firsts = {name: _checked(name, fields[name], at) for name, at in firsts.items()}
        self._from = {name: fields[name].rotation for name in self._firsts}
        changed = {
            name: _rewritten(fields[name], self._firsts[name])
            if name in self._firsts
            else fields[name]
            for name in fields
        }
        action = changed.pop("action")
        self._contract = dataclasses.replace(importer.contract, observation=changed, action=action)

    @property
    def path(self) -> Path:
        """Where the data set is."""
        return self._importer.path

    @property
    def contract(self) -> Contract:
        """Meaning of the fields, rotations being 6-D."""
        return self._contract

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return self._importer.n_episodes

    def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
        """Episodes from number `first` on."""
        for episode in self._importer.episodes(first):
            fields = dict(episode.fields)
            for name, firsts in self._firsts.items():
                try:
                    values = rewrite(fields[name], self._from[name], firsts)
                except RotationError as error:
                    called = episode.metadata.get("name", "an episode")
                    raise ImporterError(f"{self.path}: {called}: {name}: {error}") from error
                fields[name] = values.astype(self._contract.fields[name].dtype)
            yield ImportedEpisode(fields, episode.metadata)


def rewrite(values: np.ndarray, representation: str, firsts: Sequence[int]) -> np.ndarray:
    """[L, D'] values [L, D] whose rotations, beginning at `firsts`, are replaced by 6-D ones."""
    size, parts, position = size_of(representation), [], 0
    for first in firsts:
        parts += [values[:, position:first], to_6d(values[:, first : first + size], representation)]
        position = first + size
    return np.concatenate([*parts, values[:, position:]], axis=1)


def _checked(name: str, field: Field, firsts: Sequence[int]) -> list[int]:
    """The first elements of a field's rotations, ascending."""
    if not field.rotation or field.rotation == SIX_D:
        raise ContractError(
            f"to_6d.{name}: what its rotation is has not been said, or it is 6-D: give "
            f"fields.{name}.rotation=axis_angle, or what it is"
        )
    try:
        size = size_of(field.rotation)
    except RotationError as error:
        raise ContractError(f"fields.{name}.rotation: {error}") from error
    if not isinstance(firsts, Sequence) or isinstance(firsts, str):
        firsts = [firsts]  # pyright: ignore[reportAssignmentType]
    if not firsts or any(type(first) is not int for first in firsts):
        raise ContractError(f"to_6d.{name} is {firsts!r}, it must be first elements: [3]")
    ordered = sorted(firsts)
    ends = [0, *(first + size for first in ordered)]
    is_apart = all(end <= first for end, first in zip(ends, ordered, strict=False))
    if len(field.shape) != 1 or not is_apart or ends[-1] > field.size:
        raise ContractError(
            f"to_6d.{name} is {ordered}, each {field.rotation} having {size} elements: they "
            f"overlap, or leave the field, whose shape is {field.shape}"
        )
    inside = [i for first in ordered for i in range(first, first + size)]
    units = [field.unit] * field.size if isinstance(field.unit, str) else list(field.unit)
    if is_angular(field.rotation) and any(units[i] != "rad" for i in inside):
        raise ContractError(
            f"to_6d.{name}: {field.rotation} is measured in rad, the unit of its elements is "
            f"{[units[i] for i in inside]}: give fields.{name}.unit=[m,m,m,rad,rad,rad,...]; "
            f"angles that are scaled cannot be converted"
        )
    if touched := sorted(set(inside) & set(field.discrete)):
        raise ContractError(f"to_6d.{name}: the elements {touched} are discrete, no rotation")
    return ordered


def _rewritten(field: Field, firsts: Sequence[int]) -> Field:
    """What a field means once its rotations are 6-D."""
    size = size_of(field.rotation)
    inside = {i for first in firsts for i in range(first, first + size)}
    # Where each element comes from: its index, or -1 for one of a rotation.
    origin, position = [], 0
    for first in firsts:
        origin += [*range(position, first), *[-1] * 6]
        position = first + size
    origin += range(position, field.size)
    units = [field.unit] * field.size if isinstance(field.unit, str) else list(field.unit)

    def moved(elements: Sequence[int]) -> tuple[int, ...]:
        return tuple(origin.index(i) for i in elements if i not in inside)

    def limits(values: tuple[float, ...] | None, of_rotation: float) -> tuple[float, ...] | None:
        if values is None:
            return None
        return tuple(of_rotation if i < 0 else values[i] for i in origin)

    return dataclasses.replace(
        field,
        shape=(len(origin),),
        unit=tuple("1" if i < 0 else units[i] for i in origin),
        rotation=SIX_D,
        angles=moved(field.angles),
        discrete=moved(field.discrete),
        low=limits(field.low, -1.0),
        high=limits(field.high, 1.0),
    )
