"""How large the numbers of each field are: what "much" and "little" mean to the other checks."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.checks.episode import Episode, changes, is_time
from data.checks.finding import Finding, elements, warning
from data.types import Contract, Field

MANY = 64  # Different values; an element with more of them is taken as continuous.


@dataclass
class Scale:
    """Of one field over all episodes.

    Args:
        low: [D] lowest value of each element.
        high: [D] highest value.
        steps: of each episode, [D] the 90th percentile of its changes from step to step.
        values: of each element, its different values while they are few; then None.
    """

    low: np.ndarray
    high: np.ndarray
    steps: list[np.ndarray]
    values: list[set[float] | None]

    @property
    def range(self) -> np.ndarray:
        """[D] highest minus lowest value."""
        return self.high - self.low

    @cached_property
    def step(self) -> np.ndarray:
        """[D] the change from step to step that is rarely exceeded in a usual episode.

        Asked for after all episodes were seen.
        """
        return np.median(self.steps, axis=0) if self.steps else np.zeros(len(self.low))

    @property
    def is_continuous(self) -> np.ndarray:
        """[D] bool, whether an element takes so many values that distances mean something."""
        return np.array([values is None for values in self.values], bool)


class Scales:
    """Sees all episodes and knows the scale of every field; finds elements that never change."""

    def __init__(self, contract: Contract):
        self._contract = contract
        self.of: dict[str, Scale] = {
            name: _empty(meaning)
            for name, meaning in contract.fields.items()
            if not meaning.is_image
        }

    def see(self, episode: Episode) -> None:
        """Look at one more episode."""
        for name, values in episode.fields.items():
            scale, meaning = self.of[name], self._contract.fields[name]
            scale.low = np.minimum(scale.low, values.min(axis=0))
            scale.high = np.maximum(scale.high, values.max(axis=0))
            if len(values) > 1:
                scale.steps.append(np.percentile(abs(changes(values, meaning)), 90, axis=0))
            for element, known in enumerate(scale.values):
                if known is not None:
                    known.update(np.unique(values[:, element])[: MANY + 1].tolist())
                    if len(known) > MANY:
                        scale.values[element] = None

    def findings(self) -> list[Finding]:
        """S009: elements that never change."""
        found = []
        for name, scale in self.of.items():
            constant = np.flatnonzero(scale.low == scale.high)
            if len(constant) and not is_time(name):
                found.append(
                    warning(
                        "S009",
                        f"{name}: {elements(constant, 'never changes', 'never change')}",
                        "a policy learns nothing from that; leave it out if that is not meant",
                    )
                )
        return found


def _empty(meaning: Field) -> Scale:
    return Scale(
        low=np.full(meaning.size, np.inf),
        high=np.full(meaning.size, -np.inf),
        steps=[],
        values=[set() for _ in range(meaning.size)],
    )
