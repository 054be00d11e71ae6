"""How training noises a chunk: a mixture of patterns of noise levels, drawn per sample.

One checkpoint then serves every sampler: one level for all actions (sequential sampling), levels
that rise along the chunk (streaming, warm starts), and clean first actions that condition the rest
(a committed plan, inpainting).

Shape legend: `B` batch, `Tp` actions of a chunk.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from policy.diffusion.density import Density
from policy.diffusion.density import LogUniform as LogUniform  # Named here by saved runs.


@dataclass(frozen=True)
class Mixture:
    """Noise levels [B, Tp] of a batch of chunks.

    Args:
        density: of the levels.
        constant: share of samples with one level for all actions.
        ladder: share of samples whose level rises along the chunk, linearly in the quantile of
            `density`. The middle of the chunk has that density, and the rise is random too.
        prefix: share of samples with clean first actions and one level for the others.
        max_rise: largest rise of a ladder over the chunk; 1 is the whole range of levels, and what
            exceeds the range is held at its ends.
        max_prefix: most clean actions, Tp - 1 if the chunk is too short for that.
        n_past: actions at the chunk's begin that lie before now.
        past_known: share of samples, of every pattern, whose past actions are clean: facts.

    Raises:
        ValueError: the shares are not a distribution, or a limit is out of range.
    """

    density: Density
    constant: float
    ladder: float
    prefix: float
    max_rise: float
    max_prefix: int
    n_past: int = 0
    past_known: float = 0.0

    def __post_init__(self):
        shares = (self.constant, self.ladder, self.prefix)
        if min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise ValueError(
                f"constant, ladder and prefix are {shares}: give shares >= 0 that add up to 1"
            )
        if self.max_rise <= 0:
            raise ValueError(f"max_rise is {self.max_rise}, it must be positive")
        if self.n_past < 0:
            raise ValueError(f"n_past is {self.n_past}, it must be at least 0")
        if not 0 <= self.past_known <= 1:
            raise ValueError(f"past_known is {self.past_known}, it must be in 0..1")
        if self.max_prefix < 1:
            raise ValueError(f"max_prefix is {self.max_prefix}, it must be at least 1")

    def __call__(self, batch: int, pred_horizon: int, generator: torch.Generator) -> Tensor:
        """Levels sigma [batch, pred_horizon] >= 0 on the generator's device.

        Raises:
            ValueError: all actions of such a chunk lie in the past.
        """
        if self.n_past >= pred_horizon:
            raise ValueError(f"n_past is {self.n_past}, a chunk has {pred_horizon} actions")
        device = generator.device
        draws = torch.rand(4, batch, 1, generator=generator, device=device)
        pattern, level, rise, length = draws
        position = torch.linspace(-0.5, 0.5, pred_horizon, device=device)
        index = torch.arange(pred_horizon, device=device)
        is_ladder = (self.constant <= pattern) & (pattern < self.constant + self.ladder)
        is_prefix = pattern >= self.constant + self.ladder
        u = level + torch.where(is_ladder, self.max_rise * rise * position, 0.0)
        most = min(self.max_prefix, pred_horizon - 1)
        n_clean = (1 + (length * most).long()).clamp(max=most)
        is_clean = is_prefix & (index < n_clean)
        if self.n_past > 0:
            knowing = torch.rand(batch, 1, generator=generator, device=device)
            is_clean = is_clean | ((knowing < self.past_known) & (index < self.n_past))
        return torch.where(is_clean, 0.0, self.density(u.clamp(0, 1)))
