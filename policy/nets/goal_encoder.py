"""An encoder for goals: the condition is that of the other fields, and the goal beside it.

In training the goal is dropped in a share of the samples and a learned vector stands in its place,
so that one network knows what is done for a goal and what is done anyway (classifier-free
guidance, `policy.guidance.cfg`).

Source: Reuss et al. 2023, BESO, arXiv:2304.02532, section III-C; Ho and Salimans 2022,
arXiv:2207.12598.

Differences from the published code of BESO: the goal is dropped as a whole. There each element is
set to zero on its own, so that the empty goal which guidance needs is never seen in training.

Shape legend: `B` batch, `To` observed steps, `F` features of a field, `G` size of the embedding,
`C` condition size.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


class GoalEncoder(nn.Module):
    """Another encoder's condition, and an embedding of the goal: [observation | goal]."""

    def __init__(
        self,
        *,
        feature_shapes: Mapping[str, tuple[int, ...]],
        obs_horizon: int,
        base: Callable[..., nn.Module],
        goals: Sequence[str],
        size: int,
        dropout: float,
    ):
        """An encoder.

        Args:
            feature_shapes: field name -> shape of one step; those of the goals are (F,).
            obs_horizon: To.
            base: makes the encoder of the other fields, as this one is made.
            goals: names of the fields that make the goal; their last step is looked at.
            size: G, of the embedding and of the layer before it.
            dropout: share of the samples that train without a goal.

        Raises:
            ValueError: a goal is no field, or an image; nothing but goals; a number out of range.
        """
        super().__init__()
        if isinstance(goals, str):
            raise ValueError(
                f"encoder.goals is {goals!r}, it must be a list: encoder.goals=[{goals}]"
            )
        unknown = [name for name in goals if name not in feature_shapes]
        if unknown or not goals:
            raise ValueError(
                f"encoder.goals is {list(goals)}, the fields are {sorted(feature_shapes)}: name "
                f"some of these, or make goals of the demonstrations as experiment/play.yaml does"
            )
        images = [name for name in goals if len(feature_shapes[name]) != 1]
        if images:
            vectors = [name for name, shape in feature_shapes.items() if len(shape) == 1]
            raise ValueError(
                f"the goals {images} are images, this encoder takes vectors only: set "
                f"encoder.goals to some of {vectors}, or make goals of one of these as "
                f"experiment/play.yaml does"
            )
        if size < 1:
            raise ValueError(f"size is {size}, it must be at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}, it must be in [0, 1)")
        others = {name: shape for name, shape in feature_shapes.items() if name not in goals}
        self.goals, self.dropout = tuple(goals), dropout
        self.base = base(feature_shapes=others, obs_horizon=obs_horizon)
        n_features = sum(feature_shapes[name][0] for name in goals)
        self.mlp = nn.Sequential(nn.Linear(n_features, size), nn.SiLU(), nn.Linear(size, size))
        self.no_goal = nn.Parameter(torch.zeros(size))
        base_size = self.base.cond_size
        assert isinstance(base_size, int)
        self.cond_size = base_size + size

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Condition [B, C] from field name -> [B, To, F]; in training some goals are dropped.

        Which ones is drawn from torch's global generator, as all layers do it in training.
        """
        goal = self.mlp(torch.cat([features[name][:, -1] for name in self.goals], dim=-1))
        if self.training and self.dropout > 0:
            is_dropped = torch.rand(len(goal), 1, device=goal.device) < self.dropout
            goal = torch.where(is_dropped, self.no_goal.to(goal.dtype), goal)
        return torch.cat([self.base(features), goal], dim=-1)

    def without_goal(self, cond: Tensor) -> Tensor:
        """The condition [B, C] of the same observations without their goals.

        Args:
            cond: [B, C] of `forward`.
        """
        observed = cond[:, : -len(self.no_goal)]
        return torch.cat([observed, self.no_goal.to(cond.dtype).expand(len(cond), -1)], dim=-1)
