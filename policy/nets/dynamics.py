"""How an observation changes in one control tick, by an MLP.

Shape legend: `B` batch, `F` features of an observation, `Da` action size, `n` numbers that change.
"""

import torch
from torch import Tensor, nn

from policy.nets.attention import check_whole


class Dynamics(nn.Module):
    """Change of the observation from one tick to the next; at first, nothing changes.

    The command of the tick before tells what an observation of one step cannot: how fast things
    move.
    """

    def __init__(
        self, *, n_features: int, n_actions: int, n_changes: int, size: int = 256, n_blocks: int = 3
    ):
        """A network.

        Args:
            n_features: F.
            n_actions: Da.
            n_changes: n.
            size: of the layers.
            n_blocks: residual blocks of two layers.

        Raises:
            ValueError: a size is no whole number, or not positive.
        """
        super().__init__()
        check_whole(
            n_features=n_features,
            n_actions=n_actions,
            n_changes=n_changes,
            size=size,
            n_blocks=n_blocks,
        )
        self.first = nn.Linear(n_features + 2 * n_actions, size)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(size), nn.Linear(size, size), nn.SiLU(), nn.Linear(size, size)
            )
            for _ in range(n_blocks)
        )
        self.out = nn.Linear(size, n_changes)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, before: Tensor, action: Tensor) -> Tensor:
        """Changes [B, n] of features [B, F], by an action [B, Da] after the one before [B, Da]."""
        h = self.first(torch.cat([features, before, action], dim=-1))
        for block in self.blocks:
            h = h + block(h)
        return self.out(h)
