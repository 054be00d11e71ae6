"""Actions and positions that jump between two steps.

A change counts as a jump where it is ten times what is usual, in the episode itself and in the
others, and a good part of the element's range as well. There and back again is a fault wherever it
occurs. There for good may be what the task asks for, a gripper that closes, so it counts only where
few episodes of the task do it. Changes by a whole turn are told apart: an angle that goes from pi
to -pi has not jumped, but a network that is not told it is an angle sees it jump.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.checks.episode import Episode, changes, sensed, units_of
from data.checks.finding import Finding, deletion, in_episodes, some, viewing, warning
from data.checks.scales import Scales
from data.types import Contract
from data.wording import agree, counted

TIMES = 10.0  # the change that 90 % of the steps stay below
SHARE = 0.25  # of the element's range
BACK = 0.5  # of the jump; what is nearer than that after the next step has come back
FEW = 0.1  # share of a task's episodes that may jump for good and still be faults
FEWEST = 5  # episodes of a task, below which nothing is known of what is usual
TURN = 0.1  # of a whole turn that a change may differ from it and be one
WHOLE = {"rad": 2 * np.pi, "deg": 360.0}  # turn
PLACES = ("m", "mm", "px", "rad", "deg")  # what cannot jump, if it is sensed


@dataclass(frozen=True)
class Jumping:
    """An element that jumps in an episode.

    Args:
        size: of the farthest jump.
        episode: number of the episode.
        step: that the farthest jump leads to.
        n: jumps of that kind in the episode.
        element: of the field.
        task: of the episode.
        returns: whether it comes back at once.
    """

    size: float
    episode: int
    step: int
    n: int
    element: int
    task: str
    returns: bool


class Jumps:
    """S019 jumps, S028 angles that wrap round without being told to be angles."""

    def __init__(self, path: Path | str, contract: Contract, scales: Scales):
        self._path, self._contract, self._scales = path, contract, scales
        self._names = [*sensed(contract), "action"]
        self._tasks: Counter[str] = Counter()
        self._jumping: defaultdict[str, list[Jumping]] = defaultdict(list)
        self._wraps: defaultdict[str, set[int]] = defaultdict(set)
        self._wrapping: defaultdict[str, list[int]] = defaultdict(list)
        self._may_jump = {name: self._candidates(name) for name in self._names}

    def _candidates(self, name: str) -> np.ndarray:
        """[D] bool, the elements whose jumps mean something."""
        meaning = self._contract.fields[name]
        may = self._scales.of[name].is_continuous.copy()
        may[list(meaning.discrete)] = False
        if meaning.rotation:  # Their signs and turns are checked by what they represent.
            may[:] = False
        if name != "action":
            may &= np.array([unit in PLACES for unit in units_of(meaning)], bool)
        return may

    def see(self, episode: Episode) -> None:
        """Look at one more episode."""
        task = str(episode.metadata.get("task", ""))
        self._tasks[task] += 1
        if episode.length < 3:
            return
        for name in self._names:
            steps = changes(episode.fields[name], self._contract.fields[name])
            is_wrap = self._is_wrap(name, abs(steps)) & self._may_jump[name]
            if is_wrap.any():
                self._wraps[name].update(np.flatnonzero(is_wrap.any(axis=0)).tolist())
                self._wrapping[name].append(episode.index)
            is_jump = self._is_jump(name, abs(steps)) & ~is_wrap
            if is_jump.any():
                self._take(name, episode.index, task, steps, is_jump)

    def _is_jump(self, name: str, sizes: np.ndarray) -> np.ndarray:
        scale = self._scales.of[name]
        usual = np.maximum(np.percentile(sizes, 90, axis=0), scale.step)
        return (sizes > TIMES * usual) & (sizes > SHARE * scale.range) & self._may_jump[name]

    def _is_wrap(self, name: str, sizes: np.ndarray) -> np.ndarray:
        units = units_of(self._contract.fields[name])
        turn = np.array([WHOLE.get(unit, np.inf) for unit in units])
        return abs(sizes - turn) < TURN * turn

    def _take(
        self, name: str, index: int, task: str, steps: np.ndarray, is_jump: np.ndarray
    ) -> None:
        there, back = steps[:-1], steps[1:]
        nearer = np.minimum(abs(there), abs(back))
        is_back = is_jump[:-1] & is_jump[1:] & (abs(there + back) < BACK * nearer)
        returns = np.zeros_like(is_jump)
        returns[:-1] |= is_back
        returns[1:] |= is_back
        for element in np.flatnonzero(is_jump.any(axis=0)):
            for kind in (True, False):
                of_kind = is_jump[:, element] & (returns[:, element] == kind)
                if of_kind.any():
                    sizes = np.where(of_kind, abs(steps[:, element]), 0)
                    self._jumping[name].append(
                        Jumping(
                            float(sizes.max()),
                            index,
                            int(np.argmax(sizes)) + 1,
                            int(of_kind.sum()),
                            int(element),
                            task,
                            kind,
                        )
                    )

    def findings(self) -> list[Finding]:
        """What jumped."""
        found = []
        for name, jumping in self._jumping.items():
            faults = [each for each in jumping if each.returns or self._is_rare(each, jumping)]
            if not faults:
                continue
            worst = max(faults, key=lambda each: each.size)
            episodes = [each.episode for each in faults]
            share = worst.size / self._scales.of[name].range[worst.element]
            message = (
                f"{name} jumps between two steps "
                f"{counted(sum(each.n for each in faults), 'time')}; the farthest by "
                f"{worst.size:.3g}, {share:.0%} of the range of element {worst.element}, "
                f"{'and back, ' if worst.returns else ''}at step {worst.step} of episode "
                f"{worst.episode}; {in_episodes(episodes)}"
            )
            fix = f"look: {viewing(self._path, worst.episode)}; leave out: "
            found.append(warning("S019", message, fix + deletion(self._path, episodes), episodes))
        for name, angles in self._wraps.items():
            message = (
                f"{name}: {agree(len(angles), 'angle', 'angles')} {some(sorted(angles))} "
                f"{agree(len(angles), 'wraps', 'wrap')} round by a whole turn "
                f"{in_episodes(self._wrapping[name])}"
            )
            fix = "tell the contract that they are planar angles: angles: [...], or unwrap them"
            found.append(warning("S028", message, fix, self._wrapping[name]))
        return found

    def _is_rare(self, jump: Jumping, jumping: list[Jumping]) -> bool:
        """Whether few episodes of the task jump in that element."""
        n = self._tasks[jump.task]
        alike = {
            each.episode
            for each in jumping
            if (each.element, each.task, each.returns) == (jump.element, jump.task, False)
        }
        return n >= FEWEST and len(alike) <= max(1, FEW * n)
