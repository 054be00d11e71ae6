"""Center and scale of a field's data, of all steps or of each set of them.

Shape legend: `n_scaled` elements of a field that are no angles which a network sees as cosine and
sine, `n_sets` elements of the one-hot field that tells the set.
"""

from collections.abc import Mapping

import numpy as np

from data.types import Contract, Field

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


def sets_of_steps(contract: Contract, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which set of statistics each step belongs to, [n_steps]; empty where there is one for all.

    Raises:
        ValueError: a step does not tell its set, or a set has no steps.
    """
    name = contract.scaled_per
    if not name:
        return np.empty(0, np.int64)
    field = contract.observation[name]
    told = checked(name, field, arrays.get(name))
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


def statistics_of_sets(
    name: str, field: Field, values: np.ndarray, sets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Center and scale [n_sets, n_scaled] of data [n_steps, *shape], of the steps of each set."""
    if len(values) != len(sets):
        raise ValueError(
            f"{name} has {len(values)} steps, {field.scaled_per} has {len(sets)}: give as many"
        )
    n_sets = int(sets.max()) + 1  # None of them is without steps.
    each = [statistics(name, field, values[sets == number]) for number in range(n_sets)]
    center, scale = zip(*each, strict=True)
    return np.stack(center), np.stack(scale)


def checked(name: str, field: Field, values: np.ndarray | None) -> np.ndarray:
    """A field's data [n_steps, *shape]; ValueError where they have no statistics."""
    if values is None:
        raise ValueError(f"the data lacks the field {name!r}, which the contract has")
    values = np.asarray(values)
    check_shape(name, values.shape, field.shape)
    if not len(values):
        raise ValueError(f"{name} has zero steps, statistics need at least one")
    if not np.isfinite(values).all():
        step = int(np.argwhere(~np.isfinite(values))[0][0])
        raise ValueError(f"{name} is not a finite number at step {step}: leave it out")
    return values


def statistics(name: str, field: Field, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Center and scale [n_scaled] of a field's checked data [n_steps, *shape]."""
    elements = scaled_elements(name, field)
    flat = values.reshape(len(values), field.size)[:, elements].astype(np.float64)
    low, high = flat.min(axis=0), flat.max(axis=0)
    center, scale = (low + high) / 2, (high - low) / 2
    is_discrete = np.isin(elements, field.discrete)
    if field.normalization == "gaussian":
        center = np.where(is_discrete, center, flat.mean(axis=0))
        scale = np.where(is_discrete, scale, flat.std(axis=0))
    scale = np.where(high - low <= CONSTANT * np.maximum(1, np.abs(center)), 1.0, scale)
    if field.normalization == "identity":
        center, scale = np.where(is_discrete, center, 0.0), np.where(is_discrete, scale, 1.0)
    return center.astype(np.float32), scale.astype(np.float32)


def check_shape(name: str, shape: tuple[int, ...], trailing: tuple[int, ...]) -> None:
    """Raise ValueError unless a shape ends in that of a field."""
    if trailing and shape[-len(trailing) :] != trailing:
        raise ValueError(f"{name} has shape {shape}, it must end in {trailing}")
