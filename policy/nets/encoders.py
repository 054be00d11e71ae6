"""Encoders: from the normalised observations of To steps to one condition vector.

Shape legend: `B` batch, `To` observed steps, `F` features of a field, `C` condition size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class StateEncoder(nn.Module):
    """Low-dimensional fields of all steps side by side, optionally through an MLP.

    Without an MLP this is the state-based condition of Diffusion Policy (Chi et al. 2023).
    """

    def __init__(
        self, *, feature_sizes: Mapping[str, int], obs_horizon: int, hidden: int | None = None
    ):
        """An encoder.

        Args:
            feature_sizes: field name -> F; the order of the names is the order of the features.
            obs_horizon: To.
            hidden: size of the two layers of an MLP, which is then also C; None for no MLP.

        Raises:
            ValueError: there is no field, or `hidden` is not positive.
        """
        super().__init__()
        if not feature_sizes:
            raise ValueError("feature_sizes is empty: an encoder needs at least one field")
        if hidden is not None and hidden < 1:
            raise ValueError(f"hidden is {hidden}, give at least 1, or null for no MLP")
        self.names = tuple(feature_sizes)
        size = obs_horizon * sum(feature_sizes.values())
        self.cond_size = size if hidden is None else hidden
        self.mlp = (
            nn.Identity()
            if hidden is None
            else nn.Sequential(nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        )

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Condition [B, C] from field name -> [B, To, F]."""
        return self.mlp(torch.cat([features[name] for name in self.names], dim=-1).flatten(1))
