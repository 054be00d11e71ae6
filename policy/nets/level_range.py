"""The range of noise levels over which a window of experts or of channels slides.

Shape legend: `[...]` any shape.
"""

from dataclasses import dataclass

from torch import Tensor

SLACK = 0.1  # share of the trained range by which the limits may miss its ends


@dataclass(frozen=True)
class LevelRange:
    """Levels from lowest to highest, in units of c_noise.

    Args:
        lowest: level at which a window begins to move.
        highest: level at which it ends.

    Raises:
        ValueError: they are not in order.
    """

    lowest: float
    highest: float

    def __post_init__(self):
        if not self.lowest < self.highest:
            raise ValueError(
                f"lowest is {self.lowest} and highest is {self.highest}: give lowest < highest"
            )

    def position(self, c_noise: Tensor) -> Tensor:
        """Where levels [...] lie between the lowest, 0, and the highest, 1; [...] in 0..1."""
        return ((c_noise - self.lowest) / (self.highest - self.lowest)).clamp(0, 1)

    def check(self, lowest: float, highest: float, *, option: str) -> None:
        """Raise ValueError unless the range is about that of the levels that are trained.

        Args:
            lowest: of the trained ones, in units of c_noise.
            highest: of them.
            option: name of the setting that holds the range, for the message.
        """
        slack = SLACK * (highest - lowest)
        if abs(self.lowest - lowest) > slack or abs(self.highest - highest) > slack:
            raise ValueError(
                f"the window of {option} moves from {self.lowest:g} to {self.highest:g}, but "
                f"levels from {lowest:.0f} to {highest:.0f} are trained: set "
                f"{option}.lowest={lowest:.0f} and {option}.highest={highest:.0f}"
            )
