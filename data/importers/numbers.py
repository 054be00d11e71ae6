"""Numbers of a foreign data set in the dtype of a field, every one of them checked.

A float array becomes a float32 field; so does one of whole numbers up to 2**24, which float32 holds
exactly, or of truth values. Numbers that are too large to be told apart in float32, such as times
since 1970, are refused. Steps of height x width x 3 are pictures and become uint8, also where they
are kept as floats, if these are whole numbers 0..255.

Shape legend: `L` steps of an episode.
"""

import numpy as np

from data.importers.importer import ImporterError
from data.layout import in_dtype
from data.types import Field

MOST_LOST = 0.01  # of an element's range in an episode: what rounding may take of large numbers
WHOLE = 2**24  # up to which float32 holds every whole number


def in_field(values: np.ndarray, field: Field, *, where: str) -> np.ndarray:
    """[L, ...] numbers in the dtype and shape of a field.

    Raises:
        ImporterError: a number is not finite, or the dtype does not hold it.
    """
    values = values.reshape(len(values), *field.shape)
    if values.dtype.kind == "f":
        _check_steps(np.isfinite(values), "is not a finite number (NaN or infinite)", where)
    converted, fits = in_dtype(values, np.dtype(field.dtype))
    if values.dtype == np.float64 and converted.dtype == np.float32 and fits.all():
        _check_digits(values, converted, where)
    if values.dtype.kind in "biu" and converted.dtype.kind == "f":
        fits = fits & (np.abs(values.astype(np.float64)) <= WHOLE)
    if not fits.all():
        held = f"{values.min():g}..{values.max():g}"
        what = (
            "is a picture, but not of whole numbers 0..255"
            if field.is_image
            else f"does not fit {field.dtype}"
        )
        _check_steps(fits, f"{what} (it holds {held})", where)
    return converted


def _check_digits(values: np.ndarray, rounded: np.ndarray, where: str) -> None:
    """Raise ImporterError where large numbers [L, ...] differ by less than float32 tells apart."""
    size, span = np.abs(values).max(axis=0), np.ptp(values, axis=0)
    is_lost = (size > WHOLE) & (np.abs(values - rounded).max(axis=0) > MOST_LOST * span)
    if (is_lost & (span > 0)).any():
        raise ImporterError(
            f"{where} holds numbers up to {size.max():.10g} that differ by less than float32 tells "
            f"apart: subtract the first of them, or leave the array out with take=[...]"
        )


def _check_steps(is_good: np.ndarray, problem: str, where: str) -> None:
    if not is_good.all():
        step = int(np.argwhere(~is_good)[0][0])
        raise ImporterError(f"{where} {problem}, first at step {step}: leave the episode out")
