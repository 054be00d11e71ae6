"""How the control loop deals with a policy that takes time."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from policy.control.seam import Seam, switch

# While a chunk is later than reckoned: decelerate within the governor's limits, or at once where
# there are none, and hold; or execute what is left of the plan, and then do that.
Starvation = Literal["hold", "finish"]


@dataclass(frozen=True)
class Manner:
    """How the loop deals with a policy's delay.

    Args:
        seam: mixes a new chunk with what is left of the last one.
        starvation: what is done while a chunk is later than reckoned, "hold" or "finish".
        is_synchronous: whether a chunk is executed from its first action on, whenever it comes:
            right only where the robot held until then.
        patience: how long a tick waits for a reply before it commands [ticks]; 0: not at all.
        start_timeout: how long the first chunk may take [s].
        urgent_after: chunks later than reckoned in a row, after which the policy is asked to hurry
            until one is in time; None: never.
        max_missed: control ticks in a row that may be missed; one more ends the episode.

    Raises:
        ValueError: a setting is out of range.
    """

    seam: Seam = switch
    starvation: Starvation = "finish"
    is_synchronous: bool = False
    patience: float = 0.0
    start_timeout: float = 60.0
    urgent_after: int | None = 3
    max_missed: int = 100

    def __post_init__(self):
        if self.starvation not in get_args(Starvation):
            choices = ", ".join(get_args(Starvation))
            raise ValueError(f"starvation is {self.starvation!r}, choose one of {choices}")
        if self.is_synchronous and self.starvation != "hold":
            raise ValueError(
                f"is_synchronous is true and starvation {self.starvation!r}: a robot that does not "
                f"hold until a chunk is there would be moved back; give starvation=hold"
            )
        self._check("patience", self.patience, 0 <= number(self.patience) < 1, "0 to below 1")
        timeout = number(self.start_timeout)
        self._check("start_timeout", self.start_timeout, 0 < timeout < math.inf, "above 0")
        self._check("max_missed", self.max_missed, number(self.max_missed) >= 0, "at least 0")
        is_right = self.urgent_after is None or number(self.urgent_after) >= 1
        self._check("urgent_after", self.urgent_after, is_right, "at least 1, or null")

    @staticmethod
    def _check(name: str, value: object, is_right: bool, limits: str) -> None:
        if not is_right:
            raise ValueError(f"seam.manner.{name} is {value}, it must be {limits}")


def number(value: object) -> float:
    """A number, or NaN, which is out of every range, for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value)
