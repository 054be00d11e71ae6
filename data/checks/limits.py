"""Numbers that sit at a limit for long, and numbers beyond the limits that the contract tells."""

from pathlib import Path

import numpy as np

from data.checks.episode import Episode, is_time
from data.checks.finding import Finding, deletion, elements, in_episodes, warning
from data.checks.scales import Scales
from data.types import Contract

TOUCHING = 1e-6  # of an element's range: so near to an extreme is at it
BEYOND = 1e-3  # of the range of the limits by which rounding may exceed them
LARGEST_SHARE = {"observation": 0.2, "action": 0.5}  # of the steps that may sit at an extreme
PLATEAU = 3  # steps at the extreme that count as sitting there


class Saturation:
    """S017 elements that are cut off at an extreme: they arrive at speed, and stay exactly there.

    A resting robot also stays at a place, but it slows down before. Elements of few values, such as
    grippers, and values of exactly 0, such as forces without contact, are left out; an action that
    is at its limit for less than half of the time is an expert's who hurries.
    """

    def __init__(self, contract: Contract, scales: Scales):
        self._contract, self._scales = contract, scales
        self._n_steps = 0
        self._sitting: dict[tuple[str, int, str], int] = {}
        self._arrivals: dict[tuple[str, int, str], list[float]] = {}

    def see(self, episode: Episode) -> None:
        """Look at one more episode."""
        self._n_steps += episode.length
        for name, values in episode.fields.items():
            if is_time(name):
                continue
            scale = self._scales.of[name]
            near = TOUCHING * scale.range
            for side, extreme in (("lowest", scale.low), ("highest", scale.high)):
                is_there = abs(values - extreme) <= near
                for element in np.flatnonzero(scale.is_continuous & is_there.any(axis=0)):
                    if extreme[element] != 0:
                        key = (name, int(element), side)
                        self._take(key, values[:, element], is_there[:, element])

    def _take(self, key: tuple[str, int, str], values: np.ndarray, is_there: np.ndarray) -> None:
        edges = np.flatnonzero(np.diff(np.r_[False, is_there, False].astype(np.int8)))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            if stop - start < PLATEAU or stop - start == len(values):
                continue
            self._sitting[key] = self._sitting.get(key, 0) + int(stop - start)
            if start > 0 and len(arrivals := self._arrivals.setdefault(key, [])) < 1000:
                arrivals.append(float(abs(values[start] - values[start - 1])))

    def findings(self) -> list[Finding]:
        """What the plateaus came to."""
        found = []
        for (name, element, side), n_steps in sorted(self._sitting.items()):
            share = n_steps / self._n_steps
            kind = "action" if name == "action" else "observation"
            arrivals = self._arrivals.get((name, element, side), [])
            usual = self._scales.of[name].step[element] / 4
            if share <= LARGEST_SHARE[kind] or not arrivals or np.median(arrivals) < usual:
                continue
            scale = self._scales.of[name]
            extreme = (scale.low if side == "lowest" else scale.high)[element]
            found.append(
                warning(
                    "S017",
                    f"{name}: element {element} sits at its {side} value {extreme:g} in "
                    f"{100 * share:.0f} % of the steps, as if it were cut off there",
                    "check the range of the sensor or of the teleoperation; record more slowly",
                )
            )
        return found


class Limits:
    """S018 numbers beyond the limits of the contract."""

    def __init__(self, path: Path | str, contract: Contract):
        self._path, self._fields = path, contract.fields
        self._beyond: dict[str, list[int]] = {}
        self._worst: dict[str, tuple[float, int, float]] = {}
        self._elements: dict[str, set[int]] = {}

    def see(self, episode: Episode) -> None:
        """Look at one more episode."""
        for name, values in episode.fields.items():
            meaning = self._fields[name]
            low = np.array(meaning.low if meaning.low is not None else [-np.inf] * meaning.size)
            high = np.array(meaning.high if meaning.high is not None else [np.inf] * meaning.size)
            width = np.where(np.isfinite(high - low), high - low, 0)
            excess = np.maximum(low - values, values - high) - BEYOND * width - 1e-9
            if not (excess > 0).any():
                continue
            self._beyond.setdefault(name, []).append(episode.index)
            self._elements.setdefault(name, set()).update(
                np.flatnonzero((excess > 0).any(axis=0)).tolist()
            )
            step, element = np.unravel_index(np.argmax(excess), excess.shape)
            worst = (float(excess[step, element]), int(element), float(values[step, element]))
            self._worst[name] = max(self._worst.get(name, worst), worst)

    def findings(self) -> list[Finding]:
        """What lay beyond."""
        found = []
        for name, episodes in self._beyond.items():
            meaning = self._fields[name]
            _, element, value = self._worst[name]
            low = "" if meaning.low is None else f"{meaning.low[element]:g}"
            high = "" if meaning.high is None else f"{meaning.high[element]:g}"
            message = (
                f"{name}: {elements(sorted(self._elements[name]), 'exceeds', 'exceed')} the "
                f"contract's limits; the farthest is {value:g} of element {element}, limits "
                f"{low}..{high}; {in_episodes(episodes)}"
            )
            fix = "correct low and high in the contract, or leave the episodes out: "
            found.append(warning("S018", message, fix + deletion(self._path, episodes), episodes))
        return found
