"""The step kernel against the textbook forms, and its gradients."""

import pytest
import torch

from policy.diffusion.schedule import cosine_vp_sigmas
from policy.diffusion.step import (
    History,
    adams_bashforth_2,
    ancestral,
    ancestral_moments,
    dpmpp_2m,
    dpmpp_2m_sde,
    heun,
    no_history,
)

F64 = torch.float64


def chunk(seed=0, batch=2, steps=4, size=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, steps, size, generator=generator, dtype=F64)


def levels(value, like):
    return torch.full(like.shape[:2], value, dtype=like.dtype)


@pytest.mark.parametrize("k", [1, 10, 50, 90, 98])
def test_eta_one_is_the_ddpm_posterior(k):
    """Equation 7 of Ho et al. in variance-preserving variables, betas from the definition."""
    u = torch.arange(101, dtype=F64) / 100
    f = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
    beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    alpha_bar = torch.cumprod(1 - beta, 0)
    x_vp, x0 = chunk()
    a, a_next, b = alpha_bar[k], alpha_bar[k - 1], beta[k]
    mean = a_next.sqrt() * b / (1 - a) * x0 + (1 - b).sqrt() * (1 - a_next) / (1 - a) * x_vp
    variance = (1 - a_next) / (1 - a) * b

    sigma, sigma_next = cosine_vp_sigmas()[k], cosine_vp_sigmas()[k - 1]
    x = x_vp / a.sqrt()
    got_mean, got_std = ancestral_moments(
        x, x0, levels(sigma.item(), x), levels(sigma_next.item(), x), eta=1.0
    )
    torch.testing.assert_close(got_mean * a_next.sqrt(), mean, rtol=1e-9, atol=1e-9)
    expected_std = variance.sqrt().expand(2, 4, 1)
    torch.testing.assert_close(got_std * a_next.sqrt(), expected_std, rtol=1e-7, atol=1e-9)


def test_eta_zero_is_ddim_in_variance_preserving_variables():
    """Equation 12 of Song et al."""
    alpha_bar, alpha_bar_next = 0.3, 0.6
    x_vp, x0 = chunk()
    eps = (x_vp - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5
    expected = alpha_bar_next**0.5 * x0 + (1 - alpha_bar_next) ** 0.5 * eps
    x = x_vp / alpha_bar**0.5
    sigma = levels(((1 - alpha_bar) / alpha_bar) ** 0.5, x)
    sigma_next = levels(((1 - alpha_bar_next) / alpha_bar_next) ** 0.5, x)
    mean, std = ancestral_moments(x, x0, sigma, sigma_next, eta=0.0)
    torch.testing.assert_close(mean * alpha_bar_next**0.5, expected)
    assert (std == 0).all()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_step_keeps_the_marginal(eta):
    """With the true x0, x0 + sigma eps must become x0 + sigma_next eps', eps' of variance 1."""
    x, x0 = chunk()
    sigma, sigma_next = levels(2.0, x), levels(0.7, x)
    mean, std = ancestral_moments(x, x0, sigma, sigma_next, eta=eta)
    variance = ((mean - x0) / (x - x0) * 2.0) ** 2 + std**2
    torch.testing.assert_close(variance, torch.full_like(x, 0.7**2))


def solvers():
    def second_order(solver):
        def step(x, x0_hat, sigma, sigma_next, noise):
            history = History(1.5 * x, x0_hat + 0.1, torch.where(sigma > 0, sigma * 2, 0.0))
            return solver(x, x0_hat, sigma, sigma_next, history=history, noise=noise)

        return step

    def first_order(eta):
        def step(x, x0_hat, sigma, sigma_next, noise):
            history = no_history(x)
            return ancestral(x, x0_hat, sigma, sigma_next, history=history, noise=noise, eta=eta)

        return step

    def mended(x, x0_hat, sigma, sigma_next, noise):
        x_next, _ = ancestral_moments(x, x0_hat, sigma, sigma_next, eta=0.0)
        return heun(x, x0_hat, sigma, x_next, x0_hat + 0.1 * (x_next - x), sigma_next)

    return {
        "2m": second_order(dpmpp_2m),
        "sde": second_order(dpmpp_2m_sde),
        "ab2": second_order(adams_bashforth_2),
        "ddim": first_order(0.0),
        "eta 0.5": first_order(0.5),
        "ddpm": first_order(1.0),
        "heun": mended,
    }


NAMES = sorted(solvers())


def no_noise():
    raise AssertionError("a deterministic solver draws no noise")


def noise_like(x):
    """The same noise at every call."""
    fixed = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    return lambda: fixed


@pytest.mark.parametrize("name", NAMES)
def test_clean_rows_are_frozen_and_gradients_finite(name):
    x, x0_hat = chunk()
    sigma = torch.tensor([[0.0, 0.5, 1.0, 2.0]], dtype=F64).repeat(2, 1)
    x, x0_hat = x.requires_grad_(), x0_hat.clone().requires_grad_()
    x_next = solvers()[name](x, x0_hat, sigma, sigma / 2, noise_like(x))
    assert torch.equal(x_next[:, 0], x[:, 0])
    gradients = torch.autograd.grad(x_next.sum(), (x, x0_hat))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert torch.equal(gradients[0][:, 0], torch.ones(2, 3, dtype=F64))
    assert torch.equal(gradients[1][:, 0], torch.zeros(2, 3, dtype=F64))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_finite_differences(name):
    x, x0_hat = chunk(batch=1)
    sigma = torch.tensor([[0.0, 0.5, 1.0, 2.0]], dtype=F64)
    step = solvers()[name]

    def f(x, x0_hat):
        return step(x, x0_hat, sigma, sigma / 2, noise_like(x))

    assert torch.autograd.gradcheck(
        f, (x.clone().requires_grad_(), x0_hat.clone().requires_grad_())
    )


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_the_levels_are_finite_at_zero(name):
    x, x0_hat = chunk(batch=1)
    sigma = torch.tensor([[0.0, 0.5, 1.0, 2.0]], dtype=F64, requires_grad=True)
    sigma_next = torch.tensor([[0.0, 0.0, 0.5, 2.0]], dtype=F64, requires_grad=True)
    x_next = solvers()[name](x, x0_hat, sigma, sigma_next, noise_like(x))
    gradients = torch.autograd.grad(x_next.sum(), (sigma, sigma_next))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_chunks_and_levels_equal_finite_differences(name):
    x, x0_hat = chunk(batch=1)
    sigma = torch.tensor([[0.1, 0.5, 1.0, 2.0]], dtype=F64)
    sigma_next = torch.tensor([[0.03, 0.4, 0.5, 0.7]], dtype=F64)
    step, noise = solvers()[name], noise_like(x)

    def f(x, x0_hat, sigma, sigma_next):
        return step(x, x0_hat, sigma, sigma_next, noise)

    tensors = [t.clone().requires_grad_() for t in (x, x0_hat, sigma, sigma_next)]
    assert torch.autograd.gradcheck(f, tensors)


def test_gradients_of_heun_are_exact():
    x, x0_hat = chunk(batch=1)
    sigma = torch.tensor([[0.0, 0.5, 1.0, 2.0]], dtype=F64)
    sigma_next = torch.tensor([[0.0, 0.0, 0.5, 1.0]], dtype=F64)

    def f(x, x0_hat, x_next, x0_hat_next):
        return heun(x, x0_hat, sigma, x_next, x0_hat_next, sigma_next)

    tensors = [t.clone().requires_grad_() for t in (x, x0_hat, 0.7 * x, x0_hat + 0.1)]
    assert torch.autograd.gradcheck(f, tensors)


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_impossible_eta_is_refused(eta):
    x, x0_hat = chunk()
    with pytest.raises(ValueError, match=f"eta is {eta}"):
        ancestral_moments(x, x0_hat, levels(1.0, x), levels(0.5, x), eta=eta)


@pytest.mark.parametrize("name", NAMES)
def test_same_level_is_the_identity(name):
    x, x0_hat = chunk()
    sigma = levels(0.7, x)
    x_next = solvers()[name](x, x0_hat, sigma, sigma, noise_like(x))
    torch.testing.assert_close(x_next, x)


@pytest.mark.parametrize("name", ["2m", "sde", "ddim", "ddpm"])
def test_level_zero_is_the_prediction(name):
    x, x0_hat = chunk()
    x_next = solvers()[name](x, x0_hat, levels(0.7, x), levels(0.0, x), noise_like(x))
    torch.testing.assert_close(x_next, x0_hat)


@pytest.mark.parametrize("name", ["2m", "ab2", "ddim"])
def test_each_action_steps_by_its_own_level(name):
    x, x0_hat = chunk()
    sigma = torch.tensor([[0.1, 0.5, 1.0, 2.0]], dtype=F64).repeat(2, 1)
    together = solvers()[name](x, x0_hat, sigma, sigma / 3, no_noise)
    for i in range(4):
        uniform = sigma[:, i : i + 1].expand(-1, 4)
        alone = solvers()[name](x, x0_hat, uniform, uniform / 3, no_noise)
        torch.testing.assert_close(together[:, i], alone[:, i])


def test_dpmpp_2m_is_its_formula():
    """Algorithm 2 of Lu et al. with lambda = -ln sigma: D = (1 + 1/2r) D_i - 1/2r D_(i-1)."""
    x, x0_hat = chunk()
    previous = x0_hat * 0.5 - 0.2
    history = History(x, previous, levels(4.0, x))
    got = dpmpp_2m(x, x0_hat, levels(1.0, x), levels(0.5, x), history=history, noise=no_noise)
    r = 2.0  # ln 4 / ln 2
    d = (1 + 1 / (2 * r)) * x0_hat - 1 / (2 * r) * previous
    torch.testing.assert_close(got, 0.5 * x + 0.5 * d)


@pytest.mark.parametrize("solver", [dpmpp_2m, adams_bashforth_2])
def test_without_history_a_multi_step_solver_is_ddim(solver):
    x, x0_hat = chunk()
    sigma, sigma_next = levels(1.0, x), levels(0.5, x)
    first = solver(x, x0_hat, sigma, sigma_next, history=no_history(x), noise=no_noise)
    torch.testing.assert_close(first, x0_hat + 0.5 * (x - x0_hat))


def test_history_counts_for_each_action_by_itself():
    x, x0_hat = chunk()
    sigma, sigma_next = levels(1.0, x), levels(0.5, x)
    known = torch.tensor([[4.0, 0.0, 4.0, 0.0]], dtype=F64).expand(2, 4)
    history = History(2 * x, 0.5 * x0_hat, known)
    for solver in (dpmpp_2m, adams_bashforth_2):
        mixed = solver(x, x0_hat, sigma, sigma_next, history=history, noise=no_noise)
        first = x0_hat + 0.5 * (x - x0_hat)
        torch.testing.assert_close(mixed[:, 1::2], first[:, 1::2])
        assert (mixed[:, ::2] - first[:, ::2]).abs().min() > 1e-3


def test_sde_2m_is_its_formula():
    """SDE-DPM-Solver++(2M) with e^-h = sigma_next / sigma, which here is 1/2."""
    x, x0_hat = chunk()
    previous = x0_hat * 0.5 - 0.2
    history = History(x, previous, levels(4.0, x))
    noise = noise_like(x)
    got = dpmpp_2m_sde(x, x0_hat, levels(1.0, x), levels(0.5, x), history=history, noise=noise)
    d = (1 + 1 / 4) * x0_hat - 1 / 4 * previous
    torch.testing.assert_close(got, 0.25 * x + 0.75 * d + 0.5 * 0.75**0.5 * noise())


def test_adams_bashforth_is_exact_where_the_noise_is_linear_in_sigma():
    """Eps = a + b sigma along the path: x(0.5) = x(1) - integral of eps from 0.5 to 1."""
    a, b = 0.3, -0.7
    x = torch.ones(1, 2, 1, dtype=F64)
    x_previous = x + (a * 1.0 + b * (2.0**2 - 1.0) / 2)
    history = History(x_previous, x_previous - 2.0 * (a + b * 2.0), levels(2.0, x))
    got = adams_bashforth_2(
        x, x - 1.0 * (a + b), levels(1.0, x), levels(0.5, x), history=history, noise=no_noise
    )
    torch.testing.assert_close(got, x - (a * 0.5 + b * (1.0 - 0.25) / 2))


def test_heun_takes_the_mean_of_both_slopes_and_keeps_what_ends_clean():
    x, x0_hat = chunk()
    x_next, x0_hat_next = 0.5 * x, x0_hat - 0.3
    sigma = torch.tensor([[2.0, 2.0, 0.0, 2.0]], dtype=F64).expand(2, 4)
    sigma_next = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=F64).expand(2, 4)
    got = heun(x, x0_hat, sigma, x_next, x0_hat_next, sigma_next)
    slope = ((x - x0_hat) / 2 + (x_next - x0_hat_next) / 1) / 2
    torch.testing.assert_close(got[:, [0, 3]], (x - slope)[:, [0, 3]])
    assert torch.equal(got[:, 1:3], x_next[:, 1:3])
