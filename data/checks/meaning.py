"""Numbers that do not look like what the contract says they are: units, and discrete elements.

Only what is far beyond doubt counts: a joint may turn more than once, a robot may drive 20 m.
"""

import numpy as np

from data.checks.episode import Episode, is_time, units_of
from data.checks.finding import Finding, elements, warning
from data.checks.scales import Scales
from data.types import Contract
from data.wording import agree

MOST_VALUES = 16  # of a discrete element
# Unit -> largest size that is plausible, and what larger numbers may be.
LARGEST = {
    "rad": (4 * np.pi, "degrees"),
    "rad/s": (60.0, "degrees per second"),
    "m": (50.0, "millimetres or pixels"),
    "m/s": (50.0, "millimetres per second"),
}
# Unit -> size that all elements together have to exceed, and what smaller numbers may be.
SMALLEST = {
    "px": (1.5, "scaled to -1..1"),
    "mm": (2.0, "metres"),
    "deg": (2 * np.pi, "radians"),
}
LEAST_RANGE = 0.05  # Numbers that hardly move say nothing of their unit.


class Meaning:
    """S026 units that look wrong, S027 discrete elements that are not discrete."""

    def __init__(self, contract: Contract, scales: Scales):
        self._contract, self._scales = contract, scales

    def see(self, episode: Episode) -> None:
        """Everything is in the scales already."""

    def findings(self) -> list[Finding]:
        """What the numbers look like."""
        found = []
        for name, scale in self._scales.of.items():
            if is_time(name):
                continue
            meaning = self._contract.fields[name]
            units = np.array(units_of(meaning))
            size = np.maximum(abs(scale.low), abs(scale.high))
            for unit in sorted(set(units.tolist())):
                is_of_unit = units == unit
                found += self._too_large(name, unit, is_of_unit, size)
                found += self._too_small(name, unit, is_of_unit, size)
            spread = [
                e for e in meaning.discrete if len(scale.values[e] or range(99)) > MOST_VALUES
            ]
            if spread:
                message = (
                    f"{name}: {elements(spread, 'is', 'are')} discrete by the contract, but "
                    f"{agree(len(spread), 'takes', 'take')} more than {MOST_VALUES} different "
                    f"values"
                )
                fix = "take them out of discrete in the contract, or round them when importing"
                found.append(warning("S027", message, fix))
        return found

    def _too_large(
        self, name: str, unit: str, is_of_unit: np.ndarray, size: np.ndarray
    ) -> list[Finding]:
        if unit not in LARGEST:
            return []
        limit, guess = LARGEST[unit]
        large = np.flatnonzero(is_of_unit & (size > limit))
        if not len(large):
            return []
        message = (
            f"{name}: {elements(large, 'is', 'are')} in {unit} by the contract, but the largest "
            f"value is {size[large].max():.4g}: is that {guess}?"
        )
        return [warning("S026", message, "correct the unit, or convert the numbers")]

    def _too_small(
        self, name: str, unit: str, is_of_unit: np.ndarray, size: np.ndarray
    ) -> list[Finding]:
        if unit not in SMALLEST:
            return []
        limit, guess = SMALLEST[unit]
        moves = self._scales.of[name].range[is_of_unit].max() > LEAST_RANGE
        if not moves or size[is_of_unit].max() > limit:
            return []
        message = (
            f"{name}: {elements(np.flatnonzero(is_of_unit), 'is', 'are')} in {unit} by the "
            f"contract, but never beyond {size[is_of_unit].max():.4g}: is that {guess}?"
        )
        return [warning("S026", message, "correct the unit, or convert the numbers")]
