"""Episodes that are very short, or of another length than the others of their task."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from data.checks.episode import Episode
from data.checks.finding import Finding, deletion, in_episodes, some, viewing, warning
from data.wording import agree, counted

SHORT = 8  # steps; fewer than what a policy usually executes between two plans
FEWEST = 10  # Episodes of a task, below which no length is unusual.
FACTOR = 3.0  # times shorter or longer than usual, at least
SPREADS = 5.0  # of the logarithms of the lengths, at least


class Lengths:
    """S008 very short episodes, S013 lengths unlike those of the task's other episodes."""

    def __init__(self, path: Path | str):
        self._path = path
        self._lengths: dict[int, int] = {}
        self._tasks: defaultdict[str, list[int]] = defaultdict(list)

    def see(self, episode: Episode) -> None:
        """Look at one more episode."""
        self._lengths[episode.index] = episode.length
        self._tasks[str(episode.metadata.get("task", ""))].append(episode.index)

    def findings(self) -> list[Finding]:
        """What the lengths came to."""
        return [*self._short(), *self._unusual()]

    def _short(self) -> list[Finding]:
        short = [index for index, length in self._lengths.items() if length < SHORT]
        if not short:
            return []
        message = (
            f"{len(short)} of {counted(len(self._lengths), 'episode')} "
            f"{agree(len(short), 'has', 'have')} fewer than {SHORT} steps: "
            f"{some(short)}"
        )
        fix = "an episode shorter than horizons.action is left out of training; to be rid of it: "
        return [warning("S008", message, fix + deletion(self._path, short), short)]

    def _unusual(self) -> list[Finding]:
        found = []
        for task, episodes in self._tasks.items():
            if len(episodes) < FEWEST:
                continue
            lengths = np.array([self._lengths[index] for index in episodes])
            logs = np.log(lengths)
            middle = np.median(logs)
            spread = 1.4826 * np.median(abs(logs - middle))
            is_odd = abs(logs - middle) > max(np.log(FACTOR), SPREADS * spread)
            odd = [index for index, odd in zip(episodes, is_odd, strict=True) if odd]
            if odd:
                of_task = f" of {task!r}" if len(self._tasks) > 1 else ""
                message = (
                    f"{len(odd)} of {len(episodes)} episodes{of_task} "
                    f"{agree(len(odd), 'has', 'have')} {lengths[is_odd].min()}"
                    f"..{lengths[is_odd].max()} steps, usual are {np.exp(middle):.0f} "
                    f"{in_episodes(odd)}"
                )
                fix = f"look: {viewing(self._path, odd[0])}; leave out: "
                found.append(warning("S013", message, fix + deletion(self._path, odd), odd))
        return found
