"""Which channels of a token serve its noise level: a window that slides over the levels.

Levels close to each other share most of the channels, those far apart fewer, without a weight more.

Source: Park et al. 2024, Denoising Task Routing, arXiv:2310.07138, and its published code.

Differences from the paper:

1. The level is that of a token, so that in one chunk the windows of actions may differ. Tokens of
   the condition have no level, and all their channels serve.
2. A block neither sees nor changes the channels outside of the window. In the published code it
   does not see them, but adds what it computes to all of them; the windows being the same in all
   blocks, these channels reach the last layer here as they were embedded.
3. The window moves with `position ** power`, where the position is that of `c_noise` between two
   limits, with EDM the logarithm of sigma, and the power 1 by default. In the paper the position is
   that of the time step, and the power 4.

Shape legend: `B` batch, `Tp` actions of a chunk, `D` channels of a token.
"""

import torch
from torch import Tensor, nn

from policy.nets.level_range import LevelRange


class ChannelMask(nn.Module):
    """A window of channels for each noise level; without weights."""

    def __init__(
        self,
        *,
        size: int,
        active: float = 0.8,
        power: float = 1.0,
        lowest: float = -46.0,
        highest: float = 30.0,
    ):
        """A mask.

        Args:
            size: D.
            active: share of the channels that a window holds.
            power: above 1 the window moves more at high levels, below 1 at low ones.
            lowest: level of the first window, in units of c_noise.
            highest: level of the last one.

        Raises:
            ValueError: a number is out of range, or a window would be empty.
        """
        super().__init__()
        is_share = isinstance(active, int | float) and 0 < active <= 1
        if not is_share or round(active * size) < 1:
            raise ValueError(
                f"active is {active!r}, it must be a share of the {size} channels: give a number "
                f"from {1 / size:g} to 1"
            )
        if not (isinstance(power, int | float) and 0 < power < float("inf")):
            raise ValueError(f"power is {power!r}, it must be a number above 0")
        self.size, self.n_active, self.power = size, round(active * size), power
        self.levels = LevelRange(lowest, highest)

    def forward(self, c_noise: Tensor) -> Tensor:
        """Whether a channel serves, bool [B, Tp, D], at levels [B, Tp]."""
        travelled = self.levels.position(c_noise) ** self.power
        start = (travelled * (self.size - self.n_active)).round()[..., None]
        channel = torch.arange(self.size, device=c_noise.device)
        return (channel >= start) & (channel < start + self.n_active)

    def check_levels(self, lowest: float, highest: float) -> None:
        """Raise ValueError unless the window moves over the levels that are trained.

        Args:
            lowest: of the trained ones, in units of c_noise.
            highest: of them.
        """
        self.levels.check(lowest, highest, option="net.channel_mask")
