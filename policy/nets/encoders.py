"""Encoders: from the normalised observations of To steps to one condition vector.

An encoder is built with `feature_shapes=` (field name -> shape of one step) and `obs_horizon=`, has
a `cond_size` C, and maps field name -> [B, To, *shape] to the condition [B, C].

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
        self,
        *,
        feature_shapes: Mapping[str, tuple[int, ...]],
        obs_horizon: int,
        hidden: int | None = None,
    ):
        """An encoder.

        Args:
            feature_shapes: field name -> (F,); the order of the names is that of the features.
            obs_horizon: To.
            hidden: size of the two layers of an MLP, which is then also C; None for no MLP.

        Raises:
            ValueError: there is no field, or one is an image, or `hidden` is not positive.
        """
        super().__init__()
        if not feature_shapes:
            raise ValueError("feature_shapes is empty: an encoder needs at least one field")
        images = [name for name, shape in feature_shapes.items() if len(shape) != 1]
        if images:
            raise ValueError(
                f"the fields {images} are images, which this encoder does not take: use one that "
                f"does (encoder=small_cnn), or give the store a contract without them"
            )
        if hidden is not None and hidden < 1:
            raise ValueError(f"hidden is {hidden}, give at least 1, or null for no MLP")
        self.names = tuple(feature_shapes)
        size = obs_horizon * sum(shape[0] for shape in feature_shapes.values())
        self.cond_size = size if hidden is None else hidden
        self.mlp = (
            nn.Identity()
            if hidden is None
            else nn.Sequential(nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        )

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Condition [B, C] from field name -> [B, To, F]."""
        return self.mlp(torch.cat([features[name] for name in self.names], dim=-1).flatten(1))
