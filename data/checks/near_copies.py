"""Episodes that are copies of each other but for a little noise, such as of a conversion.

Of each episode a sketch of SKETCH numbers is kept. Those of equal length are sorted by a mixture of
theirs, so that copies are neighbours, and neighbours whose sketches agree are compared in full.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data.checks.episode import Episode

SKETCH = 16  # numbers kept of each episode
NEAR = 1e-4  # of an element's range in the store: what noise may make of a copy
SHORTEST = 8  # steps; shorter episodes may be alike by chance
MOST_PAIRS = 1000  # that are compared in full


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
        """Earlier and later episode of each pair; of more than two copies, to the one before.

        Args:
            read: reads an episode again.
        """
        tolerance = NEAR * _joined(self._ranges(), self._names, axis=0) + 1e-12
        candidates = []
        for alike in self._sketches.values():
            candidates += _neighbours(alike, tolerance[_elements(len(tolerance))])
        found = []
        for earlier, later in sorted(candidates, key=lambda pair: pair[1])[:MOST_PAIRS]:
            a, b = (_joined(read(index).fields, self._names) for index in (earlier, later))
            if (np.abs(a - b) <= tolerance).all():
                found.append((earlier, later))
        return found


def _neighbours(
    sketches: Sequence[tuple[int, np.ndarray]], tolerance: np.ndarray
) -> list[tuple[int, int]]:
    """Pairs of episodes whose sketches [SKETCH] agree to a tolerance [SKETCH]."""
    if len(sketches) < 2:
        return []
    scaled = np.array([sketch for _, sketch in sketches]) / tolerance
    # Numbers that all episodes share, such as a pose at the start, do not sort them.
    mixed = scaled @ np.random.default_rng(0).uniform(0.5, 1, scaled.shape[1])
    order = np.argsort(mixed, kind="stable")
    found = []
    for place, next_place in itertools.pairwise(order):
        if (np.abs(scaled[place] - scaled[next_place]) <= 1).all():
            pair = sorted((sketches[place][0], sketches[next_place][0]))
            found.append((pair[0], pair[1]))
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
