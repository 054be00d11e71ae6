"""The machine that is measured: what it is, how busy it is, and how many threads are used."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from policy.fingerprint import fingerprint

BUSY = 0.25  # load per CPU above which others are at work


def describe(device: torch.device, cpu_file: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """What the figures depend on: processor, accelerator and versions.

    Args:
        device: that networks run on.
        cpu_file: where the system tells its processor.
    """
    found = {"processor": _processor(cpu_file), **fingerprint(), "device": str(device)}
    if device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found


def _processor(file: Path) -> str:
    """Name, family and model of the processor, as far as the system tells them."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        lines = []
    facts: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{key} {facts[key]}" for key in ("cpu family", "model") if key in facts]
    return ", ".join([name, *numbers])


def busy_line(load: float, cpus: int) -> str | None:
    """A warning where others compute beside the measurement; None where they do not.

    Args:
        load: processes that ran or waited on average, in the minute before.
        cpus: of the machine.
    """
    if load <= BUSY * cpus:
        return None
    return (
        f"the machine was busy before this began, a load of {load:.2f} on {cpus} CPUs: times and "
        f"their tails are too long, and those of long calls the most, so that ratios err as well"
    )


def load_average() -> float | None:
    """Processes that ran or waited in the last minute; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


@contextmanager
def threads(n: int | None) -> Iterator[int]:
    """Let the network's operations use so many threads; None leaves them as they are."""
    before = torch.get_num_threads()
    if n is not None:
        torch.set_num_threads(n)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
