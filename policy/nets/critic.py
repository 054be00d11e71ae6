"""The value of an observation, by a residual MLP.

Source: Ren et al. 2024, DPPO, arXiv:2409.00588, section 4.3: the critic sees the observation alone
and not the noisy action.

Differences from the paper: normalised before each block, SiLU in place of Mish; the last layer
starts at zero, so that at first an advantage is what the rewards say.

Shape legend: `B` batch, `F` features of an observation.
"""

from torch import Tensor, nn

from policy.nets.attention import check_whole


class Critic(nn.Module):
    """Expected discounted reward from an observation on."""

    def __init__(self, *, n_features: int, size: int = 256, n_blocks: int = 2):
        """A critic.

        Args:
            n_features: F.
            size: of the layers.
            n_blocks: residual blocks of two layers.

        Raises:
            ValueError: a size is no whole number, or not positive.
        """
        super().__init__()
        check_whole(n_features=n_features, size=size, n_blocks=n_blocks)
        self.first = nn.Linear(n_features, size)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(size), nn.Linear(size, size), nn.SiLU(), nn.Linear(size, size)
            )
            for _ in range(n_blocks)
        )
        self.norm = nn.LayerNorm(size)
        self.out = nn.Linear(size, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Values [B] of features [B, F]."""
        h = self.first(features)
        for block in self.blocks:
            h = h + block(h)
        return self.out(self.norm(h))[..., 0]
