"""Stretches in which nothing moves: neither what is sensed nor the action."""

from pathlib import Path

import numpy as np

from data.checks.episode import Episode, changes, runs, sensed
from data.checks.finding import Finding, in_episodes, viewing, warning
from data.checks.scales import Scales
from data.types import Contract
from data.wording import agree

STILL = 1e-3  # of an element's range from one step to the next
SHORTEST = 2.0  # s, and at least ten steps
SHARE = 0.02  # of all steps that may be idle ...
LONGEST = 5.0  # s ... in stretches of at most so long


class Idle:
    """S025 idle stretches, which teach a policy to stand still."""

    def __init__(self, path: Path | str, contract: Contract, scales: Scales):
        self._path, self._contract, self._scales = path, contract, scales
        self._names = [*sensed(contract), "action"]
        self._least = max(10, round(SHORTEST / contract.control_dt))
        self._n_steps = 0
        self._stretches: list[tuple[int, int, int]] = []  # steps, episode, start

    def see(self, episode: Episode) -> None:
        """Look at one more episode."""
        self._n_steps += episode.length
        is_still = np.ones(max(episode.length - 1, 0), bool)
        for name in self._names:
            limit = STILL * self._scales.of[name].range
            steps = changes(episode.fields[name], self._contract.fields[name])
            is_still &= (abs(steps) <= limit).all(axis=1)
        for start, stop in runs(is_still):
            if stop - start >= self._least:
                self._stretches.append((stop - start, episode.index, start))

    def findings(self) -> list[Finding]:
        """What was idle."""
        if not self._stretches:
            return []
        n_idle = sum(steps for steps, _, _ in self._stretches)
        longest, where, start = max(self._stretches)
        dt = self._contract.control_dt
        if n_idle <= SHARE * self._n_steps and longest * dt <= LONGEST:
            return []
        episodes = [episode for _, episode, _ in self._stretches]
        n = len(self._stretches)
        message = (
            f"nothing moves in {n} {agree(n, 'stretch', 'stretches')} of {self._least * dt:g} s or "
            f"more, "
            f"{n_idle / self._n_steps:.1%} of all steps; the longest lasts {longest * dt:.3g} s "
            f"from step {start} of episode {where}; {in_episodes(episodes)}"
        )
        fix = (
            f"a policy learns to stand still there; look: {viewing(self._path, where)}; "
            f"cut them off and import again"
        )
        return [warning("S025", message, fix, episodes)]
