"""How many control ticks pass until a chunk is there, counted and never timed.

The delay of a chunk is the number of ticks from its observation to the first tick that could
execute it. What the last chunk says of so many ticks is executed anyway, so the next one is asked
for with them decided.

Source: Black et al. 2025, RTC, arXiv:2506.07339, algorithm 1: the most of the last delays.

Differences from the paper: the first chunks of a process (compilation, caches) are not counted.
"""

from collections import deque


class DelayEstimate:
    """The longest of the last delays, in ticks.

    Args:
        window: delays that are remembered.
        n_warm_up: first chunks that are not counted.
        margin: ticks added to it.
        fixed: an estimate that nothing changes; None: by what is seen.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self, *, window: int = 10, n_warm_up: int = 1, margin: int = 0, fixed: int | None = None
    ):
        least = {"window": 1, "n_warm_up": 0, "margin": 0, "fixed": 0}
        given = {"window": window, "n_warm_up": n_warm_up, "margin": margin, "fixed": fixed}
        for name, value in given.items():
            is_none = value is None and name == "fixed"
            if not is_none and (type(value) is not int or value < least[name]):
                raise ValueError(
                    f"seam.delay.{name} is {value}, it must be a whole number of at least "
                    f"{least[name]}"
                )
        self._seen: deque[int] = deque(maxlen=window)
        self._n_left, self._margin, self._fixed = n_warm_up, margin, fixed

    def add(self, n_ticks: int) -> None:
        """A chunk came `n_ticks` after its observation."""
        if self._n_left > 0:
            self._n_left -= 1
        else:
            self._seen.append(n_ticks)

    @property
    def ticks(self) -> int:
        """Ticks to reckon with; 0 before anything was seen."""
        if self._fixed is not None:
            return self._fixed
        return max(self._seen, default=-self._margin) + self._margin
