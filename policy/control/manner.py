"""How the control loop deals with a policy that takes time."""

from dataclasses import dataclass
from typing import Literal, get_args

from policy.control.seam import Seam, switch

# Until the next chunk comes, later than reckoned: stand still at the last action's place, slow down
# to rest, or execute what is left of the plan and then slow down.
Starvation = Literal["hold", "decelerate", "finish"]


@dataclass(frozen=True)
class Manner:
    """How the loop deals with a policy's delay.

    Args:
        seam: mixes a new chunk with what is left of the last one.
        starvation: what is done while a chunk is later than reckoned.
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
    patience: float = 0.0
    start_timeout: float = 60.0
    urgent_after: int | None = 3
    max_missed: int = 100

    def __post_init__(self):
        if self.starvation not in get_args(Starvation):
            choices = ", ".join(get_args(Starvation))
            raise ValueError(f"starvation is {self.starvation!r}, choose one of {choices}")
        if not 0 <= self.patience < 1:
            raise ValueError(
                f"patience is {self.patience} ticks, it must be at least 0 and less than 1"
            )
        if self.max_missed < 0 or (self.urgent_after is not None and self.urgent_after < 1):
            raise ValueError(
                f"urgent_after is {self.urgent_after} and max_missed {self.max_missed}: give "
                f"urgent_after >= 1 or null, and max_missed >= 0"
            )
