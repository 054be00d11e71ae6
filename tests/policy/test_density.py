"""Densities of noise levels against closed forms of their quantiles, shares and means."""

import math
from statistics import NormalDist

import pytest
import torch

from policy.diffusion.density import LogLogistic, LogNormal, LogUniform, Uniform

RANGE = {"sigma_min": 0.01, "sigma_max": 20.0}
ALL = [
    LogUniform(**RANGE),
    Uniform(**RANGE),
    LogNormal(mean=-1.2, std=1.2, **RANGE),
    LogLogistic(median=0.5, scale=0.5, **RANGE),
]
EDM = LogNormal(mean=-1.2, std=1.2, sigma_min=1e-6, sigma_max=1e5)  # Practically uncut.
MODE = LogLogistic(median=0.5, scale=0.5, sigma_min=0.001, sigma_max=80.0)
N = 200_000

each = pytest.mark.parametrize("density", ALL, ids=lambda density: type(density).__name__)


def quantiles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draws(density) -> torch.Tensor:
    return density(torch.rand(N, generator=torch.Generator().manual_seed(0))).double()


def assert_mean(values: torch.Tensor, mean: float, square: float) -> None:
    """The mean of draws is that of a distribution, up to four standard errors."""
    error = math.sqrt((square - mean**2) / len(values))
    assert float(values.mean()) == pytest.approx(mean, abs=4 * error)


def share_of_normal(density: LogNormal, sigma: float) -> float:
    z = (math.log(sigma) - density.mean) / density.std
    return math.erfc(-z / math.sqrt(2)) / 2


def share_of_logistic(density: LogLogistic, sigma: float) -> float:
    return 1 / (1 + (sigma / density.median) ** (-1 / density.scale))


@each
def test_quantiles_rise_from_the_lowest_level_to_the_highest(density):
    sigma = density(torch.linspace(0, 1, 1001))
    assert sigma.dtype == torch.float32
    assert (sigma.diff() > 0).all()
    assert float(sigma[0]) == pytest.approx(density.sigma_min, rel=1e-5)
    assert float(sigma[-1]) == pytest.approx(density.sigma_max, rel=1e-5)


@each
def test_quantiles_keep_shape_and_are_elementwise(density):
    u = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    sigma = density(u)
    assert sigma.shape == u.shape
    torch.testing.assert_close(density(u[1, 2:3]), sigma[1, 2:3])


def test_quantiles_of_uniform_levels():
    torch.testing.assert_close(Uniform(1.0, 5.0)(quantiles(0, 0.25, 0.5, 1)), quantiles(1, 2, 3, 5))


def test_quantiles_of_log_uniform_levels():
    torch.testing.assert_close(
        LogUniform(0.01, 100.0)(quantiles(0, 0.25, 0.5, 1)), quantiles(0.01, 0.1, 1, 100)
    )


def test_quantiles_of_edms_log_normal():
    # Two and a half per cent of a normal distribution lie above 1.95996 standard deviations.
    sigma = EDM(quantiles(0.5, 0.975, 0.025))
    expected = [math.exp(-1.2 + 1.2 * z) for z in (0, 1.959964, -1.959964)]
    torch.testing.assert_close(sigma, quantiles(*expected), rtol=1e-6, atol=0)


def test_quantiles_of_modes_log_logistic():
    # 0.5 sqrt(u / (1 - u)); the cut takes 4e-5 from above and less from below.
    sigma = MODE(quantiles(0.05, 0.25, 0.5, 0.75, 0.95, 0.99))
    expected = [0.5 * math.sqrt(r) for r in (1 / 19, 1 / 3, 1, 3, 19, 99)]
    torch.testing.assert_close(sigma, quantiles(*expected), rtol=3e-3, atol=0)


@pytest.mark.parametrize(
    ("density", "share_below"),
    [
        (LogNormal(mean=-1.2, std=1.2, sigma_min=0.1, sigma_max=2.0), share_of_normal),
        (LogLogistic(median=0.5, scale=0.5, sigma_min=0.1, sigma_max=2.0), share_of_logistic),
        (LogLogistic(median=1.0, scale=0.2, sigma_min=2.0, sigma_max=9.0), share_of_logistic),
    ],
    ids=["log_normal", "log_logistic", "tail_of_log_logistic"],
)
def test_the_cut_keeps_proportions(density, share_below):
    low, high = (share_below(density, s) for s in (density.sigma_min, density.sigma_max))
    u = quantiles(0.1, 0.3, 0.5, 0.9)
    shares = [share_below(density, float(sigma)) for sigma in density(u)]
    torch.testing.assert_close(quantiles(*shares), low + u * (high - low))


@pytest.mark.parametrize(
    "density", [LogNormal(-1.2, 1.2, 0.002, 80.0), MODE], ids=["log_normal", "log_logistic"]
)
def test_the_highest_levels_are_exact_in_float32(density):
    u = torch.tensor([1 - 2**-20, 1 - 2**-23])  # Held exactly.
    torch.testing.assert_close(density(u).double(), density(u.double()), rtol=1e-6, atol=0)


def test_mean_of_uniform_levels():
    low, high = RANGE.values()
    mean, square = (low + high) / 2, (low**2 + low * high + high**2) / 3
    assert_mean(draws(Uniform(**RANGE)), mean, square)


def test_mean_of_log_uniform_levels():
    low, high = RANGE.values()
    span = math.log(high / low)
    assert_mean(draws(LogUniform(**RANGE)), (high - low) / span, (high**2 - low**2) / (2 * span))


def test_mean_of_log_normal_levels():
    # E sigma^p = exp(p m + p^2 s^2 / 2) times the share of the range under N(m + p s^2, s^2).
    mean, std = -1.2, 1.2

    def part(p: int) -> float:
        shifted = NormalDist(mean + p * std**2, std)
        return shifted.cdf(math.log(20)) - shifted.cdf(math.log(0.01))

    moments = [math.exp(p * mean + (p * std) ** 2 / 2) * part(p) / part(0) for p in (1, 2)]
    assert_mean(draws(LogNormal(mean=mean, std=std, **RANGE)), *moments)


def test_mean_of_log_logistic_levels():
    # With scale 1/2, r = sigma / median has density 2 r / (1 + r^2)^2. Antiderivatives of that
    # times 1, r and r^2:
    def whole(r: float) -> float:
        return -1 / (1 + r**2)

    def first(r: float) -> float:
        return math.atan(r) - r / (1 + r**2)

    def second(r: float) -> float:
        return math.log(1 + r**2) + 1 / (1 + r**2)

    low, high = 0.01 / 0.5, 20 / 0.5
    share, mean, square = (f(high) - f(low) for f in (whole, first, second))
    sigma = draws(LogLogistic(median=0.5, scale=0.5, **RANGE))
    assert_mean(sigma, 0.5 * mean / share, 0.25 * square / share)


@pytest.mark.parametrize(("sigma_min", "sigma_max"), [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0)])
@pytest.mark.parametrize(
    "kind",
    [
        LogUniform,
        Uniform,
        lambda low, high: LogNormal(-1.2, 1.2, low, high),
        lambda low, high: LogLogistic(0.5, 0.5, low, high),
    ],
)
def test_impossible_ranges_are_refused(kind, sigma_min, sigma_max):
    with pytest.raises(ValueError, match=f"sigma_min is {sigma_min} and sigma_max {sigma_max}"):
        kind(sigma_min, sigma_max)


def test_impossible_distributions_are_refused():
    with pytest.raises(ValueError, match=r"std is 0\.0"):
        LogNormal(mean=0.0, std=0.0, **RANGE)
    with pytest.raises(ValueError, match=r"median is -1\.0"):
        LogLogistic(median=-1.0, scale=0.5, **RANGE)
    with pytest.raises(ValueError, match=r"scale 0\.0"):
        LogLogistic(median=1.0, scale=0.0, **RANGE)


@pytest.mark.parametrize(
    "settings", [{"sigma_min": 1e4, "sigma_max": 1e6}, {"sigma_min": 1e-9, "sigma_max": 1e-6}]
)
def test_a_range_far_out_in_the_tail_is_refused(settings):
    with pytest.raises(ValueError, match="widen the range"):
        LogNormal(mean=-1.2, std=1.2, **settings)
    with pytest.raises(ValueError, match="widen the range"):
        LogLogistic(median=0.5, scale=0.1, **settings)


def test_a_narrow_logistic_does_not_overflow():
    sigma = LogLogistic(median=1.0, scale=1e-3, **RANGE)(quantiles(0, 0.5, 1))
    torch.testing.assert_close(sigma[1], quantiles(1)[0])
    assert sigma.isfinite().all()
    assert (sigma >= 0.01).all()
    assert (sigma <= 20).all()
