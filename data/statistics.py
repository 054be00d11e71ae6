"""Center and scale of a field's data, of all steps or of each set of them.

Data in memory are an array; others are gone through block by block, with the same results up to the
rounding of float64, and exact quantiles (`data.streaming`).

Shape legend: `n_scaled` elements of a field that are no angles which a network sees as cosine and
sine, `n_sets` elements of the one-hot field that tells the set.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from data.blocks import Steps, blocks_of
from data.streaming import quantiles, summarized
from data.types import Contract, Field

QUANTILES = (0.01, 0.99)  # become -1 and 1

# An element that varies by less is taken as constant: below the rounding of float32 around its
# value, or below a millionth of a unit, where a scale would only blow noise up.
CONSTANT = 1e-6


def angles_of(name: str, field: Field) -> list[int]:
    """Elements that a network sees as cosine and sine."""
    return [] if name == "action" else list(field.angles)


def scaled_elements(name: str, field: Field) -> list[int]:
    """Elements that have a center and a scale."""
    angles = angles_of(name, field)
    return [element for element in range(field.size) if element not in angles]


def sets_of_steps(contract: Contract, arrays: Mapping[str, Steps]) -> np.ndarray:
    """Which set of statistics each step belongs to, [n_steps]; empty where there is one for all.

    Raises:
        ValueError: a step does not tell its set, or a set has no steps.
    """
    name = contract.scaled_per
    if not name:
        return np.empty(0, np.int64)
    field = contract.observation[name]
    steps = checked(name, field, arrays.get(name))
    told = np.concatenate(list(Chosen(name, field, steps, list(range(field.size)))))
    is_one_hot = ((told == 0) | (told == 1)).all(axis=1) & (told.sum(axis=1) == 1)
    if not is_one_hot.all():
        step = int(np.argmin(is_one_hot))
        raise ValueError(
            f"{name} is {told[step].tolist()} at step {step}, it must be one-hot to tell by which "
            f"statistics others are scaled"
        )
    missing = np.flatnonzero(~told.any(axis=0))
    if len(missing):
        names = f" of {field.frame}" if field.frame else ""
        raise ValueError(
            f"no step has element {missing[0]} of {name}{names}, so that there are no statistics "
            f"for it: learn from steps of it too, or lower the share that is held out"
        )
    return told.argmax(axis=1)


@dataclass(frozen=True)
class Chosen:
    """Elements of some steps of a field, as float64 blocks [n, n_chosen].

    Args:
        name: of the field.
        field: what it is.
        steps: its checked data.
        elements: that are chosen.
        is_wanted: [n_steps] bool; None: all steps.
    """

    name: str
    field: Field
    steps: Steps
    elements: list[int]
    is_wanted: np.ndarray | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        first = 0
        for block in blocks_of(self.steps):
            values = block
            if block is not self.steps:
                check_numbers(self.name, self.field, block, first=first)
            if self.is_wanted is not None:
                values = values[self.is_wanted[first : first + len(block)]]
            first += len(block)
            if len(values):
                flat = values.reshape(len(values), self.field.size)
                yield flat[:, self.elements].astype(np.float64)


def statistics_of_sets(
    name: str, field: Field, values: Steps, sets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Center and scale [n_sets, n_scaled] of data [n_steps, *shape], of the steps of each set."""
    if len(values) != len(sets):
        raise ValueError(
            f"{name} has {len(values)} steps, {field.scaled_per} has {len(sets)}: give as many"
        )
    n_sets = int(sets.max()) + 1  # None of them is without steps.
    each = [statistics(name, field, values, sets == number) for number in range(n_sets)]
    center, scale = zip(*each, strict=True)
    return np.stack(center), np.stack(scale)


def checked(name: str, field: Field, values: Steps | None) -> Steps:
    """A field's data [n_steps, *shape]; ValueError where they have no statistics.

    Blocks are checked while they are gone through.
    """
    if values is None:
        raise ValueError(f"the data lacks the field {name!r}, which the contract has")
    if not len(values):
        raise ValueError(f"{name} has zero steps, statistics need at least one")
    if isinstance(values, np.ndarray):
        check_numbers(name, field, values)
    return values


def check_numbers(name: str, field: Field, values: np.ndarray, *, first: int = 0) -> None:
    """Raise ValueError unless data [n_steps, *shape] from step `first` on are finite numbers."""
    check_shape(name, values.shape, field.shape)
    if not np.isfinite(values).all():
        step = first + int(np.argwhere(~np.isfinite(values))[0][0])
        raise ValueError(f"{name} is not a finite number at step {step}: leave it out")


def statistics(
    name: str, field: Field, values: Steps, is_wanted: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Center and scale [n_scaled] of a field's checked data [n_steps, *shape].

    Args:
        name: of the field.
        field: what it is, and how it is scaled.
        values: its data.
        is_wanted: [n_steps] bool, which steps; None: all.
    """
    elements = scaled_elements(name, field)
    chosen = Chosen(name, field, values, elements, is_wanted)
    summary = summarized(chosen)
    low, high = summary.low, summary.high
    center, scale = (low + high) / 2, (high - low) / 2
    is_limited = np.isin(elements, field.discrete)
    if field.normalization == "gaussian":
        center = np.where(is_limited, center, summary.mean)
        scale = np.where(is_limited, scale, summary.std)
    if field.normalization == "quantiles":
        lower, upper = _quantiles(chosen, summary.n)
        middle = (lower + upper) / 2
        # Elements that hardly ever change have no quantiles apart from each other.
        is_limited = is_limited | _is_constant(middle, upper - lower)
        center = np.where(is_limited, center, middle)
        scale = np.where(is_limited, scale, (upper - lower) / 2)
    scale = np.where(_is_constant(center, high - low), 1.0, scale)
    if field.normalization == "identity":
        center, scale = np.where(is_limited, center, 0.0), np.where(is_limited, scale, 1.0)
    return center.astype(np.float32), scale.astype(np.float32)


def _quantiles(chosen: Chosen, n_steps: int) -> np.ndarray:
    """[2, n_scaled] of all chosen steps."""
    if isinstance(chosen.steps, np.ndarray):
        return np.quantile(next(iter(chosen)), QUANTILES, axis=0)
    is_narrow = np.dtype(chosen.field.dtype) == np.float32
    return quantiles(chosen, QUANTILES, n=n_steps, bits=32 if is_narrow else 64)


def _is_constant(center: np.ndarray, extent: np.ndarray) -> np.ndarray:
    return extent <= CONSTANT * np.maximum(1, np.abs(center))


def check_shape(name: str, shape: tuple[int, ...], trailing: tuple[int, ...]) -> None:
    """Raise ValueError unless a shape ends in that of a field."""
    if trailing and shape[-len(trailing) :] != trailing:
        raise ValueError(f"{name} has shape {shape}, it must end in {trailing}")
