"""Windows per second from each place that demonstrations can lie in, on one core."""

import tempfile
from pathlib import Path

from data.bench import measure_gather
from data.read_bench import BARS, as_ours, measure_reading, original_rate


def measure_data(
    *, seconds: float, n_images: int = 6000, store: Path | None = None, field: str = "img"
) -> dict:
    """Rates of gathering [windows/s].

    Args:
        seconds: of each measurement, about.
        n_images: made-up pictures; 6000 are more than the caches of a processor.
        store: folder of a store with pictures, such as the published Push-T demonstrations, which
            is read as it is laid out and as a store of ours; None: made-up pictures only.
        field: name of the pictures there.
    """
    rates = measure_gather(seconds=seconds, n_images=n_images)
    rows = [
        _row("numbers, memory", rates.low_dim),
        _row("pictures, memory", rates.image),
        _row("pictures, decoded cache", rates.image_cached, ("pictures, memory", rates.image)),
        _row("pictures, store", rates.image_stored, ("pictures, memory", rates.image)),
    ]
    if store is not None:
        rows += _of_store(store, field, seconds)
    return {"rows": rows, "failures": {}}


def _of_store(path: Path, field: str, seconds: float) -> list[dict]:
    """The rates of one store with pictures."""
    original = original_rate(path, field, seconds=seconds)
    with tempfile.TemporaryDirectory() as folder:
        ours = as_ours(path, field, Path(folder) / "ours.zarr")
        rates = measure_reading(ours, Path(folder) / "cache", seconds=seconds)
    published = (f"{path.name}, as published", original)
    places = [_row(f"{path.name}, {place}", getattr(rates, place), published) for place in BARS]
    return [_row(*published), *places]


def _row(name: str, rate: float, other: tuple[str, float] | None = None) -> dict:
    """A line: windows/s, and how many times those of another place, given by name and rate."""
    place, times = None, None
    if other is not None:
        place, times = other[0], {"value": rate / other[1], "low": None, "high": None}
    return {"name": name, "windows_per_second": rate, "over_other": times, "other": place}
