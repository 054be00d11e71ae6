"""What a check is and what it sees: the demonstrations, one episode after the other.

Shape legend: `L` steps of an episode, `D` elements of a field.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from data.checks.finding import Finding
from data.types import Contract, Field

TIME_FIELDS = ("timestamp", "timestamps", "time_stamp")  # an observation of one element
TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


@dataclass(frozen=True)
class Episode:
    """One episode, without its pictures.

    Args:
        index: number in the store.
        fields: field name -> [L, D] float64, pictures left out.
        metadata: what was told of it when it was recorded.
        motion: picture field -> [L] how much the picture differs from the one before, 0 at first;
            only where pictures are looked at.
    """

    index: int
    fields: Mapping[str, np.ndarray]
    metadata: Mapping[str, object]
    motion: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Number of steps."""
        return len(self.fields["action"])


class Check(Protocol):
    """A suspicion that sees every episode once, in order, and keeps little of each."""

    def see(self, episode: Episode) -> None:
        """Look at one more episode."""
        ...

    def findings(self) -> list[Finding]:
        """What it came to."""
        ...


def units_of(meaning: Field) -> tuple[str, ...]:
    """The unit of each element of a field."""
    unit = meaning.unit
    return (unit,) * meaning.size if isinstance(unit, str) else unit


def is_time(name: str) -> bool:
    """Whether a field holds time stamps."""
    return name.split(".")[-1].split("/")[-1] in TIME_FIELDS


def sensed(contract: Contract) -> list[str]:
    """Names of the observations that are numbers of the robot or its world."""
    return [
        name
        for name, meaning in contract.observation.items()
        if not meaning.is_image and not is_time(name)
    ]


def changes(values: np.ndarray, meaning: Field) -> np.ndarray:
    """[L - 1, D] difference of each step to the one before; of angles the shorter way round."""
    differences = np.diff(values, axis=0)
    for element in meaning.angles:
        turned = differences[:, element]
        differences[:, element] = (turned + np.pi) % (2 * np.pi) - np.pi
    return differences


def runs(is_true: np.ndarray) -> list[tuple[int, int]]:
    """The stretches (start, stop) over which a bool array is true."""
    edges = np.flatnonzero(np.diff(np.r_[False, is_true, False].astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
