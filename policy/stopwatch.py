"""Where the time of a loop goes: seconds of its named parts, and what is left beside them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the seconds of named parts.

    Args:
        device: whose work is waited for at both ends of a part. That costs a GPU some of its speed,
            so that a watch is for looking at a run, not for having one.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._parts: dict[str, float] = {}
        self._begin = self._now()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is done within as part `name`."""
        start = self._now()
        yield
        self._parts[name] = self._parts.get(name, 0.0) + self._now() - start

    def restart(self) -> None:
        """Forget what was counted."""
        self._parts.clear()
        self._begin = self._now()

    def seconds(self) -> dict[str, float]:
        """Seconds of each part since the start, and of "rest": what lay between them."""
        total = self._now() - self._begin
        return {**self._parts, "rest": total - sum(self._parts.values())}

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class NoStopwatch(Stopwatch):
    """Counts nothing, at no cost."""

    def __init__(self):
        self._parts = {}

    def restart(self) -> None:
        """Do nothing."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Do nothing."""
        yield


def table(seconds: dict[str, float], *, n_steps: int, work: tuple[str, ...]) -> str:
    """The parts of a step as a table, and the share of what is not `work`.

    Args:
        seconds: part -> seconds of all steps together.
        n_steps: how many there were.
        work: parts that are no overhead.
    """
    total = sum(seconds.values())
    lines = [f"{'part of a step':<20}{'ms':>10}{'share':>8}"]
    for name, spent in seconds.items():
        lines.append(f"{name:<20}{1e3 * spent / n_steps:>10.3f}{spent / total:>8.1%}")
    lines.append(f"{'all':<20}{1e3 * total / n_steps:>10.3f}{1:>8.0%}")
    overhead = 1 - sum(seconds.get(name, 0.0) for name in work) / total
    lines.append(f"outside of {', '.join(work)}: {overhead:.1%}")
    return "\n".join(lines)
