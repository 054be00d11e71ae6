"""How long to train, and the learning rate along the way."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """The end of a training run: after so many steps or minutes, whichever comes first.

    Args:
        steps: optimiser steps, or None.
        minutes: of training, over all resumed parts, or None.

    Raises:
        ValueError: neither is given, or one is not positive.
    """

    steps: int | None
    minutes: float | None

    def __post_init__(self):
        if self.steps is None and self.minutes is None:
            raise ValueError("give steps=... or minutes=...")
        for name in ("steps", "minutes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}, it must be positive")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget that is spent, 1 at the end.

        Args:
            step: optimiser steps done.
            seconds: of training done.
        """
        by_steps = 0.0 if self.steps is None else step / self.steps
        by_time = 0.0 if self.minutes is None else seconds / (60 * self.minutes)
        return max(by_steps, by_time)


def learning_rate_scale(
    step: int, progress: float, *, warmup_steps: int, end: float = 0.0
) -> float:
    """Factor of the learning rate: linear warm-up times a cosine over the budget.

    Args:
        step: optimiser steps, or updates, done; below 0 the rate is 0.
        progress: share of the budget that is spent, in [0, 1].
        warmup_steps: steps until the full rate.
        end: what the cosine falls to from 1.
    """
    warmup = min(1.0, max(0, step + 1) / max(1, warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return warmup * (end + (1 - end) * cosine)
