"""Parameterisations against their definitions."""

import pytest
import torch

from policy.diffusion.precond import EDM, X0, Eps, Flow, V, loss_weight

ALL = [EDM(0.5), Eps(), V(), X0(), Flow()]
SIGMA = torch.tensor([[0.02, 0.5, 1.0, 20.0]], dtype=torch.float64)


def denoised(preconditioning, x, sigma, raw):
    c = preconditioning(sigma)
    return c.c_skip[..., None] * x + c.c_out[..., None] * raw


def chunk():
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 1, 4, 3, generator=generator, dtype=torch.float64)
    return x0, eps, x0 + SIGMA[..., None] * eps


def target(preconditioning, x0, eps, x, sigma):
    """What the raw output should be, from the definition of each parameterisation."""
    s = sigma[..., None]
    match preconditioning:
        case Eps():
            return eps
        case V():  # alpha eps - sigma_vp x0 with alpha = 1 / sqrt(1 + s^2), sigma_vp = s alpha
            return (eps - s * x0) / (1 + s**2).sqrt()
        case X0():
            return x0
        case Flow():
            return eps - x0
        case EDM(sigma_data=d):  # equation 8 of Karras et al.
            return (x0 - d**2 / (s**2 + d**2) * x) * (s**2 + d**2).sqrt() / (s * d)
    raise AssertionError(preconditioning)


@pytest.mark.parametrize("preconditioning", ALL)
def test_exact_raw_output_gives_the_exact_chunk(preconditioning):
    x0, eps, x = chunk()
    raw = target(preconditioning, x0, eps, x, SIGMA)
    torch.testing.assert_close(denoised(preconditioning, x, SIGMA, raw), x0)


@pytest.mark.parametrize("preconditioning", ALL)
def test_weighted_error_is_the_error_of_the_raw_output(preconditioning):
    x0, eps, x = chunk()
    raw = target(preconditioning, x0, eps, x, SIGMA) + 0.7
    error = (denoised(preconditioning, x, SIGMA, raw) - x0) ** 2
    weighted = loss_weight(preconditioning, SIGMA)[..., None] * error
    torch.testing.assert_close(weighted, torch.full_like(x, 0.49))


def test_edm_weight_is_the_sum_of_inverse_variances():
    torch.testing.assert_close(loss_weight(EDM(0.5), SIGMA), SIGMA**-2 + 4)


@pytest.mark.parametrize("preconditioning", [p for p in ALL if not isinstance(p, Flow)])
def test_network_input_has_unit_scale(preconditioning):
    # All but EDM are built for data of unit variance.
    data_std = preconditioning.sigma_data if isinstance(preconditioning, EDM) else 1.0
    std = preconditioning(SIGMA).c_in * (SIGMA**2 + data_std**2).sqrt()
    torch.testing.assert_close(std, torch.ones_like(std))


@pytest.mark.parametrize("preconditioning", ALL)
def test_clean_actions_come_back_untouched_with_finite_gradients(preconditioning):
    x = torch.tensor([[[0.3, -1.0], [0.1, 0.2]]], requires_grad=True)
    raw = torch.full((1, 2, 2), 1e3, requires_grad=True)
    sigma = torch.tensor([[0.0, 0.5]], requires_grad=True)
    x0_hat = denoised(preconditioning, x, sigma, raw)
    assert torch.equal(x0_hat[:, 0], x[:, 0])
    c = preconditioning(sigma)
    (
        x0_hat.sum() + c.c_in.sum() + c.c_noise.sum() + loss_weight(preconditioning, sigma).sum()
    ).backward()
    assert x.grad is not None
    assert raw.grad is not None
    assert sigma.grad is not None
    assert all(torch.isfinite(gradient).all() for gradient in (x.grad, raw.grad, sigma.grad))
    assert torch.equal(x.grad[:, 0], torch.ones(1, 2))
    assert torch.equal(raw.grad[:, 0], torch.zeros(1, 2))
    assert loss_weight(preconditioning, sigma)[0, 0] == 0


@pytest.mark.parametrize("preconditioning", ALL)
def test_noise_input_rises_with_sigma_from_clean_on_a_scale_of_about_a_hundred(preconditioning):
    sigma = torch.tensor([0.0, 0.01, 0.1, 1.0, 10.0, 20.0])
    c_noise = preconditioning(sigma).c_noise
    assert (c_noise.diff() > 0).all()
    assert 50 < c_noise[-1] - c_noise[0] < 200


def test_flow_sees_the_straight_line_between_chunk_and_noise():
    x0, eps, x = chunk()
    t = (SIGMA / (1 + SIGMA))[..., None]
    torch.testing.assert_close(Flow()(SIGMA).c_in[..., None] * x, (1 - t) * x0 + t * eps)
