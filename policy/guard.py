"""What keeps fine-tuning from ending worse than it began: the best is kept, collapses undone."""

import math
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What is to be done after an evaluation."""

    BEST = "best"  # keep these weights
    GO_ON = "go on"
    ROLL_BACK = "roll back"  # to the best, with a lower learning rate
    GIVE_UP = "give up"  # at the best


@dataclass
class Guard:
    """Judges a fine-tuning run by its evaluations.

    Args:
        max_drop: what is measured below the best by so much is a collapse; of a success rate
            itself, of a return as a share of the best one.
        max_rollbacks: collapses that are undone; the next one ends the run.
        rate_factor: of the learning rate, at each of them.
        best: highest measure so far.
        n_rollbacks: collapses so far.

    Raises:
        ValueError: a setting is out of range.
    """

    max_drop: float = 0.25
    max_rollbacks: int = 2
    rate_factor: float = 0.3
    best: float = -math.inf
    n_rollbacks: int = 0

    def __post_init__(self):
        if not 0 < self.max_drop <= 1:
            raise ValueError(f"guard.max_drop is {self.max_drop}, it must be in 0..1")
        if not 0 < self.rate_factor <= 1:
            raise ValueError(f"guard.rate_factor is {self.rate_factor}, it must be in 0..1")
        if self.max_rollbacks < 0:
            raise ValueError(f"guard.max_rollbacks is {self.max_rollbacks}, it must be at least 0")

    @property
    def rate_scale(self) -> float:
        """Factor of the learning rate after the collapses so far."""
        return self.rate_factor**self.n_rollbacks

    @property
    def has_given_up(self) -> bool:
        """Whether there were more collapses than are undone."""
        return self.n_rollbacks > self.max_rollbacks

    def judge(self, measured: float, *, is_rate: bool = True) -> Verdict:
        """The verdict on an evaluation; a tie keeps the earlier weights.

        Args:
            measured: success rate, or return.
            is_rate: which of the two.
        """
        if measured > self.best:
            self.best = measured
            return Verdict.BEST
        unit = 1.0 if is_rate else abs(self.best)
        return self.collapse() if measured < self.best - self.max_drop * unit else Verdict.GO_ON

    def collapse(self) -> Verdict:
        """The verdict on a collapse, or on numbers that are none."""
        self.n_rollbacks += 1
        return Verdict.GIVE_UP if self.has_given_up else Verdict.ROLL_BACK
