"""The regression check: ratios of a run against those that were kept, never absolute times.

A ratio compares two things that took turns in one run, so it says more about the program than about
the machine. One has fallen where even the upper end of its interval lies below the kept one by more
than a margin. What was measured then must be measured now, in each section that is: rows that fail,
are renamed or were left out have not been held.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from policy.durable import write_json

VERSION = 1
SECTIONS = {  # what is compared in each, and what with
    "latency": {"equal_calls": "equal calls", "per_action": "per action"},
    "train": {"over_peer": "windows/s"},
    "env": {"over_one": "steps/s"},
    "data": {"over_other": "windows/s"},
}


class BaselineError(ValueError):
    """A file of ratios cannot be compared with."""


@dataclass(frozen=True)
class Compared:
    """A ratio then and now.

    Args:
        name: of what.
        before: the kept ratio.
        now: the ratio of this run; None where it was not measured.
        high: upper end of its interval.
        why: it was not measured.
        state: "held", "fell", "failed" or "not measured".
    """

    name: str
    before: float
    now: float | None
    high: float | None
    why: str
    state: str

    @property
    def is_bad(self) -> bool:
        """Whether the check fails for it."""
        return self.state != "held"


def ratios_of(results: Mapping) -> dict[str, Mapping]:
    """Name -> ratio with "value", "low" and "high", of all that a run compared."""
    found = {}
    for place, section, block in _blocks(results):
        for row in block["rows"]:
            for key, label in SECTIONS[section].items():
                if row[key] is not None:
                    found[f"{place}: {row['name']}, {label}"] = row[key]
    return found


def _blocks(results: Mapping) -> Iterator[tuple[str, str, Mapping]]:
    """Name, section and content of each block of rows."""
    for group in results.get("latency", {}).get("groups", []):
        yield group["name"], "latency", group
    for section in ("train", "env", "data"):
        if section in results:
            yield section, section, results[section]


def save(file: Path, results: Mapping) -> None:
    """Keep the ratios of a run.

    Raises:
        BaselineError: there are none.
        OSError: the file cannot be written.
    """
    ratios = {name: round(ratio["value"], 3) for name, ratio in ratios_of(results).items()}
    if not ratios:
        raise BaselineError(
            "this run has no ratios to keep: the peer needs pip install 'cadence[dev]'"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"version": VERSION, "machine": results["machine"], "ratios": ratios})


def load(file: Path) -> dict:
    """The ratios of `save`, and the machine that they are of.

    Raises:
        BaselineError: it cannot be read, or is not such a file.
    """
    try:
        kept = json.loads(file.read_text())
    except OSError as error:
        raise BaselineError(
            f"{file} cannot be read ({error.strerror}): make it with cadence bench save={file}"
        ) from error
    except ValueError as error:
        raise BaselineError(f"{file} is no JSON ({error}): make it with save={file}") from error
    ratios = kept.get("ratios") if isinstance(kept, dict) else None
    is_sound = isinstance(ratios, dict) and all(_is_ratio(value) for value in ratios.values())
    if not is_sound or not ratios or not isinstance(kept.get("machine"), dict):
        raise BaselineError(
            f"{file} holds no positive ratios of a machine: make it with cadence bench save={file}"
        )
    if kept.get("version") != VERSION:
        raise BaselineError(
            f"{file} is of version {kept.get('version')}, this program compares version {VERSION}: "
            f"make it anew with save={file}"
        )
    return kept


def _is_ratio(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value > 0


def compare(kept: Mapping, results: Mapping, *, margin: float) -> list[Compared]:
    """Each kept ratio against this run, those of sections that it did not measure left out.

    Args:
        kept: of `load`.
        results: of this run.
        margin: share by which a ratio may fall, in 0..1, 1 excluded.

    Raises:
        BaselineError: nothing can be compared.
        ValueError: the margin is out of range.
    """
    if not 0 <= margin < 1:
        raise ValueError(f"margin is {margin}, it must be in 0..1, 1 excluded")
    now, failures = ratios_of(results), _failures(results)
    measured = {section for section in SECTIONS if section in results}
    compared = [
        _compared(name, before, now.get(name), _failure_of(name, failures), margin)
        for name, before in kept["ratios"].items()
        if _section_of(name) in measured
    ]
    if all(each.state == "not measured" for each in compared):
        raise BaselineError(
            f"of {len(kept['ratios'])} kept ratios this run measured none: measure the same rows, "
            f"or keep new ones with save=FILE"
        )
    return compared


def _section_of(name: str) -> str:
    """The section of a ratio; those of latency are named by their group."""
    place = name.partition(": ")[0]
    return place if place in SECTIONS else "latency"


def _failures(results: Mapping) -> dict[str, str]:
    """Beginning of the names of ratios -> why they could not be measured."""
    return {
        f"{place}: {name},": why
        for place, _, block in _blocks(results)
        for name, why in block["failures"].items()
    }


def _failure_of(name: str, failures: Mapping[str, str]) -> str | None:
    return next((why for begin, why in failures.items() if name.startswith(begin)), None)


def _compared(
    name: str, before: float, now: Mapping | None, failure: str | None, margin: float
) -> Compared:
    if now is None:
        state = "not measured" if failure is None else "failed"
        why = failure or "measure it too, or keep new ratios with save=FILE"
        return Compared(name, before, None, None, why, state)
    high = now["value"] if now["high"] is None else now["high"]
    state = "held" if high >= before * (1 - margin) else "fell"  # so is what is no number
    return Compared(name, before, now["value"], high, "", state)


def other_machine(kept: Mapping, results: Mapping) -> str | None:
    """A line where the kept ratios are of another machine or other versions; None if not."""
    keys = ("processor", "cpus", "accelerator", "device", "torch")
    then, now = kept["machine"], results["machine"]
    other = [f"{k} {then.get(k)} then, {now.get(k)} now" for k in keys if then.get(k) != now.get(k)]
    return f"the kept ratios are of another machine: {'; '.join(other)}" if other else None
