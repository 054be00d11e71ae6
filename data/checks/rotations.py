"""Rotations that are none: quaternions that are not of length 1 or flip their sign, and the like.

A field tells the representation of its rotation, but not which elements hold it. It is looked for
where it usually is: the field is nothing else, or a position comes before it and at most a gripper
after it.
"""

import numpy as np

from data.checks.episode import Episode
from data.checks.finding import Finding, deletion, in_episodes, warning
from data.types import Contract, Field

SIZES = {"quaternion": 4, "rotation_6d": 6, "matrix": 9, "axis_angle": 3}
LENGTH = 0.01  # by which the length of a quaternion or column may differ from 1


def place_of(meaning: Field) -> slice | None:
    """The elements that hold a field's rotation; None where there is none, or it may be anywhere.

    Args:
        meaning: of the field.
    """
    size = next((n for kind, n in SIZES.items() if meaning.rotation.startswith(kind)), None)
    if size is None or meaning.size not in (size, 3 + size, 4 + size):
        return None
    first = 0 if meaning.size == size else 3
    return slice(first, first + size)


class Rotations:
    """S028 rotations that are not of unit length, quaternions that flip their sign."""

    def __init__(self, path: object, contract: Contract):
        self._path = path
        self._places = {
            name: (meaning, place)
            for name, meaning in contract.fields.items()
            if (place := place_of(meaning)) is not None
        }
        self._uneven: dict[str, list[int]] = {}
        self._worst: dict[str, float] = {}
        self._flips: dict[str, list[int]] = {}

    def see(self, episode: Episode) -> None:
        """Look at one more episode."""
        for name, (meaning, place) in self._places.items():
            rotation = episode.fields[name][:, place]
            wrong = _excess(meaning.rotation, rotation)
            if wrong > LENGTH:
                self._uneven.setdefault(name, []).append(episode.index)
                self._worst[name] = max(self._worst.get(name, 0.0), wrong)
            if meaning.rotation.startswith("quaternion"):
                n_flips = int(((rotation[1:] * rotation[:-1]).sum(axis=1) < 0).sum())
                self._flips.setdefault(name, []).extend([episode.index] * n_flips)

    def findings(self) -> list[Finding]:
        """What was no rotation."""
        found = []
        for name, episodes in self._uneven.items():
            rotation = self._places[name][0].rotation
            message = (
                f"{name}: what the contract calls {rotation} is up to {self._worst[name]:.3g} away "
                f"from being a rotation {in_episodes(episodes)}"
            )
            fix = "correct rotation in the contract, normalise, or leave out: "
            found.append(warning("S028", message, fix + deletion(self._path, episodes), episodes))
        for name, episodes in self._flips.items():
            if episodes:
                message = (
                    f"{name}: the quaternion flips its sign {len(episodes)} times between two "
                    f"steps, which turns nothing but is a jump to a network; "
                    f"{in_episodes(episodes)}"
                )
                fix = (
                    "import it as rotation_6d, which has no sign, or keep the sign of the last step"
                )
                found.append(warning("S028", message, fix, episodes))
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
