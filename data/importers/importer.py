"""What every importer is, and how a format's silence about its numbers is answered.

An importer opens a foreign data set, says what its numbers mean (a `Contract`) and gives its
episodes one after the other, never more than one in memory. What a format does not say (units,
absolute or delta actions, the representation of a rotation) is not guessed: the user is asked for
all of it at once, by the settings to give.

Shape legend: `L` steps of an episode.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from data.types import Contract, ContractError, Field

LISTS = ("low", "high", "angles", "discrete")  # entries of a field that are lists of numbers


class ImporterError(ValueError):
    """A foreign data set that cannot be read; the message names the file, the fault and the fix."""


@dataclass(frozen=True)
class ImportedEpisode:
    """One episode of a foreign data set.

    Args:
        fields: field name -> [L, ...], exactly the fields of the importer's contract.
        metadata: what is worth knowing of it, as JSON: name in the source, success, seed, operator.
    """

    fields: dict[str, np.ndarray]
    metadata: dict[str, object]


class Importer(Protocol):
    """A foreign data set, opened for reading; files are closed when an iteration ends."""

    @property
    def path(self) -> Path:
        """Where it is."""
        ...

    @property
    def contract(self) -> Contract:
        """Meaning of the fields of every episode."""
        ...

    @property
    def n_episodes(self) -> int:
        """Number of episodes, known without reading them."""
        ...

    def episodes(self, first: int = 0) -> Iterator[ImportedEpisode]:
        """Episodes from number `first` on, in a fixed order; earlier ones are not read."""
        ...


def told_fields(
    found: Mapping[str, Field],
    told: Mapping[str, Mapping],
    *,
    needed: Mapping[str, Sequence[str]],
    also: Sequence[str] = (),
) -> dict[str, Field]:
    """Fields with what the user tells of them.

    Args:
        found: field name -> what the data set says.
        told: field name -> entries of `Field` that the user gives, such as unit and kind.
        needed: field name -> entries that the format leaves open and that must be told.
        also: further settings that must be given and are not, such as "control_dt=...".

    Raises:
        ContractError: a field or an entry that does not exist, or entries that must be told are
            not; names all of them, as settings to give.
    """
    if unknown := sorted(set(told) - set(found)):
        raise ContractError(f"fields tells of {unknown}, the data set has {sorted(found)}")
    entries = {entry.name for entry in dataclasses.fields(Field)} - {"shape", "dtype"}
    for name, told_entries in told.items():
        if wrong := sorted(set(told_entries) - entries):
            raise ContractError(
                f"fields.{name} has the entries {wrong}, known are {sorted(entries)}"
            )
    missing = [
        f"fields.{name}.{entry}=..."
        for name, wanted in needed.items()
        for entry in wanted
        if entry not in told.get(name, {})
    ]
    missing += also
    if missing:
        raise ContractError(
            f"the data set does not say what its numbers mean, please give "
            f"{' '.join(missing)} (unit such as m, rad, px or 1 and kind absolute, delta or "
            f"relative; rotation such as axis_angle, quaternion_wxyz, rotation_6d, or none)"
        )
    return {
        name: dataclasses.replace(field, **_entries(name, told.get(name, {})))
        for name, field in found.items()
    }


def asked_of(fields: Mapping[str, Field]) -> dict[str, list[str]]:
    """What has to be told of fields of a format that says nothing: field name -> entries.

    Units of all numbers; of the action also whether it is absolute, and of what a rotation is made.
    """
    asked = {name: ["unit"] for name, field in fields.items() if not field.is_image}
    if "action" in asked:
        asked["action"] = ["unit", "kind", "rotation"]
    return asked


def _entries(name: str, told: Mapping) -> dict:
    """Entries as `Field` takes them; the word "none" says that there is no rotation."""
    entries = dict(told)
    for entry in LISTS:
        value = entries.get(entry)
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if value is not None and not (is_list and all(isinstance(n, int | float) for n in value)):
            raise ContractError(f"fields.{name}.{entry} is {value!r}, it must be numbers: [0,1]")
    if "unit" in entries:  # "1" is typed as a number.
        unit = entries["unit"]
        is_list = isinstance(unit, Sequence) and not isinstance(unit, str)
        entries["unit"] = tuple(map(str, unit)) if is_list else str(unit)
    if entries.get("rotation") == "none":
        entries["rotation"] = ""
    return entries
