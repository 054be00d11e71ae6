"""Densities of the noise levels in training, as quantile functions: u in 0..1 -> sigma.

Uniform u gives levels of the density. All are cut to sigma_min..sigma_max, and what lies within
keeps its proportions, so that no level is trained that a sampler would be refused, or the reverse.

Sources: Karras et al. 2022, EDM, arXiv:2206.00364, table 1 (`LogNormal`, not cut there); Reuss et
al. 2023, BESO, arXiv:2304.02532, and 2024, MoDE, arXiv:2412.12953 (`LogLogistic`, cut to
0.001..80 in MoDE).

Shape legend: `...` any shape.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

# Quantile function of the density of levels: u [...] in 0..1 -> sigma [...], increasing.
Density = Callable[[Tensor], Tensor]

# Of a distribution within its range. With less, the quantiles' rounding errors would show.
LEAST_SHARE = 1e-6


@dataclass(frozen=True)
class Range:
    """Lowest and highest level of a density.

    Raises:
        ValueError: not 0 < sigma_min < sigma_max.
    """

    sigma_min: float
    sigma_max: float

    def __post_init__(self):
        _check_range(self.sigma_min, self.sigma_max)


class LogUniform(Range):
    """Levels whose logarithm is uniform."""

    def __call__(self, u: Tensor) -> Tensor:
        """Sigma at quantiles u."""
        return torch.lerp(
            u.new_full((), math.log(self.sigma_min)), u.new_full((), math.log(self.sigma_max)), u
        ).exp()


class Uniform(Range):
    """Levels that are uniform themselves: nearly all of them high, if the range is wide."""

    def __call__(self, u: Tensor) -> Tensor:
        """Sigma at quantiles u."""
        return self.sigma_min + (self.sigma_max - self.sigma_min) * u


@dataclass(frozen=True)
class LogNormal:
    """Levels whose logarithm is normal.

    Args:
        mean: of ln sigma, before the cut.
        std: standard deviation of ln sigma, before the cut.
        sigma_min: lowest level.
        sigma_max: highest level.

    Raises:
        ValueError: `std` is not positive, or the range is impossible or far from the mean.
    """

    mean: float
    std: float
    sigma_min: float
    sigma_max: float

    def __post_init__(self):
        _check_range(self.sigma_min, self.sigma_max)
        if not self.std > 0:
            raise ValueError(f"std is {self.std}, it must be positive")
        _check_share(self._share_below(self.sigma_min), self._share_below(self.sigma_max), self)

    def __call__(self, u: Tensor) -> Tensor:
        """Sigma at quantiles u."""
        low, high = self._share_below(self.sigma_min), self._share_below(self.sigma_max)
        sigma = (self.mean + self.std * torch.special.ndtri(_cut(u, low, high))).exp()
        return sigma.to(u.dtype).clamp(self.sigma_min, self.sigma_max)

    def _share_below(self, sigma: float) -> float:
        return NormalDist(self.mean, self.std).cdf(math.log(sigma))


@dataclass(frozen=True)
class LogLogistic:
    """Levels whose logarithm is logistic: as normal near the median, with heavier tails.

    Args:
        median: of sigma, before the cut; the papers' loc is its logarithm.
        scale: of the logistic distribution of ln sigma; its standard deviation is 1.81 of that.
        sigma_min: lowest level.
        sigma_max: highest level.

    Raises:
        ValueError: `median` or `scale` is not positive, or the range is impossible or far from the
            median.
    """

    median: float
    scale: float
    sigma_min: float
    sigma_max: float

    def __post_init__(self):
        _check_range(self.sigma_min, self.sigma_max)
        if not (self.median > 0 and self.scale > 0):
            raise ValueError(
                f"median is {self.median} and scale {self.scale}: both must be positive"
            )
        _check_share(self._share_below(self.sigma_min), self._share_below(self.sigma_max), self)

    def __call__(self, u: Tensor) -> Tensor:
        """Sigma at quantiles u."""
        low, high = self._share_below(self.sigma_min), self._share_below(self.sigma_max)
        sigma = self.median * (self.scale * torch.logit(_cut(u, low, high))).exp()
        return sigma.to(u.dtype).clamp(self.sigma_min, self.sigma_max)

    def _share_below(self, sigma: float) -> float:
        # The logistic function as a tanh, which does not overflow.
        return (1 + math.tanh(math.log(sigma / self.median) / (2 * self.scale))) / 2


def _cut(u: Tensor, low: float, high: float) -> Tensor:
    """Quantiles in a whole distribution of the quantiles u in its part from low to high.

    In float64: near 1, where the highest levels are, float32 has too few numbers.
    """
    return low + (high - low) * u.double()


def _check_range(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"sigma_min is {sigma_min} and sigma_max {sigma_max}: need 0 < sigma_min < sigma_max"
        )


def _check_share(low: float, high: float, density: Density) -> None:
    if high - low < LEAST_SHARE:
        raise ValueError(
            f"{density} has {high - low:.1g} of its distribution within sigma_min..sigma_max, it "
            f"must be at least {LEAST_SHARE:g}: widen the range or shift the distribution into it"
        )
