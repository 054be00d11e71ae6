"""Rotations that are none: quaternions that are not of length 1 or flip their sign, and the like.

A field tells the representation of its rotation, but not which elements hold it. It is looked for
where it usually is: the field is nothing else, or a position is before it or after it, and at most
a gripper at the end. Of these places the one counts where it is a rotation in the most episodes;
units that are lengths rule a place out.
"""

from dataclasses import dataclass, field

import numpy as np

from data.checks.episode import Episode, units_of
from data.checks.finding import Finding, deletion, in_episodes, warning
from data.types import Contract, Field
from data.wording import counted

SIZES = {"quaternion": 4, "rotation_6d": 6, "matrix": 9, "axis_angle": 3}
LENGTHS = ("m", "cm", "mm")
LENGTH = 0.01  # by which the length of a quaternion or column may differ from 1


def places_of(meaning: Field) -> list[slice]:
    """The elements that may hold a field's rotation, the usual place first; none: it has none.

    Args:
        meaning: of the field.
    """
    size = next((n for kind, n in SIZES.items() if meaning.rotation.startswith(kind)), None)
    if size is None or meaning.size not in (size, 3 + size, 4 + size):
        return []
    units = units_of(meaning)
    firsts = [0] if meaning.size == size else [3, 0]
    possible = [f for f in firsts if not set(units[f : f + size]) & set(LENGTHS)] or firsts
    if meaning.rotation.startswith("axis_angle"):  # Most positions could be one as well.
        possible = possible[:1]
    return [slice(first, first + size) for first in possible]


@dataclass
class Seen:
    """What was seen in one place.

    Args:
        place: the elements.
        uneven: episodes in which it is no rotation.
        worst: how far it is away from one.
        flips: an episode for each time that a quaternion flips its sign.
    """

    place: slice
    uneven: list[int] = field(default_factory=list)
    worst: float = 0.0
    flips: list[int] = field(default_factory=list)


class Rotations:
    """S028 rotations that are not of unit length, quaternions that flip their sign."""

    def __init__(self, path: object, contract: Contract):
        self._path = path
        self._fields = {
            name: (meaning, [Seen(place) for place in places])
            for name, meaning in contract.fields.items()
            if (places := places_of(meaning))
        }

    def see(self, episode: Episode) -> None:
        """Look at one more episode."""
        for name, (meaning, places) in self._fields.items():
            for seen in places:
                rotation = episode.fields[name][:, seen.place]
                wrong = _excess(meaning.rotation, rotation)
                if wrong > LENGTH:
                    seen.uneven.append(episode.index)
                    seen.worst = max(seen.worst, wrong)
                if meaning.rotation.startswith("quaternion"):
                    n_flips = int(((rotation[1:] * rotation[:-1]).sum(axis=1) < 0).sum())
                    seen.flips.extend([episode.index] * n_flips)

    def findings(self) -> list[Finding]:
        """What was no rotation."""
        found = []
        for name, (meaning, places) in self._fields.items():
            seen = min(places, key=lambda place: len(place.uneven))
            if seen.uneven:
                message = (
                    f"{name}: what the contract calls {meaning.rotation} is up to "
                    f"{seen.worst:.3g} away from being a rotation {in_episodes(seen.uneven)}"
                )
                fix = "correct rotation in the contract, normalise, or leave out: "
                fix += deletion(self._path, seen.uneven)
                found.append(warning("S028", message, fix, seen.uneven))
            if seen.flips:
                message = (
                    f"{name}: the quaternion flips its sign {counted(len(seen.flips), 'time')} "
                    f"between two steps, which turns nothing but is a jump to a network; "
                    f"{in_episodes(seen.flips)}"
                )
                fix = (
                    "import it as rotation_6d, which has no sign, or keep the sign of the last step"
                )
                found.append(warning("S028", message, fix, seen.flips))
        return found


def _excess(kind: str, rotation: np.ndarray) -> float:
    """How far the worst of [L, n] is away from being a rotation; 0 is none."""
    if kind.startswith("quaternion"):
        return float(abs(np.linalg.norm(rotation, axis=1) - 1).max())
    if kind.startswith("axis_angle"):
        return float(np.maximum(np.linalg.norm(rotation, axis=1) / (2 * np.pi) - 1, 0).max())
    n_columns = 2 if kind.startswith("rotation_6d") else 3
    columns = rotation.reshape(len(rotation), n_columns, 3)
    products = columns @ columns.transpose(0, 2, 1)
    return float(abs(products - np.eye(n_columns)).max())
