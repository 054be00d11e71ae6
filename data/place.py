"""Where the steps of a data set are kept while it is learned from, and why.

From the fastest to the slowest::

    device   the memory of the device that trains
    host     the memory of the host
    cache    decoded in a file on a local disk, built once (`data.frame_cache`)
    store    the store itself, each batch read and decoded anew

The first that is large enough is taken. With the last two, numbers stay in memory as long as they
fit; what is on the disk are the pictures, and numbers as large as those.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from data.memory import Free

Place = Literal["device", "host", "cache", "store"]
PLACES = ("auto", *get_args(Place))
DISK_RESERVE = 10**9  # bytes that a cache leaves free


class PlaceError(ValueError):
    """The place that is asked for cannot hold the data."""


@dataclass(frozen=True)
class Reading:
    """How a data set is read.

    Args:
        place: one of the above, or "auto": the first that is large enough.
        cache: folder of decoded caches, which all runs share; None: there are none.
        memory_fraction: share of the free memory that may be used, 0..1.
        ahead: batches that are prepared while a step is being computed, where they do not lie in
            the device's memory; 0: none.
        threads: that prepare them.

    Raises:
        ValueError: a setting is impossible.
    """

    place: str = "auto"
    cache: str | Path | None = None
    memory_fraction: float = 0.5
    ahead: int = 2
    threads: int = 2

    def __post_init__(self):
        if self.place not in PLACES:
            raise ValueError(f"reading.place is {self.place!r}, choose one of {', '.join(PLACES)}")
        if self.place == "cache" and self.cache is None:
            raise ValueError(
                "reading.place is 'cache', but reading.cache names no folder: give one"
            )
        if not 0 <= self.memory_fraction <= 1:
            raise ValueError(
                f"reading.memory_fraction is {self.memory_fraction}, it must be in 0..1"
            )
        for name, least in (("ahead", 0), ("threads", 1)):
            if not getattr(self, name) >= least:
                raise ValueError(
                    f"reading.{name} is {getattr(self, name)}, it must be at least {least}"
                )


@dataclass(frozen=True)
class Disk:
    """What a cache of some fields asks of the disk.

    Args:
        missing: bytes that are still to be written.
        free: bytes that are free.
    """

    missing: int
    free: int

    @property
    def is_large_enough(self) -> bool:
        """Whether the cache fits."""
        return not self.missing or self.missing + DISK_RESERVE <= self.free


@dataclass(frozen=True)
class Choice:
    """Where the fields are kept.

    Args:
        place: of the largest ones.
        resident: names of the fields in memory: the device's for the place "device", else the
            host's.
        reason: for it, in words.
    """

    place: Place
    resident: frozenset[str]
    reason: str


def choose_place(
    sizes: Mapping[str, int],
    *,
    pictures: Collection[str],
    reading: Reading,
    device_free: Free,
    host_free: Free,
    disk: Callable[[Collection[str]], Disk],
) -> Choice:
    """Where fields of these sizes go.

    Args:
        sizes: field name -> bytes.
        pictures: which of them are pictures.
        reading: what is wished.
        device_free: memory of the device.
        host_free: memory of the host; the same if the device is the host.
        disk: what a cache of the named fields asks of the disk; not called without a folder.

    Raises:
        PlaceError: the place that is asked for is too small or cannot be used.
    """
    needed = sum(sizes.values())
    account = f"{_gb(needed)} needed"
    memories: tuple[tuple[Place, Free], ...] = ("device", device_free), ("host", host_free)
    for place, free in memories:
        allowed = reading.memory_fraction * free.n_bytes
        if reading.place == place and needed > free.n_bytes:
            raise PlaceError(
                f"reading.place is {place!r}, but {_gb(needed)} are needed and {_gb(free.n_bytes)} "
                f"are {free.limit}: set reading.place=auto, or learn from fewer episodes"
            )
        account += f", {_gb(allowed)} allowed on the {place}"
        if reading.place == place or (reading.place == "auto" and needed <= allowed):
            forced = "as configured; " if reading.place == place else ""
            reason = (
                f"the memory of the {place} ({forced}{account}; {_gb(free.n_bytes)} {free.limit})"
            )
            return Choice(place, frozenset(sizes), reason)
    resident = _resident(sizes, pictures, reading.memory_fraction * host_free.n_bytes)
    account += f"; {_gb(host_free.n_bytes)} {host_free.limit}"
    place, why = _on_disk(set(sizes) - resident, reading, disk)
    return Choice(place, resident, f"{why} ({account})")


def _resident(
    sizes: Mapping[str, int], pictures: Collection[str], allowed: float
) -> frozenset[str]:
    """The smallest fields that are no pictures, as many as fit into memory together."""
    names, total = set(), 0
    for name in sorted(set(sizes) - set(pictures), key=lambda name: sizes[name]):
        total += sizes[name]
        if total <= allowed:
            names.add(name)
    return frozenset(names)


def _on_disk(
    names: Collection[str], reading: Reading, disk: Callable[[Collection[str]], Disk]
) -> tuple[Place, str]:
    """Whether those fields are read from a cache or from the store, and why, in words."""
    if reading.place == "store":
        return "store", "the store itself (as configured)"
    if reading.cache is None:
        return "store", "the store itself, which is slow, since reading.cache names no folder"
    try:
        room = disk(names)
    except OSError as error:
        if reading.place == "cache":
            raise PlaceError(
                f"reading.cache={reading.cache} cannot be used ({error.strerror or error}): give "
                f"another folder, or set reading.place=store"
            ) from error
        return "store", f"the store itself, which is slow, since no cache can be built: {error}"
    account = f"{_gb(room.missing)} to be written, {_gb(room.free)} free on its disk"
    if room.is_large_enough:
        return "cache", f"a decoded cache in {reading.cache} ({account})"
    if reading.place == "cache":
        raise PlaceError(
            f"reading.place is 'cache', but in {reading.cache} there are {account} "
            f"and {_gb(DISK_RESERVE)} must stay free: give reading.cache=FOLDER on a larger disk, "
            f"or set reading.place=store"
        )
    return "store", f"the store itself, which is slow, since a cache does not fit ({account})"


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.3f} GB"
