"""Pictures and the state they belong to: late or early pictures, frozen and blank ones.

Where the state moves fast the picture changes much. The lag at which the two correlate best says
by how many steps one is behind the other. Nothing is said where they hardly correlate.

Shape legend: `L` steps, `E` elements of the state, `K` lags to both sides.
"""

from pathlib import Path

import numpy as np

from data.checks.episode import Episode, changes, runs, sensed, units_of
from data.checks.finding import Finding, deletion, in_episodes, viewing, warning
from data.checks.scales import Scales
from data.types import Contract
from data.wording import counted

LARGEST_LAG = 0.3  # s, and 5..15 steps
WINDOW = 64  # steps that one correlation is taken over, ...
LEAST_WINDOW = 20  # ... in short episodes at least so many
CORRELATION = 0.15  # from which on there is something to correlate
GAIN = 0.03  # of the correlation by the lag
SURE = 6.0  # standard errors by which the gain exceeds zero
FEWEST = 5  # windows
FROZEN = 10  # steps of usual size that the state moves while the picture does not change


class Pictures:
    """S023 pictures that lag behind the state, S024 frozen or blank ones."""

    def __init__(self, path: Path | str, contract: Contract, scales: Scales):
        self._path, self._contract, self._scales = path, contract, scales
        self._names = sensed(contract)
        self._cameras = [n for n, f in contract.observation.items() if f.is_image]
        self._n_lags = int(np.clip(round(LARGEST_LAG / contract.control_dt), 5, 15))
        self._sums = {name: _Sums(self._n_lags, self._n_elements()) for name in self._cameras}
        self._frozen: dict[str, list[int]] = {name: [] for name in self._cameras}
        self._moved: dict[str, list[int]] = {name: [] for name in self._cameras}
        self._unmoved: dict[str, list[int]] = {name: [] for name in self._cameras}

    def _n_elements(self) -> int:
        return sum(self._contract.fields[name].size for name in self._names) + 1

    def see(self, episode: Episode) -> None:
        """Look at one more episode."""
        if episode.length < 3:
            return
        speeds = self._speeds(episode)
        for name, motion in episode.motion.items():
            self._see_frozen(episode.index, name, motion[1:], speeds[:, -1])
            for first, stop in _windows(len(motion) - 1, WINDOW + 2 * self._n_lags):
                self._sums[name].add(np.sqrt(motion[1 + first : 1 + stop]), speeds[first:stop])

    def _speeds(self, episode: Episode) -> np.ndarray:
        """[L - 1, E] root of each element's share of its range per step; the last one is of all."""
        parts = [np.zeros((episode.length - 1, 0))]
        for name in self._names:
            meaning, scale = self._contract.fields[name], self._scales.of[name]
            width = np.where(scale.range > 0, scale.range, np.inf)
            share = abs(changes(episode.fields[name], meaning)) / width
            is_rate = np.array([unit.endswith("/s") for unit in units_of(meaning)], bool)
            share[:, is_rate] = 0  # A change of speed is not a movement.
            parts.append(share)
        speeds = np.concatenate(parts, axis=1)
        return np.sqrt(np.concatenate([speeds, speeds.sum(axis=1, keepdims=True)], axis=1))

    def _see_frozen(self, index: int, name: str, motion: np.ndarray, speed: np.ndarray) -> None:
        (self._moved if motion.any() else self._unmoved)[name].append(index)
        moving = speed[speed > 0]
        if not len(moving):
            return
        is_moving = speed > np.median(moving) / 2
        for start, stop in runs(motion == 0):
            if is_moving[start:stop].sum() >= FROZEN:
                self._frozen[name].append(index)
                return

    def findings(self) -> list[Finding]:
        """What the pictures came to."""
        found = []
        for name in self._cameras:
            if not self._moved[name] and self._unmoved[name]:
                message = f"{name}: the picture never changes, in any episode"
                found.append(warning("S024", message, "check the camera, or leave the field out"))
                continue
            if episodes := self._frozen[name]:
                message = (
                    f"{name}: the picture stands still while the state moves for {FROZEN} steps "
                    f"or more {in_episodes(episodes)}"
                )
                fix = f"look: {viewing(self._path, episodes[0])}; leave out: "
                fix += deletion(self._path, episodes)
                found.append(warning("S024", message, fix, episodes))
            found += self._lag(name)
        return found

    def _lag(self, name: str) -> list[Finding]:
        best = self._sums[name].best()
        if best is None:
            return []
        lag, correlation, at_zero, share = best
        late, early = (name, "the state") if lag > 0 else ("the state", name)
        steps = counted(abs(lag), "step")
        message = (
            f"{late} lags {steps} ({abs(lag) * self._contract.control_dt:.3g} s) behind {early}: "
            f"their changes correlate by {correlation:.2f} then, by {at_zero:.2f} as stored; "
            f"confidence: better in {share:.0%} of {self._sums[name].n_windows} windows"
        )
        fix = "correct the delay where both are recorded, or shift one of them when importing"
        return [warning("S023", message, fix)]


def _windows(n: int, size: int) -> list[tuple[int, int]]:
    """Stretches of `size` steps or a little more that cover n steps; one where there are fewer."""
    n_windows = max(1, n // size)
    edges = np.linspace(0, n, n_windows + 1).astype(int)
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


class _Sums:
    """Correlations of a picture's changes with the state's, summed over windows.

    Args:
        n_lags: K, largest lag.
        n_elements: E.
    """

    def __init__(self, n_lags: int, n_elements: int):
        self._k, self.n_windows = n_lags, 0
        self._n = np.zeros(n_elements)
        shape = (2 * n_lags + 1, n_elements)
        self._correlation, self._gain, self._square = (np.zeros(shape) for _ in range(3))
        self._better = np.zeros(shape)

    def add(self, motion: np.ndarray, speeds: np.ndarray) -> None:
        """One window: [L] and [L, E]."""
        k, n = self._k, len(motion)
        if n < LEAST_WINDOW + 2 * k:
            return
        changing = motion[k : n - k]
        if changing.std() < 1e-9 * max(1.0, changing.max()):
            return
        # Lag l > 0: what the picture shows now, the state did l steps before.
        found = np.stack(
            [_correlate(changing, speeds[k - lag : n - k - lag]) for lag in range(-k, k + 1)]
        )
        is_there = np.isfinite(found).all(axis=0)
        gain = np.where(is_there, found - found[k], 0)
        self.n_windows += 1
        self._n += is_there
        self._correlation += np.where(is_there, found, 0)
        self._gain += gain
        self._square += gain**2
        self._better += gain > 0

    def best(self) -> tuple[int, float, float, float] | None:
        """Lag, correlation there and at 0, share of windows that agree; None: no lag, or unsure.

        Judged by the element of the state that the picture shows best.
        """
        n = np.maximum(self._n, 1)
        mean = np.where(self._n >= max(FEWEST, self._n.max() / 2), self._correlation / n, -1)
        row, element = np.unravel_index(np.argmax(mean), mean.shape)
        if row == self._k or mean[row, element] < CORRELATION:
            return None
        count = n[element]
        gain = self._gain[row, element] / count
        variance = max(self._square[row, element] / count - gain**2, 1e-12)
        if gain < GAIN or gain < SURE * np.sqrt(variance / count):
            return None
        share = self._better[row, element] / count
        return int(row) - self._k, mean[row, element], mean[self._k, element], share


def _correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[E] correlation of [n] with each column of [n, E]; NaN where a column is constant."""
    a, b = a - a.mean(), b - b.mean(axis=0)
    size = np.sqrt((a**2).sum() * (b**2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size > 1e-12, a @ b / size, np.nan)
