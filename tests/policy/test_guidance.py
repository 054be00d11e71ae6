"""Guidance against its formulas, with exact gradients."""

import math

import pytest
import torch

from policy.guidance.cfg import classifier_free
from policy.guidance.rtc import RealTimeChunking, soft_mask

F64 = torch.float64
TP, DA = 4, 2


def coupled(x, sigma, cond):
    """A nonlinear denoiser whose actions depend on each other."""
    s = sigma[..., None]
    return torch.tanh(x + 0.5 * x.roll(1, dims=1) + cond[:, None]) / (1 + s)


def inputs():
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(2, 1, TP, DA, generator=generator, dtype=F64)
    return x, torch.full((1, TP), 0.8, dtype=F64), torch.full((1, 1), 0.2, dtype=F64), target


def test_soft_mask_is_the_papers_example():
    """H = 10, delay 2, 4 executed."""
    is_known = (torch.arange(10) < 6)[None]
    expected = [1, 1, 0.571, 0.287, 0.114, 0.026, 0, 0, 0, 0]
    assert soft_mask(is_known, delay=2)[0].tolist() == pytest.approx(expected, abs=6e-4)


def test_soft_mask_is_that_of_its_places_where_the_past_is_unknown():
    """A first chunk invents its past: what is known later fades as if the past were known."""
    is_known = ((torch.arange(10) >= 1) & (torch.arange(10) < 6))[None]
    expected = [0, 1, 0.571, 0.287, 0.114, 0.026, 0, 0, 0, 0]
    assert soft_mask(is_known, delay=2)[0].tolist() == pytest.approx(expected, abs=6e-4)


def test_soft_mask_of_nothing_is_nothing():
    assert (soft_mask(torch.zeros(2, 5, dtype=torch.bool), delay=3) == 0).all()


def each(is_known):
    """The same for all elements of an action."""
    return is_known[..., None].expand(*is_known.shape, DA)


def rtc(**settings):
    values = {"delay": 2, "strength": 0.7, "max_weight": 50.0, "sigma_data": 0.5, "blend": False}
    return RealTimeChunking(**{**values, **settings})


def test_gradient_form_equals_finite_differences():
    """x0_hat + kappa J^T W (Y - x0_hat), the Jacobian by central differences."""
    x, sigma, cond, target = inputs()
    is_known = torch.tensor([[True, True, True, False]])
    x0_hat = coupled(x, sigma, cond)
    pull = 0.7 * soft_mask(is_known, delay=2)[..., None] * (target - x0_hat)
    expected = x0_hat.clone()
    kappa, h = 1 + (0.8 / 0.5) ** 2, 1e-6
    for i in range(TP):
        for j in range(DA):
            bump = torch.zeros_like(x)
            bump[0, i, j] = h
            column = coupled(x + bump, sigma, cond) - coupled(x - bump, sigma, cond)
            expected[0, i, j] += kappa * (column / (2 * h) * pull).sum()
    got = rtc()(coupled, target, each(is_known))(x, sigma, cond)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert not got.requires_grad


def test_guidance_weight_is_limited():
    x, sigma, cond, target = inputs()
    is_known = torch.ones(1, TP, dtype=torch.bool)
    none = rtc(max_weight=0.0)(coupled, target, each(is_known))(x, sigma, cond)
    torch.testing.assert_close(none, coupled(x, sigma, cond))


def test_a_finite_limit_is_that_of_the_papers_velocity():
    """min(beta, w) on the velocity is min(beta sigma, 1 + sigma^2 / sigma_data^2) on x0_hat."""
    x, sigma, cond, target = inputs()
    is_known = torch.ones(1, TP, dtype=torch.bool)
    free = coupled(x, sigma, cond)
    unlimited = rtc()(coupled, target, each(is_known))(x, sigma, cond) - free
    limited = rtc(max_weight=2.0)(coupled, target, each(is_known))(x, sigma, cond) - free
    torch.testing.assert_close(limited, unlimited * (2.0 * 0.8) / (1 + (0.8 / 0.5) ** 2))


@pytest.mark.parametrize("blend", [True, False])
def test_elements_that_are_not_known_are_not_pulled(blend):
    x, sigma, cond, target = inputs()

    def independent(x, sigma, cond):
        return torch.tanh(x) / (1 + sigma[..., None])

    is_known = torch.ones(1, TP, DA, dtype=torch.bool)
    is_known[..., 1] = False
    got = rtc(blend=blend)(independent, target, is_known)(x, sigma, cond)
    plain = independent(x, sigma, cond)
    assert torch.equal(got[..., 1], plain[..., 1])
    assert (got[:, :2, 0] - plain[:, :2, 0]).abs().min() > 1e-4


def test_both_forms_agree_for_independent_gaussian_actions():
    """There kappa J is the identity, with sigma_data the deviation of the actions."""
    x, sigma, cond, target = inputs()

    def gaussian(x, sigma, cond):
        s = sigma[..., None]
        return (0.25 * x + s**2 * cond[:, None]) / (0.25 + s**2)

    is_known = torch.ones(1, TP, dtype=torch.bool)
    gradient = rtc()(gaussian, target, each(is_known))(x, sigma, cond)
    blend = rtc(blend=True)(gaussian, target, each(is_known))(x, sigma, cond)
    torch.testing.assert_close(gradient, blend)


@pytest.mark.parametrize("blend", [True, False])
def test_clean_actions_and_unknown_ones_are_not_pulled(blend):
    x, _, cond, target = inputs()

    def independent(x, sigma, cond):
        s = sigma[..., None]
        return torch.where(s > 0, torch.tanh(x) / (1 + s), x)

    sigma = torch.tensor([[0.0, 0.8, 0.8, 0.8]], dtype=F64)
    is_known = torch.tensor([[True, True, True, False]])
    got = rtc(blend=blend)(independent, target, each(is_known))(x, sigma, cond)
    plain = independent(x, sigma, cond)
    assert torch.equal(got[:, [0, 3]], plain[:, [0, 3]])
    assert (got[:, 1:3] - plain[:, 1:3]).abs().min() > 1e-4


def test_guidance_works_where_gradients_are_off():
    x, sigma, cond, target = inputs()
    is_known = torch.ones(1, TP, dtype=torch.bool)
    expected = rtc()(coupled, target, each(is_known))(x, sigma, cond)
    with torch.no_grad():
        got = rtc()(coupled, target, each(is_known))(x, sigma, cond)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"strength": 1.5},
        {"strength": math.nan},
        {"max_weight": -1.0},
        {"max_weight": math.nan},
        {"sigma_data": 0.0},
        {"sigma_data": math.nan},
        {"delay": -1},
    ],
)
def test_impossible_settings_are_refused(settings):
    (name, value) = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name} (is )?{value}"):
        rtc(**settings)


def test_classifier_free_guidance_of_gaussians():
    """The product of N(0, 1) and (N(c, 1) / N(0, 1))^w has its mean at w c."""

    def gaussian(x, sigma, cond):
        s = sigma[..., None]
        return (x + s**2 * cond[:, None]) / (1 + s**2)

    x, sigma, cond, _ = inputs()
    null = torch.zeros(1, dtype=F64)
    for weight in (0.0, 1.0, 2.5):
        guided = classifier_free(gaussian, null_cond=null, weight=weight)
        torch.testing.assert_close(guided(x, sigma, cond), gaussian(x, sigma, weight * cond))


def test_each_row_has_its_own_null_condition():
    """Also where a call has several chunks per row, the row varying fastest."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, TP, DA, generator=generator, dtype=F64)
    cond, null = torch.randn(2, 3, 1, generator=generator, dtype=F64)
    sigma = torch.full((6, TP), 0.8, dtype=F64)
    guided = classifier_free(coupled, null_cond=null, weight=1.7)(x, sigma, cond.repeat(2, 1))
    for i in range(6):
        one = slice(i, i + 1)
        without = coupled(x[one], sigma[one], null[i % 3][None])
        given = coupled(x[one], sigma[one], cond[i % 3][None])
        torch.testing.assert_close(guided[one], without + 1.7 * (given - without))


def test_mask_fades_like_the_formula():
    is_known = (torch.arange(8) < 5)[None]
    c = (5 - 3) / (5 - 1 + 1)
    expected = c * (math.exp(c) - 1) / (math.e - 1)
    assert soft_mask(is_known, delay=1)[0, 3].item() == pytest.approx(expected)
