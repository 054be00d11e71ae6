"""When the steps were recorded: time that stands still, gaps, jitter, another rate.

A store that knows when its steps were recorded has an observation `timestamp` of one element, with
the unit s, ms, us or ns (float64, or seconds since the episode began: float32 holds the seconds
since 1970 to two minutes only), or the list `timestamps` [s] in an episode's metadata.
"""

import math
from pathlib import Path

import numpy as np

from data.checks.episode import TIME_UNITS, Episode, is_time, units_of
from data.checks.finding import Finding, deletion, in_episodes, warning
from data.types import Contract
from data.wording import counted

GAP = 1.5  # control periods between two steps; more is a step that is missing
JITTER = 0.2  # control periods by which 5 % of the steps may be early or late
RATE = 0.05  # by which the usual period may differ from the contract's


class Times:
    """S014 time that does not advance, S015 gaps, S016 jitter or another rate."""

    def __init__(self, path: Path | str, contract: Contract):
        self._path, self._control_dt = path, contract.control_dt
        named = [n for n, f in contract.observation.items() if is_time(n) and f.size == 1]
        self._name = named[0] if named else None
        unit = units_of(contract.observation[named[0]])[0] if named else "s"
        self._second = TIME_UNITS.get(unit)
        self._unit = unit
        self._stuck: list[int] = []
        self._gaps: list[tuple[float, int]] = []
        self._jittery: list[int] = []
        self._periods: list[float] = []
        self._worst = 0.0

    def see(self, episode: Episode) -> None:
        """Look at one more episode."""
        stamps = self._stamps(episode)
        if stamps is None or len(stamps) < 2:
            return
        periods = np.diff(stamps)
        if np.any(periods <= 0):
            self._stuck.append(episode.index)
            return
        self._periods.append(float(np.median(periods)))
        is_gap = periods > GAP * max(self._control_dt, float(np.median(periods)))
        self._gaps += [(float(gap), episode.index) for gap in periods[is_gap]]
        usual = periods[~is_gap]
        jitter = float(np.percentile(abs(usual - usual.mean()), 95)) / self._control_dt
        if jitter > JITTER:
            self._jittery.append(episode.index)
            self._worst = max(self._worst, jitter)

    def _stamps(self, episode: Episode) -> np.ndarray | None:
        """[L] seconds, None where there are none."""
        if self._name is not None:
            return None if self._second is None else episode.fields[self._name][:, 0] * self._second
        told = episode.metadata.get("timestamps")
        if not isinstance(told, list) or len(told) != episode.length:
            return None
        is_usable = all(isinstance(each, int | float) and math.isfinite(each) for each in told)
        return np.array(told, float) if is_usable else None

    def findings(self) -> list[Finding]:
        """What the times came to."""
        if self._name is not None and self._second is None:
            message = f"{self._name} has the unit {self._unit!r}: known are {', '.join(TIME_UNITS)}"
            return [warning("S016", message, "correct the unit in the contract")]
        return [*self._standing(), *self._missing(), *self._uneven()]

    def _standing(self) -> list[Finding]:
        if not self._stuck:
            return []
        message = f"time stands still or runs backwards {in_episodes(self._stuck)}"
        fix = "record float64, or seconds since the episode began; leave out: "
        return [warning("S014", message, fix + deletion(self._path, self._stuck), self._stuck)]

    def _missing(self) -> list[Finding]:
        if not self._gaps:
            return []
        episodes = [episode for _, episode in self._gaps]
        longest, where = max(self._gaps)
        message = (
            f"{counted(len(self._gaps), 'gap')} of more than {GAP:g} control periods "
            f"({self._control_dt:g} s), the longest {longest:.3g} s in episode {where}; "
            f"{in_episodes(episodes)}"
        )
        fix = "steps are missing, a policy learns jumps there; leave out: "
        return [warning("S015", message, fix + deletion(self._path, episodes), episodes)]

    def _uneven(self) -> list[Finding]:
        found = []
        if self._jittery:
            message = (
                f"steps come early or late by up to {100 * self._worst:.0f} % of the control "
                f"period ({self._control_dt:g} s) {in_episodes(self._jittery)}"
            )
            fix = "resample to even times before importing, or record by a clock with deadlines"
            found.append(warning("S016", message, fix, self._jittery))
        usual = float(np.median(self._periods)) if self._periods else self._control_dt
        if abs(usual / self._control_dt - 1) > RATE:
            message = f"steps are {usual:.4g} s apart, control_dt says {self._control_dt:g} s"
            found.append(warning("S016", message, "correct control_dt in the contract"))
        return found
