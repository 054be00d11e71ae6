"""Episodes that are copies of each other but for a little noise, such as of a conversion.

Of each episode a sketch of SKETCH numbers is kept. Those of equal length are sorted by a mixture of
theirs, so that copies come close to each other; where their sketches agree, all is compared.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data.checks.episode import Episode

SKETCH = 16  # numbers kept of each episode
NEAR = 1e-4  # of an element's range in the store: what noise may make of a copy
SHORTEST = 8  # steps; shorter episodes may be alike by chance
MOST_PAIRS = 1000  # that are compared in full
REACH = 64  # later ones in that order that an episode is held against at most


class NearCopies:
    """Finds copies with noise.

    Args:
        names: of the fields that are compared.
        ranges: field name -> [D] range of each element over the store; asked for at the end.
    """

    def __init__(self, names: Sequence[str], ranges: Callable[[], Mapping[str, np.ndarray]]):
        self._names, self._ranges = sorted(names), ranges
        self._sketches: defaultdict[int, list[tuple[int, np.ndarray]]] = defaultdict(list)

    def see(self, episode: Episode) -> None:
        """Keep a sketch of one more episode."""
        if episode.length >= SHORTEST:
            numbers = _joined(episode.fields, self._names)
            sketch = numbers[_steps(episode.length), _elements(numbers.shape[1])]
            self._sketches[episode.length].append((episode.index, sketch))

    def pairs(self, read: Callable[[int], Episode]) -> list[tuple[int, int]]:
        """Earlier and later episode of each pair; every later one is in one pair.

        Args:
            read: reads an episode again.
        """
        tolerance = NEAR * _joined(self._ranges(), self._names, axis=0) + 1e-12
        candidates = []
        for alike in self._sketches.values():
            candidates += _neighbours(alike, tolerance[_elements(len(tolerance))])
        first_of: dict[int, int] = {}
        n_compared = 0
        for earlier, later in sorted(candidates, key=lambda pair: (pair[1], pair[0])):
            if later in first_of or n_compared == MOST_PAIRS:
                continue
            n_compared += 1
            a, b = (_joined(read(index).fields, self._names) for index in (earlier, later))
            if (np.abs(a - b) <= tolerance).all():
                first_of[later] = earlier
        return [(earlier, later) for later, earlier in first_of.items()]


def _neighbours(
    sketches: Sequence[tuple[int, np.ndarray]], tolerance: np.ndarray
) -> list[tuple[int, int]]:
    """Pairs of episodes whose sketches [SKETCH] agree to a tolerance [SKETCH]."""
    if len(sketches) < 2:
        return []
    numbers = np.array([sketch for _, sketch in sketches], np.float64)
    # Less what they share, such as a constant: beside it the rest would be lost to rounding.
    scaled = (numbers - numbers[0]) / tolerance
    weights = np.random.default_rng(0).uniform(0.5, 1, scaled.shape[1])
    mixed = scaled @ weights
    order = np.argsort(mixed, kind="stable")
    farthest = weights.sum() + 1e-9 * np.abs(mixed).max()  # that mixtures of copies are apart
    found = []
    for place, episode in enumerate(order):
        others = order[place + 1 : place + 1 + REACH]
        others = others[mixed[others] - mixed[episode] <= farthest]
        for other in others[(np.abs(scaled[others] - scaled[episode]) <= 1).all(axis=1)]:
            first, second = sorted((sketches[episode][0], sketches[other][0]))
            found.append((first, second))
    return found


def _joined(fields: Mapping[str, np.ndarray], names: Sequence[str], *, axis: int = 1) -> np.ndarray:
    """[..., D] the elements of all fields."""
    return np.concatenate([fields[name] for name in names], axis=axis)


def _steps(length: int) -> np.ndarray:
    """[SKETCH] steps spread over an episode."""
    return np.linspace(0, length - 1, SKETCH).round().astype(int)


def _elements(n: int) -> np.ndarray:
    """[SKETCH] elements, all of them in turn where there are few."""
    return (np.arange(SKETCH) * max(1, n // SKETCH)) % n
